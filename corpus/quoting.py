"""Whether quotes in a delimited file enclose cells, or are part of the texts.

An unquoted file in which a cell starts with a quote is still valid CSV, if a later cell ends with
one: all rows between the two would be read as one cell. A row of several lines is therefore
suspect if its lines have as many delimiters as the header, and so could be rows themselves.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator

from corpus.encodings import UnreadableFile
from corpus.row_formats import CsvLayout, RowLines

log = logging.getLogger(__name__)

SUSPECT_SHARE = 2 / 3  # of the lines of a row: if more could be rows themselves, it is suspect

CHANCE_LINES = 5  # a quoted cell of more lines does not have one delimiter in each by chance

ADVICE = "quote all cells, also those of the header, or save the file as JSON Lines"


class QuoteEvidence:
    """What the rows of a file show about its quotes; lines are counted from 1, 0 if there is none.

    - `quoted`: a quoted cell has a doubled quote, a delimiter or a line break in it;
    - `inner`: a cell that does not start with a quote has one in it, which no writer of CSV leaves;
    - `invalid`: a row that is not valid CSV;
    - `suspect`: a row of several lines that could be rows themselves.
    """

    def __init__(self, layout: CsvLayout):
        self.delimiter = layout.delimiter
        self.width = len(layout.columns)
        escaped = re.escape(layout.delimiter)
        self.quoted_cell = re.compile(rf'(^|{escaped})"([^"]*(?:""[^"]*)*)"(?={escaped}|$)')
        self.has_quoted_header = self.quoted_cell.search(layout.header) is not None
        self.quoted = 0
        self.inner = 0
        self.invalid = 0
        self.suspect = 0
        self.suspect_lines = 0  # of the longest suspect row, whose line `suspect` is

    def could_be_rows(self, lines: list[str]) -> bool:
        """Whether the lines of one row have as many delimiters as the header.

        Texts hardly ever have tabs: if tabs are delimiters, any more of them is enough.
        """
        if len(lines) < 2:
            return False
        filled = [line for line in lines if line.strip()]
        counts = [line.count(self.delimiter) for line in filled]
        if self.delimiter == "\t" and self.width > 1:
            return sum(counts) >= self.width
        return counts.count(self.width - 1) > SUSPECT_SHARE * len(counts)

    def add_row(self, number: int, lines: list[str], cells: list[str]) -> bool:
        """Note what a valid row with a quote shows. `number` is that of its first line.

        Returns whether the row is suspect.
        """
        text = "".join(lines).rstrip("\r\n")
        is_suspect = self.could_be_rows(lines)
        if is_suspect and len(lines) > self.suspect_lines:
            self.suspect_lines = len(lines)
            self.suspect = number
        if not self.quoted and len(cells) == self.width:
            is_quoted = self.has_doubled_quote(text)
            if not is_suspect:
                has_delimiter = text.count(self.delimiter) >= self.width
                is_quoted = is_quoted or len(lines) > 1 or has_delimiter
            self.quoted = number if is_quoted else 0
        if not is_suspect and not self.inner and '"' in self.quoted_cell.sub(r"\1", text):
            self.inner = number
        return is_suspect

    def judge_row(self, number: int, lines: list[str], cells: list[str]) -> None:
        """Add a valid row of a file that is read only once; UnreadableFile if it may be several.

        The first suspect row that is accepted gets a note if nothing shows that it is one.
        """
        if len(lines) == 1 and '"' not in lines[0]:
            return
        is_first = not self.suspect
        if not self.add_row(number, lines, cells):
            return
        if not self.is_trusted():
            raise self.refusal()
        if is_first and self.note():
            log.warning("note: the input %s", self.note())

    def has_doubled_quote(self, text: str) -> bool:
        """Whether a quoted cell within one line of a row has a doubled quote in it."""
        for _, content in self.quoted_cell.findall(text):
            if '""' in content and "\n" not in content and "\r" not in content:
                return True
        return False

    def add_invalid_row(self, number: int) -> None:
        """Note a row that is not valid CSV."""
        self.invalid = self.invalid or number

    @property
    def is_too_long(self) -> bool:
        """Whether a suspect row has so many lines that it cannot be one cell by chance."""
        return self.width > 1 and self.suspect_lines > CHANCE_LINES

    def is_trusted(self) -> bool:
        """Whether suspect rows are quoted cells all the same: every quote so far is valid CSV.

        In a single column, any lines could be rows, so that being suspect means little.
        """
        if self.inner or self.invalid:
            return False
        if self.width == 1 or self.has_quoted_header:
            return True
        return bool(self.quoted) and not self.is_too_long

    def is_unquoted(self) -> bool:
        """Whether the quotes are part of the texts: nothing shows quoting, and some row is not
        valid CSV or suspect."""
        if not self.invalid and not self.suspect:
            return False
        if self.has_quoted_header or self.quoted or self.is_trusted():
            return False
        return bool(self.invalid or self.inner) or self.is_too_long or self.delimiter == "\t"

    def note(self) -> str:
        """What to say about the quotes, worded to follow the name of the file; empty if nothing."""
        if self.is_unquoted():
            line = self.invalid or self.suspect
            return f"is read without quoting: line {line} has a quote that does not enclose a cell"
        if self.suspect and not self.has_quoted_header:
            last_line = self.suspect + self.suspect_lines - 1
            return (
                f"has a quote from line {self.suspect} to line {last_line}, which are read as one "
                "row"
            )
        return ""

    def refusal(self) -> UnreadableFile:
        """The error for a suspect row that may be a cell, or several rows."""
        reason = f"may be the start of one quoted cell of {self.suspect_lines} lines, or a row"
        other = self.inner or self.invalid
        if other:
            reason += f", and line {other} has a quote within a cell"
        return UnreadableFile(f"line {self.suspect} {reason}; {ADVICE}")


def rows_with_quotes(
    lines: RowLines, delimiter: str
) -> Iterator[tuple[int, list[str] | None, bool]]:
    """(number of the first line, cells or None if invalid, whether it is cut) of each row that
    contains a quote; `lines.row_lines` are its lines.

    A row is cut if the last line of the file opens a quote that is never closed.
    """
    while True:
        lines.start_row()
        line = next(lines, None)
        if line is None:
            return
        if '"' not in line:
            continue
        lines.reread_after(0)
        number = lines.number + 1
        try:
            yield number, next(csv.reader(lines, delimiter=delimiter, strict=True)), False
        except csv.Error as error:
            is_cut = len(lines.row_lines) == 1 and "unexpected end" in str(error)
            yield number, None, is_cut
            lines.reread_after(1)


def detect_quoting(lines: RowLines, layout: CsvLayout) -> tuple[bool, str]:
    """Whether quotes enclose cells instead of being part of the texts, and a note or "".

    `lines` are those of the file. UnreadableFile if it cannot be decided.
    """
    evidence = QuoteEvidence(layout)
    for number, cells, is_cut in rows_with_quotes(lines, layout.delimiter):
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
