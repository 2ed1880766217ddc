"""From a labelled file of any usual text format to one Arrow table whose columns are all strings.

Nothing is interpreted and no row is dropped: `NA` stays a text, only an empty CSV field is a null, and a file that
cannot be read whole is refused in one line. A nameless column N is called `column N`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from compression_config import UserError

log = logging.getLogger(__name__)

CODECS = {".gz": "gzip", ".zst": "zstd"}

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

FOREIGN_SIGNATURES = {  # first bytes -> what such a file is, whatever its name
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "gzip data (name it .gz)",
    b"\x28\xb5\x2f\xfd": "zstd data (name it .zst)",
    b"BZh91AY": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"PAR1\x15": "Parquet (name it .parquet)",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"%PDF": "a PDF",
    b"<!DOCTYPE html": "a web page",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}

UNDEFINED_CP1252 = b"\x81\x8d\x8f\x90\x9d"

DELIMITERS = ",;\t|"

SAMPLE = 2**16  # characters that are sniffed; below the csv module's limit of a field

PIECE = 2**22  # bytes read at a time

LONGEST_ROW = 2**26  # bytes

LAST = "\x1aend of the table\x1a"  # fields of a row put behind the file's end: an open quote swallows it

LINE_END = re.compile(r"\r\n|\r|\n")

BAR_DELAY_S = 1  # what is read sooner (some 200 MB of CSV) shows no bar


class Unreadable(Exception):
    """Why a file is refused, in words that follow `--flag is PATH, but`."""


@dataclass(frozen=True)
class EncodedFile:
    """A file of text: how it is compressed and encoded, and the length of its byte-order mark."""

    path: Path
    codec: str | None = None
    encoding: str = "utf8"
    mark: int = 0


@contextmanager
def open_bytes(text: EncodedFile, as_utf8: bool = True) -> Iterator[pa.NativeFile]:
    """Its bytes decompressed, without the byte-order mark; a bar follows a file that takes its time."""
    size = text.path.stat().st_size
    with (
        open(text.path, "rb") as file,
        tqdm.wrapattr(
            file, "read", size, desc=f"read {text.path.name}", leave=False, delay=BAR_DELAY_S
        ) as watched,
    ):
        source = pa.PythonFile(watched, "r")
        if text.codec:
            source = pa.CompressedInputStream(source, text.codec)
        source.read(text.mark)
        if as_utf8 and text.encoding != "utf8":
            source = pa.transcoding_input_stream(source, text.encoding, "utf8")
        yield source


@contextmanager
def open_lines(text: EncodedFile, newline: str | None) -> Iterator[io.TextIOWrapper]:
    """Its lines; `newline` as Python's open has it."""
    with open_bytes(text) as source, io.TextIOWrapper(source, "utf8", newline=newline) as lines:
        yield lines


def pieces(text: EncodedFile) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) up to an empty piece at the end; an 8-bit text with a NUL is refused."""
    offset, piece = text.mark, b"any"
    with open_bytes(text, as_utf8=False) as source:
        while piece:
            piece = source.read(2**16)
            if text.encoding == "utf8" and b"\0" in piece:
                raise Unreadable(f"that is no text: a NUL byte at offset {offset + piece.index(0)}")
            yield offset, piece
            offset += len(piece)


def first_invalid_byte(text: EncodedFile) -> int | None:
    """Offset of the first byte that its encoding does not allow."""
    decoder = codecs.getincrementaldecoder(text.encoding)()
    for offset, piece in pieces(text):
        waiting = len(decoder.getstate()[0])
        try:
            if "\0" in decoder.decode(piece, final=not piece):
                raise Unreadable(f"that is no text: a NUL character after offset {offset}")
        except UnicodeDecodeError as error:
            return offset - waiting + error.start
    return None


def eight_bit_encoding(text: EncodedFile, fault: int) -> str:
    """cp1252, or latin-1 where cp1252 has no such character; a damaged UTF-8 text is refused, not misread."""
    decoder = codecs.getincrementaldecoder("utf8")("surrogateescape")
    broken = intact = undefined = 0
    for _, piece in pieces(text):
        found = decoder.decode(piece, final=not piece)
        sound = len(found.encode("utf8", "ignore").decode("utf8"))
        broken += len(found) - sound
        intact += sound - len(found.encode("ascii", "ignore"))
        undefined += len(piece) - len(piece.translate(None, UNDEFINED_CP1252))
    if text.mark or intact > broken:
        raise Unreadable(f"that is damaged UTF-8: the byte at offset {fault} is wrong")
    return "latin-1" if undefined else "cp1252"


def guess_encoding(head: bytes) -> tuple[str, int]:
    """(encoding, length of the byte-order mark); UTF-16 without one shows by NULs in every other byte."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding, len(mark)
    even, odd = head[::2].count(0), head[1::2].count(0)
    if (
        head[:2].count(0) == 1
        and max(even, odd) * 16 > len(head)
        and max(even, odd) > 8 * min(even, odd)
    ):
        return ("utf-16-be" if even > odd else "utf-16-le"), 0
    return "utf8", 0


def detect_encoding(text: EncodedFile) -> EncodedFile:
    """The same with its encoding, decided on every byte."""
    with open_bytes(text, as_utf8=False) as source:
        head = source.read(4096)
    for magic, what in FOREIGN_SIGNATURES.items():
        if head.startswith(magic):
            raise Unreadable(f"that is {what}")
    encoding, mark = guess_encoding(head)
    text = replace(text, encoding=encoding, mark=mark)
    fault = first_invalid_byte(text)
    if fault is not None and encoding != "utf8":
        raise Unreadable(f"that is damaged UTF-16: the byte at offset {fault} is wrong")
    if fault is not None:
        text = replace(text, encoding=eight_bit_encoding(text, fault))
    if text.encoding != "utf8":
        log.info("%s is read as %s", text.path, text.encoding)
    return text


def clean_column_names(names: Iterable[str]) -> list[str]:
    """Column names without white space around them; a name that is given twice is refused."""
    cleaned = [name.strip() or f"column {number}" for number, name in enumerate(names, 1)]
    twice = [name for name, count in Counter(cleaned).items() if count > 1]
    if twice:
        raise Unreadable(f"its header names {', '.join(twice)} more than once")
    return cleaned


def detect_delimiter(text: EncodedFile) -> tuple[str, list[str]]:
    """The separator by which most of the first rows are as wide as the header, and the header."""
    with open_lines(text, newline="") as lines:
        sample = lines.read(SAMPLE)
    parsed = {}
    for separator in DELIMITERS:
        rows = [
            row for row in csv.reader(io.StringIO(sample, newline=""), delimiter=separator) if row
        ]
        parsed[separator] = rows[:-1] if len(sample) == SAMPLE else rows

    def agreement(separator: str) -> tuple[bool, int, int]:
        width, *widths = map(len, parsed[separator] or [[]])
        return width > 1, sum(1 if other == width else -1 for other in widths), width

    best = max(DELIMITERS, key=agreement)
    if not parsed[best]:
        raise Unreadable(
            f"its header is longer than {SAMPLE} characters"
            if sample.strip()
            else "it holds no rows"
        )
    return best, parsed[best][0]


def csv_fault(text: EncodedFile, separator: str, width: int) -> str | None:
    """The first row with too few or too many fields, or the line of the quote that is never closed."""
    limit, start = csv.field_size_limit(2**31 - 1), 1
    try:
        with open_lines(text, newline="") as lines:
            reader = csv.reader(chain(lines, ["\n", LAST]), delimiter=separator)
            for row in reader:
                if row and row[-1] != LAST and row[-1].endswith(LAST):
                    opened = start + sum(len(LINE_END.findall(field)) for field in row[:-1])
                    return f"the quote opened on line {opened} is never closed"
                if row and len(row) != width and row != [LAST]:
                    return f"line {start} has {len(row)} fields and the header {width}"
                start = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)
    return None


def row_ends(piece: bytes) -> Iterator[int]:
    """Where a piece may be cut: after the last newline outside quotes, should all quotes be paired; then inside."""
    newline = b"\n" if b"\n" in piece else b"\r"
    for wanted in (0, 1):
        end, parity, at = len(piece), piece.count(b'"') % 2, -1
        while end >= 0 > at:
            quote = piece.rfind(b'"', 0, end)
            if parity == wanted:
                at = piece.rfind(newline, quote + 1, end)
            end, parity = quote, 1 - parity
        if at >= 0:
            yield at + 1


def csv_rows(piece: bytes, end: int, separator: str, names: list[str]) -> pa.Table | None:
    """The rows of `piece` up to `end`; none if a quote is open there, which then swallows a row put behind it."""
    sink, last_row = pa.BufferOutputStream(), [LAST] * len(names)
    sink.write(memoryview(piece)[:end])
    sink.write(("\n" + separator.join(last_row)).encode())
    buffer = sink.getvalue()
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(buffer),
            pa.csv.ReadOptions(column_names=names, block_size=buffer.size + 1),
            pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid:
        return None
    kept = table.num_rows - 1
    return (
        table.slice(0, kept)
        if [column[kept].as_py() for column in table.columns] == last_row
        else None
    )


def csv_tables(text: EncodedFile, separator: str, names: list[str]) -> Iterator[pa.Table]:
    """The rows, header included, as tables of whole rows; refused if a row is broken or too long.

    Arrow would find the rows' ends itself, but at the edge of its blocks it loses the \\n of a quoted \\r\\n.
    """
    piece, more = b"", b"any"
    with open_bytes(text) as source:
        while more:
            more = source.read(max(PIECE, len(piece)))
            piece += more
            for end in row_ends(piece) if more else [len(piece)]:
                if (table := csv_rows(piece, end, separator, names)) is not None:
                    yield table
                    piece = piece[end:]
                    break
            else:
                if not more or len(piece) > LONGEST_ROW:
                    fault = csv_fault(text, separator, len(names))
                    raise Unreadable(fault or f"a row is longer than {LONGEST_ROW} bytes")


def read_csv(path: Path, codec: str | None) -> Iterator[pa.Table]:
    """Text separated by any of SEPARATORS, quoted as in RFC 4180; blank lines are no rows."""
    text = detect_encoding(EncodedFile(path, codec))
    separator, header = detect_delimiter(text)
    tables = csv_tables(text, separator, clean_column_names(header))
    yield next(tables).slice(1)
    yield from tables


def only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; ValueError where a key comes twice."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def no_number(word: str) -> None:
    """ValueError: NaN and Infinity are no JSON."""
    raise ValueError(f"{word} is no JSON value")


JSON = json.JSONDecoder(
    object_pairs_hook=only_once, parse_float=str, parse_int=str, parse_constant=no_number
)


def json_objects(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """(place, value) for every line of JSON Lines, or for every member of one array, which is parsed whole."""
    for number, line in enumerate(lines, 1):
        try:
            if number == 1 and line.startswith("["):
                yield from (
                    (f"object {i}", value)
                    for i, value in enumerate(JSON.decode(line + "".join(lines)), 1)
                )
            elif line.strip():
                yield f"line {number}", JSON.decode(line.strip())
        except (ValueError, RecursionError) as error:
            number += getattr(error, "lineno", 1) - 1
            raise Unreadable(
                f"line {number} is no JSON object: {getattr(error, 'msg', error)}"
            ) from error


def json_row(place: str, value: Any) -> dict[str, str | None]:
    """An object whose values are texts or null; what is nested, or half a surrogate pair, is refused."""
    if not isinstance(value, dict) or not value:
        raise Unreadable(f"{place} is no JSON object with keys and values")
    for name, field in value.items():
        if isinstance(field, (list, dict)):
            raise Unreadable(
                f"{place} holds a list or an object in {name}, but must hold plain values"
            )
        if isinstance(field, bool):
            value[name] = str(field).lower()
    try:
        "".join([*value, *filter(None, value.values())]).encode()
    except UnicodeEncodeError as error:
        raise Unreadable(f"{place} holds half a surrogate pair") from error
    return value


def read_json(path: Path, codec: str | None) -> Iterator[pa.Table]:
    """JSON Lines or an array of objects: numbers as they are written, a key that is missing as null."""
    names: dict[str, None] = {}
    with open_lines(detect_encoding(EncodedFile(path, codec)), None) as lines:
        rows = (json_row(place, value) for place, value in json_objects(lines))
        while batch := list(islice(rows, 10_000)):
            names |= dict.fromkeys(name for row in batch for name in row)
            columns = [pa.array([row.get(name) for row in batch], pa.string()) for name in names]
            yield pa.table(columns, clean_column_names(names))


def casts_to_text(file: pa.parquet.ParquetFile, field: pa.Field) -> bool:
    """Whether every value of a column can be cast to text; in a binary column each is looked at."""
    if pa.types.is_nested(field.type):
        return False
    by_value = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    parts = file.iter_batches(columns=[field.name]) if by_value else [[pa.nulls(0, field.type)]]
    try:
        for part in parts:
            part[0].cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def read_parquet(path: Path, codec: str | None) -> Iterator[pa.Table]:
    """The columns that can be cast to text; the log names the others."""
    file = pa.parquet.ParquetFile(path, page_checksum_verification=True)
    names = clean_column_names(file.schema_arrow.names)
    fields = zip(names, file.schema_arrow, strict=True)
    kept = {field.name: name for name, field in fields if casts_to_text(file, field)}
    left_out = [name for name in names if name not in kept.values()]
    if left_out:
        log.info(
            "%s: columns that hold no plain values are left out: %s", path, ", ".join(left_out)
        )
    with tqdm(
        total=file.metadata.num_rows, desc=f"read {path.name}", leave=False, delay=BAR_DELAY_S
    ) as bar:
        for batch in file.iter_batches(columns=[*kept]):
            bar.update(batch.num_rows)
            part = pa.table(
                {kept[name]: batch[name].cast(pa.string()) for name in batch.schema.names}
            )
            part.validate(full=True)
            yield part


def read_lines(path: Path, codec: str | None) -> Iterator[pa.Table]:
    """Every line as a row of one column, `text`."""
    with open_lines(detect_encoding(EncodedFile(path, codec)), None) as lines:
        while batch := [line.rstrip("\n") for line in islice(lines, 10_000)]:
            yield pa.table({"text": pa.array(batch, pa.string())})


Reader = Callable[[Path, str | None], Iterator[pa.Table]]

READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
}


def find_reader(path: Path) -> tuple[str, str | None]:
    """(suffix among READERS, compression) by the file's name."""
    *_, inner, last = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    suffix, codec = (inner, CODECS[last]) if last in CODECS else (last, None)
    if suffix not in READERS or (codec and suffix == ".parquet"):
        raise Unreadable(
            f"its name must end in {' or '.join(READERS)}, the text forms also in {' or '.join(CODECS)}"
        )
    return suffix, codec


def stream_file(path: str, flag: str, readers: dict[str, Reader] = READERS) -> Iterator[pa.Table]:
    """The file as strings and nulls, part by part; UserError in one line where it is missing, damaged, ambiguous."""
    file = Path(path)
    try:
        if not file.is_file():
            raise Unreadable("that is a directory" if file.is_dir() else "there is no such file")
        if not file.stat().st_size:
            raise Unreadable("that file is empty")
        suffix, codec = find_reader(file)
        yield from readers[suffix](file, codec)
        return
    except Unreadable as error:
        reason = str(error)
    except (pa.ArrowException, OSError, MemoryError) as error:
        reason = f"it cannot be read: {error}"
    raise UserError(f"{flag} is {path}, but {reason[:300]}")


def read_file(path: str, flag: str) -> pa.Table:
    """The whole file as strings and nulls; UserError in one line where it cannot be had, or is empty."""
    table = pa.concat_tables([pa.table({}), *stream_file(path, flag)], promote_options="default")
    if not table.num_rows:
        raise UserError(f"{flag} is {path}, but it holds no rows")
    return table


def stream_texts(path: str, flag: str, column: str | None) -> Iterator[pa.ChunkedArray]:
    """The texts of a file without labels, part by part: the lines of .txt, else `column`, or the only column."""
    for table in stream_file(path, flag, READERS | {".txt": read_lines}):
        names = table.column_names
        if column not in names and len(names) != 1:
            raise UserError(
                f"{flag} is {path}, but has no column {column}; it has {', '.join(names)}"
            )
        yield table[column if column in names else names[0]]
