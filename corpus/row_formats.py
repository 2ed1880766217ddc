"""How a file of texts is laid out (CSV, TSV, JSON Lines, plain lines): its rows, and a row with its results behind it.

What was read is written back byte for byte; only lines of plain text become a CSV.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from compression_config import UserError
from runtime.command_line import is_utf8

SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "txt"}

SEPARATORS = {
    "csv": ",;\t|",
    "tsv": "\t",
}  # the one that parts a header into most columns, the first among equals

USUAL_NAMES = ("text", "comment", "comments", "tweet", "content", "sentence")

LONGEST_CELL = 2**20  # characters; a quote that is still open then is a stray one

FIRST_OBJECTS = 100  # of a JSON Lines file, whose keys are taken for its columns


class Lines:
    """The lines of a byte stream, decoded for a parser (bytes that are no UTF-8 as surrogates); it knows where it
    stands, keeps the bytes of the row that is being read, and takes lines back."""

    def __init__(self, stream: BinaryIO, offset: int = 0, number: int = 1):
        self.stream, self.offset, self.number = stream, offset, number
        self.taken: list[bytes] = []
        self.returned: deque[bytes] = deque()
        self.ended = False

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        raw = self.returned.popleft() if self.returned else self.stream.readline()
        if not raw:
            self.ended = True
            raise StopIteration
        text = raw.removeprefix(codecs.BOM_UTF8) if self.offset == 0 else raw
        self.taken.append(raw)
        self.offset, self.number = self.offset + len(raw), self.number + 1
        return text.decode("utf-8", "surrogateescape")

    def row(self) -> bytes:
        """The bytes taken since the last call."""
        raw, self.taken = b"".join(self.taken), []
        return raw

    def give_back(self, kept: int = 0) -> None:
        """Put back the lines taken since the last row, all but the first `kept`."""
        lines, self.taken = self.taken[kept:], self.taken[:kept]
        self.returned.extendleft(reversed(lines))
        self.offset, self.number = self.offset - sum(map(len, lines)), self.number - len(lines)
        self.ended = False


@dataclass(frozen=True)
class Table:
    """How an input is laid out: its format, where the texts are, and what the output's first line says."""

    format: str
    text_column: str = ""
    columns: tuple[str, ...] = ()
    delimiter: str = ","
    newline: bytes = b"\n"
    heading: bytes = b""  # of the output


class Row(NamedTuple):
    """A row as it was read; one with a fault has no text to score."""

    line: int
    raw: bytes
    text: str
    fault: str
    kept: bool  # whether the row can be written at all


def result_columns(labels: Sequence[str]) -> list[str]:
    """The columns that a scoring adds."""
    return ["label", *(f"probability_{label}" for label in labels)]


def csv_line(cells: Iterable[str], delimiter: str) -> bytes:
    """Cells as a line without its end, quoted where they must be."""
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter, lineterminator="").writerow(cells)
    return line.getvalue().encode("utf-8", "surrogateescape")


def text_fault(text: Any) -> str:
    """Why something is no text that can be scored; nothing where it is one."""
    if not isinstance(text, str):
        return "has no text" if text is None else "its text is not a string"
    if not is_utf8(text):
        return "its text is not UTF-8"
    return "" if text.strip() else "its text is blank"


def named_column(names: Sequence[str], wanted: str | None, learnt: str | None) -> str:
    """The column that holds the texts: the one that is wanted, else the one that the model learnt from, else the only
    one or the only usual name; UserError where that is not clear."""
    listed = ", ".join(names)
    if wanted is not None:
        if names.count(wanted) != 1:
            raise UserError(f"--text_column is {wanted}, but must be one of the columns: {listed}")
        return wanted
    if names.count(learnt) == 1:
        return learnt
    usual = (
        list(names)
        if len(names) == 1
        else [name for name in names if name.strip().casefold() in USUAL_NAMES]
    )
    if len(usual) != 1:
        raise UserError(f"--text_column is not given, but must name one of the columns: {listed}")
    return usual[0]


def check_free(names: Iterable[str], added: Sequence[str], where: str) -> None:
    """UserError where the input already has a column that the scoring adds."""
    if taken := [name for name in added if name in set(names)]:
        raise UserError(f"--input is {where}, but must not have the column {taken[0]!r} already")


def separated_table(
    lines: Lines,
    kind: str,
    wanted: str | None,
    learnt: str | None,
    labels: Sequence[str],
    where: str,
) -> Table:
    """The layout that the header of a CSV or TSV says."""
    header = next(lines, None)
    if header is None:
        raise UserError(f"--input is {where}, but must begin with a line of column names")
    lines.give_back()
    delimiter, names = SEPARATORS[kind][0], []
    for candidate in SEPARATORS[kind]:
        try:
            found = next(csv.reader([header], delimiter=candidate, strict=True))
        except csv.Error:  # a name with a line break in it, or lines that end otherwise
            continue
        if len(found) > len(names):
            delimiter, names = candidate, found
    if not names or any(text_fault(name) == "its text is not UTF-8" for name in names):
        raise UserError(f"--input is {where}, but must begin with a line of column names in UTF-8")
    next(lines)
    raw, added = lines.row(), result_columns(labels)
    newline = b"\r\n" if raw.endswith(b"\r\n") else b"\n"
    check_free(names, added, where)
    heading = raw.rstrip(b"\r\n") + delimiter.encode() + csv_line(added, delimiter) + newline
    return Table(
        kind, named_column(names, wanted, learnt), tuple(names), delimiter, newline, heading
    )


def objects_table(
    lines: Lines,
    kind: str,
    wanted: str | None,
    learnt: str | None,
    labels: Sequence[str],
    where: str,
) -> Table:
    """The layout of JSON Lines: the keys of its first objects are its columns."""
    names: dict[str, None] = {}
    for _, line in zip(range(FIRST_OBJECTS), lines, strict=False):
        found = read_object(line)
        names |= dict.fromkeys(found) if isinstance(found, dict) else {}
    lines.give_back()
    if not names:
        raise UserError(f"--input is {where}, but must hold a JSON object a line")
    check_free(names, result_columns(labels), where)
    return Table(kind, named_column(list(names), wanted, learnt), result_columns(labels))


def plain_table(
    lines: Lines,
    kind: str,
    wanted: str | None,
    learnt: str | None,
    labels: Sequence[str],
    where: str,
) -> Table:
    """Lines of text, which become a CSV with the column `text`."""
    if wanted is not None:
        raise UserError(
            f"--text_column is {wanted}, but must not be given for txt, which has no columns"
        )
    return Table(kind, heading=csv_line(["text", *result_columns(labels)], ",") + b"\n")


def separated_rows(lines: Lines, table: Table) -> Iterator[Row]:
    """Rows of a CSV or TSV, blank lines left out; a stray quote costs its own line, not what follows."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(lines, delimiter=table.delimiter)
    where, fault = table.columns.index(table.text_column), ""
    while True:
        line = lines.number
        try:
            cells = next(reader)
            fault = "a quote is not closed" if lines.ended else ""
        except StopIteration:
            return
        except csv.Error as error:
            fault = (
                "a quote is not closed"
                if "field limit" in str(error)
                else "a carriage return inside the line"
            )
        if fault:
            lines.give_back(kept=1)
        elif cells and len(cells) != len(table.columns):
            fault = f"{len(cells)} cells under {len(table.columns)} columns"
        raw = lines.row()
        if fault:
            yield Row(line, raw, "", fault, kept=False)
        elif cells:
            yield Row(line, raw, cells[where], text_fault(cells[where]), kept=True)


def read_object(line: str) -> Any:
    """The value of a line of JSON; None where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def object_rows(lines: Lines, table: Table) -> Iterator[Row]:
    """Rows of JSON Lines, blank lines left out."""
    for content in lines:
        line, raw = lines.number - 1, lines.row()
        found = read_object(content)
        if isinstance(found, dict):
            taken = [name for name in table.columns if name in found]
            fault = (
                f"has {taken[0]!r} already" if taken else text_fault(found.get(table.text_column))
            )
            yield Row(line, raw, found.get(table.text_column), fault, kept=not taken)
        elif content.strip():
            yield Row(line, raw, "", "is no JSON object", kept=False)


def plain_rows(lines: Lines, table: Table) -> Iterator[Row]:
    """Rows of plain text, one a line."""
    for content in lines:
        text = content.rstrip("\r\n")
        yield Row(lines.number - 1, lines.row(), text, text_fault(text), kept=True)


def separated_result(row: Row, table: Table, added: dict[str, Any]) -> bytes:
    """The row's line with the results behind it."""
    body, ending = row.raw.rstrip(b"\r\n"), b"\r\n" if row.raw.endswith(b"\r\n") else b"\n"
    ending = ending if row.raw.endswith(b"\n") else table.newline
    return body + table.delimiter.encode() + csv_line(as_cells(added), table.delimiter) + ending


def object_result(row: Row, table: Table, added: dict[str, Any]) -> bytes:
    """The row's object with the results as its last keys."""
    body = row.raw.rstrip()[:-1].rstrip()
    return (
        body
        + (b"" if body.endswith(b"{") else b", ")
        + json.dumps(added, ensure_ascii=False)[1:].encode()
        + b"\n"
    )


def plain_result(row: Row, table: Table, added: dict[str, Any]) -> bytes:
    """The text and the results as a line of a CSV."""
    return csv_line([row.text, *as_cells(added)], ",") + b"\n"


def as_cells(added: dict[str, Any]) -> list[str]:
    """Results as cells: labels joined by `|`, what is missing empty, six decimals."""
    joined = ["|".join(value) if isinstance(value, list) else value for value in added.values()]
    return [
        "" if value is None else f"{value:.6f}" if isinstance(value, float) else value
        for value in joined
    ]


TABLES: dict[str, Callable[[Lines, str, str | None, Sequence[str], str], Table]] = {
    "csv": separated_table,
    "tsv": separated_table,
    "jsonl": objects_table,
    "txt": plain_table,
}

READERS: dict[str, Callable[[Lines, Table], Iterator[Row]]] = {
    "csv": separated_rows,
    "tsv": separated_rows,
    "jsonl": object_rows,
    "txt": plain_rows,
}

WRITERS: dict[str, Callable[[Row, Table, dict[str, Any]], bytes]] = {
    "csv": separated_result,
    "tsv": separated_result,
    "jsonl": object_result,
    "txt": plain_result,
}
