"""Whether quotes in a delimited file enclose cells, or are part of the texts.

An unquoted file in which a cell starts with a quote is still valid CSV, if a later cell ends with
one: all rows between the two would be read as one cell. A row of several lines is therefore
suspect if its lines have as many delimiters as the header, and so could be rows themselves. A file
is read without quoting only if every line of it has as many delimiters as the header.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator

from corpus.encodings import UnreadableFile
from corpus.row_formats import CsvLayout, RowLines

log = logging.getLogger(__name__)

ALIKE_SHARE = 2 / 3  # of the lines of a suspect row; a row within it may be damaged

CHANCE_LINES = 5  # a quoted cell of more lines does not have one delimiter in each by chance

ADVICE = "quote all cells, also those of the header, or save the file as JSON Lines"


class QuoteEvidence:
    """What the rows of a file show about its quotes. Lines are counted from 1, 0 if there is none.

    `suspect`, `phrase`, `inner`, `invalid` and `ragged` are the first line of their kind:

    - `suspect`: a row of several lines that could be rows themselves;
    - `phrase`: such a row that starts like a text: `"Hello, Bob` has a space after the delimiter;
    - `inner`: a cell that does not start with a quote has one in it, which no writer of CSV leaves;
    - `invalid`: a row that is not valid CSV;
    - `ragged`: a line with more or fewer delimiters than the header.

    `quoted` counts the rows that show quoting: a quoted cell has a doubled quote, a delimiter or a
    line break in it, or all cells are quoted. `enclosed` counts the rows with a quoted cell, and
    `contrary` those with a quote within a cell and those that are not valid.
    """

    def __init__(self, layout: CsvLayout):
        self.delimiter = layout.delimiter
        self.width = len(layout.columns)
        escaped = re.escape(layout.delimiter)
        self.quoted_cell = re.compile(rf'(^|{escaped})"([^"]*(?:""[^"]*)*)"(?={escaped}|$)')
        self.text_delimiter = re.compile(rf"{escaped}(?: |[\r\n]*$)")
        self.has_quoted_header = self.quoted_cell.search(layout.header) is not None
        self.has_spaced_cells = self.text_delimiter.search(layout.header) is not None
        self.quoted = 0
        self.enclosed = 0
        self.contrary = 0
        self.inner = 0
        self.invalid = 0
        self.ragged = 0
        self.suspect = 0
        self.suspect_lines = 0  # of the longest suspect row, whose line `suspect` is
        self.alike_lines = 0  # of the longest one whose lines are alike
        self.phrase = 0
        self.phrase_lines = 0
        self.is_noted = False  # whether there was a note on a file that is read only once

    @property
    def has_tabs(self) -> bool:
        """Whether tabs separate several columns; texts hardly ever have tabs."""
        return self.delimiter == "\t" and self.width > 1

    def add_line(self, number: int, line: str) -> None:
        """Note whether a line has as many delimiters as the header."""
        if line.count(self.delimiter) != self.width - 1 and line.strip("\r\n"):
            self.ragged = self.ragged or number

    def add_plain_row(self, line: str) -> None:
        """Note whether a row without a quote has a cell that starts with a space, or no last
        cell."""
        if not self.has_spaced_cells and line.count(self.delimiter) == self.width - 1:
            self.has_spaced_cells = self.text_delimiter.search(line) is not None

    def are_alike(self, lines: list[str]) -> bool:
        """Whether the lines of one row have as many delimiters as the header: the first, the last
        and most of those between them, one of which may be damaged."""
        counts = [line.count(self.delimiter) for line in lines if line.strip()]
        expected = self.width - 1
        if len(counts) < 2 or counts[0] != expected or counts[-1] != expected:
            return False
        return counts.count(expected) > ALIKE_SHARE * len(counts)

    def could_be_rows(self, lines: list[str]) -> bool:
        """Whether the lines of one row could be rows; any tab too many is enough."""
        if len(lines) < 2:
            return False
        if self.has_tabs:
            return sum(line.count("\t") for line in lines if line.strip()) >= self.width
        return self.are_alike(lines)

    def starts_like_text(self, line: str) -> bool:
        """Whether a delimiter after the first quote of a line is followed by a space or by the end
        of the line, in a file whose other cells do not start with a space."""
        if self.has_spaced_cells or self.delimiter == "\t":
            return False
        return self.text_delimiter.search(line, line.index('"')) is not None

    def add_row(self, number: int, lines: list[str], cells: list[str]) -> bool:
        """Note what a valid row with a quote shows. `number` is that of its first line.

        Returns whether the row is suspect.
        """
        text = "".join(lines).rstrip("\r\n")
        could_be_rows = self.could_be_rows(lines)
        is_phrase = could_be_rows and self.starts_like_text(lines[0])
        is_suspect = could_be_rows and not is_phrase
        if is_phrase and not self.phrase:
            self.phrase = number
            self.phrase_lines = len(lines)
        if is_suspect and len(lines) > self.suspect_lines:
            self.suspect_lines = len(lines)
            self.suspect = number
        if is_suspect and self.are_alike(lines):
            self.alike_lines = max(self.alike_lines, len(lines))
        if len(cells) == self.width:
            self.quoted += self.shows_quoting(text, len(lines), could_be_rows=could_be_rows)
            self.enclosed += self.quoted_cell.search(text) is not None
        if not is_suspect and '"' in self.quoted_cell.sub(r"\1", text):
            self.inner = self.inner or number
            self.contrary += 1
        return is_suspect

    def judge_row(self, number: int, lines: list[str], cells: list[str]) -> None:
        """Add a valid row of a file that is read only once; UnreadableFile if it may be several.

        The first row that could be several gets a note if nothing else shows that it is one.
        """
        for position, line in enumerate(lines):
            self.add_line(number + position, line)
        if len(lines) == 1 and '"' not in lines[0]:
            self.add_plain_row(lines[0])
            return
        if self.add_row(number, lines, cells) and not self.is_trusted():
            raise self.refusal()
        note = self.one_row_note()
        if note and not self.is_noted:
            self.is_noted = True
            log.warning("note: the input %s", note)

    def shows_quoting(self, text: str, line_count: int, *, could_be_rows: bool) -> bool:
        """Whether a row has a quoted cell that would not be quoted in a text."""
        matches = self.quoted_cell.findall(text)
        for _, content in matches:
            has_line_break = "\n" in content or "\r" in content
            if '""' in content and not (self.has_tabs and has_line_break):
                return True
        if could_be_rows:
            return False
        is_all_quoted = self.width > 1 and len(matches) == self.width
        return is_all_quoted or line_count > 1 or text.count(self.delimiter) >= self.width

    def add_invalid_row(self, number: int) -> None:
        """Note a row that is not valid CSV."""
        self.invalid = self.invalid or number
        self.contrary += 1

    @property
    def is_too_long(self) -> bool:
        """Whether a suspect row has so many lines that it cannot be one cell by chance."""
        return self.width > 1 and self.alike_lines > CHANCE_LINES

    def is_trusted(self) -> bool:
        """Whether suspect rows are quoted cells all the same: the others show quoting.

        In a single column, any lines could be rows, so that being suspect means little.
        """
        if self.contrary and self.quoted <= self.contrary:
            return False
        if self.width == 1 or self.has_quoted_header:
            return True
        return self.quoted > 0 and not self.is_too_long

    def is_unquoted(self) -> bool:
        """Whether the quotes are part of the texts: some row is not valid CSV or suspect, nothing
        shows quoting, and every line has as many delimiters as the header."""
        if self.ragged or not (self.invalid or self.suspect):
            return False
        if self.has_quoted_header or self.quoted or self.phrase or self.is_trusted():
            return False
        if self.invalid and self.enclosed > self.contrary:
            return False
        return self.contrary > 0 or self.is_too_long or self.has_tabs

    def one_row_note(self) -> str:
        """A note on lines that could be rows and are read as one; empty if nothing is unclear."""
        first, line_count = self.suspect, self.suspect_lines
        if not first and not self.quoted:
            first, line_count = self.phrase, self.phrase_lines
        if not first or self.has_quoted_header:
            return ""
        last = first + line_count - 1
        return f"has a quote from line {first} to line {last}, which are read as one row"

    def note(self) -> str:
        """What to say about the quotes, worded to follow the name of the file; empty if nothing."""
        if self.is_unquoted():
            line = self.invalid or self.suspect
            return f"is read without quoting: line {line} has a quote that does not enclose a cell"
        return self.one_row_note()

    def refusal(self) -> UnreadableFile:
        """The error for a suspect row that may be a cell, or several rows."""
        reason = f"may be the start of one quoted cell of {self.suspect_lines} lines, or a row"
        other = self.inner or self.invalid
        if other:
            reason += f", and line {other} has a quote within a cell"
        elif self.has_tabs and self.ragged:
            reason += f", and line {self.ragged} has not as many tabs as the header"
        return UnreadableFile(f"line {self.suspect} {reason}; {ADVICE}")


def rows_with_quotes(
    lines: RowLines, evidence: QuoteEvidence
) -> Iterator[tuple[int, list[str] | None, bool]]:
    """(number of the first line, cells or None if invalid, whether it is cut) of each row that
    contains a quote; `lines.row_lines` are its lines. All lines are added to `evidence`.

    A row is cut if the last line of the file opens a quote that is never closed.
    """
    while True:
        lines.start_row()
        line = next(lines, None)
        if line is None:
            return
        evidence.add_line(lines.number, line)
        if '"' not in line:
            evidence.add_plain_row(line)
            continue
        lines.reread_after(0)
        number = lines.number + 1
        try:
            cells = next(csv.reader(lines, delimiter=evidence.delimiter, strict=True))
            for position, row_line in enumerate(lines.row_lines):
                evidence.add_line(number + position, row_line)
            yield number, cells, False
        except csv.Error as error:
            is_cut = len(lines.row_lines) == 1 and "unexpected end" in str(error)
            yield number, None, is_cut
            lines.reread_after(1)


def detect_quoting(lines: RowLines, layout: CsvLayout) -> tuple[bool, str]:
    """Whether quotes enclose cells instead of being part of the texts, and a note or "".

    `lines` are those of the file. UnreadableFile if it cannot be decided.
    """
    evidence = QuoteEvidence(layout)
    for number, cells, is_cut in rows_with_quotes(lines, evidence):
        if cells is not None:
            evidence.add_row(number, lines.row_lines, cells)
        elif number == layout.header_number:
            return True, ""  # an error of the header
        elif not is_cut:
            evidence.add_invalid_row(number)
    is_unquoted = evidence.is_unquoted()
    if evidence.suspect and not is_unquoted and not evidence.is_trusted():
        raise evidence.refusal()
    return not is_unquoted, evidence.note()
