"""The rows of CSV, JSON Lines and lines of text, streamed: values by column, or an error."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from corpus.encodings import OpenText, UnreadableFile

if TYPE_CHECKING:
    from corpus.quoting import QuoteEvidence

DELIMITERS = ",;\t|"

SAMPLE_CHARS = 2**16  # read to detect the delimiter; less than the csv module's default limit

MAX_CELL_CHARS = 2**24  # a quote that is still open after so many characters is a stray quote


class Row(NamedTuple):
    """One row: its values by column, or None and the reason if it cannot be parsed."""

    number: int  # of its first line, counted from 1; in a JSON array or Parquet, of the row
    size: int  # characters, approximately
    values: dict[str, Any] | None
    error: str = ""  # a predicate, such as "has 3 fields instead of 2"


def row_groups(rows: Iterable[Row], max_rows: int, max_chars: int) -> Iterator[list[Row]]:
    """Rows in groups of `max_rows`, or of fewer with `max_chars` characters; read one at a time."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += row.size
        if len(group) == max_rows or size >= max_chars:
            yield group
            group = []
            size = 0
    if group:
        yield group


@dataclass(frozen=True)
class RowFile:
    """An open file of rows."""

    rows: Iterator[Row]
    columns: tuple[str, ...]  # empty for JSON, whose objects each have their own keys
    position: Callable[[], int] | None = None  # bytes of the file read so far; None for Parquet
    total: int | None = None  # bytes of a file, or rows of Parquet; None for stdin
    delimiter: str = ","
    unit: str = "line"  # what `Row.number` counts
    schema: Any = None  # the pyarrow.Schema of Parquet


class NumberText(str):
    """A JSON number as it is written in the file."""


class RowLines:
    """The lines that csv.reader reads. It counts them and can read the lines of a row again."""

    def __init__(self, lines: Iterator[str]):
        self.lines = lines
        self.number = 0  # of the last line read, counted from 1
        self.row_lines: list[str] = []
        self.pending: deque[str] = deque()

    def __iter__(self) -> RowLines:
        return self

    def __next__(self) -> str:
        line = self.pending.popleft() if self.pending else next(self.lines)
        self.row_lines.append(line)
        self.number += 1
        return line

    def start_row(self) -> None:
        """Forget the lines of the previous row."""
        self.row_lines.clear()

    def reread_after(self, count: int) -> None:
        """Read the lines of the current row again, except the first `count`."""
        self.pending.extendleft(reversed(self.row_lines[count:]))
        self.number -= len(self.row_lines) - count
        del self.row_lines[count:]


def clean_column_names(names: Iterable[str]) -> list[str]:
    """Names without surrounding white space, `column N` for an empty one.

    UnreadableFile if two are equal.
    """
    cleaned = [name.strip() or f"column {number}" for number, name in enumerate(names, 1)]
    repeated = [name for name, count in Counter(cleaned).items() if count > 1]
    if repeated:
        raise UnreadableFile(f"its header names {', '.join(repeated)} more than once")
    return cleaned


def delimiter_score(rows: list[list[str]]) -> tuple[bool, int, int]:
    """A sort key for delimiters: rows with as many fields as the header add to it."""
    if not rows:
        return False, 0, 0
    width = len(rows[0])
    agreement = 0
    for row in rows[1:]:
        agreement += 1 if len(row) == width else -1
    return width > 1, agreement, width


class CsvLayout(NamedTuple):
    """How the rows of a delimited file are read."""

    delimiter: str
    columns: tuple[str, ...]
    header: str  # the line of the column names; empty if the file has none
    header_number: int = 0  # of that line, counted from 1
    is_quoted: bool = True  # whether a cell that starts with a quote ends with one


def header_names(cells: list[str]) -> tuple[str, ...]:
    """The names of the columns in a header; UnreadableFile if two are equal."""
    try:
        return tuple(clean_column_names(cells))
    except UnreadableFile as error:
        raise UnreadableFile(f"{error}; give --no_header if that line is a row") from error


def detect_layout(
    sample: str, *, is_cut: bool, has_header: bool, prefers_tabs: bool = False
) -> CsvLayout:
    """The delimiter that fits the first rows best, and the columns.

    With `prefers_tabs`, it is the tab if that splits the first row. Columns are called column_1,
    column_2 ... without a header. UnreadableFile if there is no row, or if a cut sample contains
    only a part of the first one.
    """
    parsed = {}
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
        rows = [row for row in reader if row]
        parsed[delimiter] = rows[:-1] if is_cut else rows
    best = max(DELIMITERS, key=lambda delimiter: delimiter_score(parsed[delimiter]))
    if prefers_tabs and parsed["\t"] and len(parsed["\t"][0]) > 1:
        best = "\t"
    if not parsed[best]:
        if sample.strip():
            raise UnreadableFile(f"its header is longer than {SAMPLE_CHARS} characters")
        raise UnreadableFile("it has no rows")
    cells = parsed[best][0]
    if not has_header:
        names = [f"column_{number}" for number in range(1, len(cells) + 1)]
        return CsvLayout(best, tuple(names), "")
    columns = header_names(cells)
    numbered_lines = enumerate(io.StringIO(sample, newline=""), 1)
    number, header = next(pair for pair in numbered_lines if pair[1].strip("\r\n"))
    return CsvLayout(best, columns, header.rstrip("\r\n"), number)


def is_whole_record(text: str, delimiters: str) -> bool:
    """Whether no quoted cell is open at the end of a text, whichever of `delimiters` it has."""
    for delimiter in delimiters:
        try:
            list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        except csv.Error as error:
            if "unexpected end" in str(error):
                return False
    return True


def read_first_record(lines: RowLines, delimiters: str) -> str:
    """The first row of a stream, which is read again later.

    It may have several lines; it is one line if its quote is not closed within SAMPLE_CHARS.
    """
    lines.start_row()
    text = ""
    first_line = ""
    for line in lines:
        text += line
        if not text.strip():
            continue
        first_line = first_line or text
        if len(text) > SAMPLE_CHARS or is_whole_record(text, delimiters):
            break
    lines.reread_after(0)
    if len(text) > SAMPLE_CHARS or not is_whole_record(text, delimiters):
        return first_line
    return text


def csv_error(error: csv.Error) -> str:
    """An error of a strict csv.reader, worded to follow `line 7 `."""
    message = str(error)
    if "unexpected end of data" in message:
        return "has a quote that is never closed"
    if "field limit" in message:
        return (
            "has a quote that is not closed, or a cell that is longer than "
            f"{MAX_CELL_CHARS:,} characters"
        )
    if "expected after" in message:
        return "has text after a closing quote"
    return f"is not CSV: {message}"


def csv_rows(
    lines: RowLines, layout: CsvLayout, evidence: QuoteEvidence | None = None
) -> Iterator[Row]:
    """Rows quoted as in RFC 4180, header included; blank lines are skipped, an empty field is None.

    After an error in a quoted field, reading resumes at the second line of the row: a stray quote
    costs only its own line. With `evidence`, for a file that is read only once, the quotes are
    judged row by row; UnreadableFile at a row that may be one quoted cell, or several rows.
    """
    columns = layout.columns
    quoting = csv.QUOTE_MINIMAL if layout.is_quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=layout.delimiter, quoting=quoting, strict=True)
    while True:
        lines.start_row()
        number = lines.number + 1
        cells: list[str] = []
        error = ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as failure:
            error = csv_error(failure)
            if evidence:
                evidence.add_invalid_row(number)
            lines.reread_after(1)
        if evidence and not error:
            evidence.judge_row(number, lines.row_lines, cells)
        if cells and len(cells) != len(columns):
            error = f"has {len(cells)} fields instead of {len(columns)}"
        size = sum(map(len, lines.row_lines))
        if error:
            yield Row(number, size, None, error)
        elif cells:
            pairs = zip(columns, cells, strict=True)
            yield Row(number, size, {name: cell or None for name, cell in pairs})


@contextmanager
def long_csv_cells() -> Iterator[None]:
    """Raise the csv module's limit of a cell, which is process-wide, within the block."""
    limit = csv.field_size_limit(MAX_CELL_CHARS)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def open_csv_rows(
    lines: RowLines,
    layout: CsvLayout,
    position: Callable[[], int],
    evidence: QuoteEvidence | None = None,
) -> RowFile:
    """The rows of a delimited file, without its header; `evidence` as in `csv_rows`."""
    rows = csv_rows(lines, layout, evidence)
    if layout.header:
        first = next(rows)
        if first.error:
            raise UnreadableFile(f"line {first.number} {first.error}")
    return RowFile(rows, layout.columns, position, delimiter=layout.delimiter)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; ValueError if a key is repeated."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is repeated")
    return values


def reject_constant(word: str) -> None:
    """ValueError: NaN and Infinity are not JSON."""
    raise ValueError(f"{word} is not a JSON value")


JSON = json.JSONDecoder(
    object_pairs_hook=unique_keys,
    parse_float=NumberText,
    parse_int=NumberText,
    parse_constant=reject_constant,
)


def object_row(number: int, size: int, value: Any) -> Row:
    """The row of a JSON value, which must be an object; its keys are cleaned as column names."""
    if not isinstance(value, dict):
        return Row(number, size, None, "is not a JSON object")
    if all(key and key == key.strip() for key in value):
        return Row(number, size, value)
    try:
        names = clean_column_names(value)
    except UnreadableFile:
        return Row(number, size, None, "has two keys that differ only in white space")
    return Row(number, size, dict(zip(names, value.values(), strict=True)))


def decode_json(text: str) -> tuple[Any, int, str]:
    """(value, 0, "") of a JSON text, or (None, line of the error within the text, its message)."""
    try:
        return JSON.decode(text), 0, ""
    except (ValueError, RecursionError) as error:
        return None, getattr(error, "lineno", 1), getattr(error, "msg", str(error))


def json_rows(lines: Iterator[str]) -> Iterator[Row]:
    """The objects of JSON Lines; blank lines are skipped."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            value, _, message = decode_json(line.strip())
            if message:
                yield Row(number, len(line), None, f"is not a JSON object: {message}")
            else:
                yield object_row(number, len(line), value)


def array_rows(text: str) -> Iterator[Row]:
    """The objects of one JSON array, which is parsed in one piece; UnreadableFile if it is not."""
    values, line, message = decode_json(text)
    if message:
        raise UnreadableFile(f"line {line} is not a JSON object: {message}")
    for number, value in enumerate(values, 1):
        yield object_row(number, len(text) // len(values), value)


def open_json_rows(text: OpenText) -> RowFile:
    """The objects of JSON Lines, or of an array if the first line opens one."""
    first_line = next(text.lines, "")
    if first_line.startswith("["):
        rows = array_rows(first_line + "".join(text.lines))
        return RowFile(rows, (), text.position, unit="object")
    rows = json_rows(chain([first_line], text.lines))
    return RowFile(rows, (), text.position)


def line_rows(lines: Iterator[str]) -> Iterator[Row]:
    """Every line as a row with one column, `text`."""
    for number, line in enumerate(lines, 1):
        yield Row(number, len(line), {"text": line.rstrip("\n")})


def all_keys(rows: Iterable[Row]) -> dict[str, None]:
    """The columns of rows of JSON in the order of their first occurrence, as the keys of a dict."""
    keys: dict[str, None] = {}
    for row in rows:
        if row.values:
            keys.update(dict.fromkeys(row.values))
    return keys
