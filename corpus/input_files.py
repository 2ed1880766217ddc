"""Open a file of rows in any supported format, compression and encoding.

Training and inference both read files through `open_rows`, so a file that trained a model can be
labeled by it. Training stops at the first row with an error (`corpus.readers`); inference reports
it and continues (`engines.file_scoring`).
"""

from __future__ import annotations

import csv
import io
import logging
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from compression_config import MAX_INPUT_GB
from corpus.encodings import (
    BYTES_PER_GB,
    CODECS,
    OpenText,
    TextFile,
    UnreadableFile,
    detect_encoding,
    format_of_name,
    guess_text_file,
    open_text,
)
from corpus.parquet_rows import open_parquet_rows
from corpus.quoting import QuoteEvidence, detect_quoting
from corpus.row_formats import (
    DELIMITERS,
    SAMPLE_CHARS,
    CsvLayout,
    Row,
    RowFile,
    RowLines,
    all_keys,
    detect_layout,
    line_rows,
    long_csv_cells,
    open_csv_rows,
    open_json_rows,
    read_first_record,
)
from runtime.command_line import unreadable_reason
from runtime.errors import UserError, escape_unprintable

log = logging.getLogger(__name__)

FORMATS = {  # suffix -> format
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}

DELIMITED = ("csv", "tsv")

STDIN = "-"  # as the path of an input
STDIN_PATHS = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")

FIRST_OBJECTS = 100  # of JSON Lines on stdin; their keys are its columns


class ReadOptions(NamedTuple):
    """How the files of a run are read."""

    has_header: bool = True  # of delimited files; without one, columns are column_1, column_2 ...
    max_bytes: int = int(MAX_INPUT_GB * BYTES_PER_GB)  # of a compressed file or Parquet in memory


DEFAULT_READING = ReadOptions()


def find_format(path: Path) -> tuple[str, str | None]:
    """(format, compression) by the suffixes of a file's name; UnreadableFile if unsupported."""
    file_format, codec = format_of_name(path, FORMATS)
    if file_format is None:
        raise UnreadableFile(
            f"its name must end in {' or '.join(FORMATS)}, the text formats also in "
            f"{' or '.join(CODECS)}"
        )
    return file_format, codec


def is_stream(path: str) -> bool:
    """Whether a path is stdin, a named pipe or a device, which can be read only once."""
    if path == STDIN:
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def check_file(path: Path) -> None:
    """Raise UnreadableFile if a path is not a file that can be read, or if the file is empty."""
    reason = unreadable_reason(path)
    if reason:
        raise UnreadableFile(reason)


@contextmanager
def reading_errors(flag: str, path: str) -> Iterator[None]:
    """Convert errors that occur while reading a file to a one-line UserError."""
    try:
        yield
        return
    except UnreadableFile as error:
        reason = str(error)
    except (OSError, MemoryError) as error:
        reason = f"it cannot be read: {error}"
    raise UserError(f"{flag} is {path}, but {reason[:300]}")


def guarded(rows: Iterator[Row], flag: str, path: str) -> Iterator[Row]:
    """The same rows; errors while reading them are raised as UserError."""
    with reading_errors(flag, path):
        yield from rows


def newline_mode(file_format: str) -> str | None:
    """`newline` of Python's `open`: the csv module needs the line ends as they are."""
    return "" if file_format in DELIMITED else None


def open_stream_rows(stream: BinaryIO, file_format: str, *, has_header: bool) -> RowFile:
    """The rows of a stream, which is read once and as UTF-8; invalid bytes become lone surrogates.

    The columns of JSON Lines are the keys of its first objects.
    """
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline_mode(file_format))

    def position() -> int:
        return 0

    if file_format in DELIMITED:
        lines = RowLines(text)
        is_tsv = file_format == "tsv"
        record = read_first_record(lines, "\t" if is_tsv else DELIMITERS)
        layout = detect_layout(record, is_cut=False, has_header=has_header, prefers_tabs=is_tsv)
        return open_csv_rows(lines, layout, position, QuoteEvidence(layout))
    if file_format == "jsonl":
        file = open_json_rows(OpenText(text, position))
        first_rows = list(islice(file.rows, FIRST_OBJECTS))
        columns = tuple(all_keys(first_rows))
        return replace(file, rows=chain(first_rows, file.rows), columns=columns)
    return RowFile(line_rows(text), ("text",), position)


def table_columns(path: str) -> tuple[str, ...]:
    """The columns of a delimited file, judged by its beginning; empty if it cannot be read."""
    text_file = TextFile(Path(path), CODECS.get(Path(path).suffix.lower()))
    try:
        with long_csv_cells(), open_text(guess_text_file(text_file), newline_mode("csv")) as text:
            sample = text.lines.read(SAMPLE_CHARS)
        layout = detect_layout(sample, is_cut=len(sample) == SAMPLE_CHARS, has_header=True)
    except (UnreadableFile, OSError, csv.Error):
        return ()
    return layout.columns


def read_layout(file: TextFile, file_format: str, *, has_header: bool) -> CsvLayout:
    """How a delimited file is read, judged by all of it; a note if its quotes are part of texts."""
    newline = newline_mode("csv")
    with open_text(file, newline) as text:
        sample = text.lines.read(SAMPLE_CHARS)
    layout = detect_layout(
        sample,
        is_cut=len(sample) == SAMPLE_CHARS,
        has_header=has_header,
        prefers_tabs=file_format == "tsv",
    )
    with open_text(file, newline) as text:
        is_quoted, note = detect_quoting(RowLines(text.lines), layout)
    if note:
        log.warning("note: %s %s", escape_unprintable(str(file.path)), note)
    return layout._replace(is_quoted=is_quoted)


@contextmanager
def open_file_rows(
    path: Path,
    file_format: str,
    codec: str | None,
    *,
    keep_invalid: bool,
    find_keys: bool,
    options: ReadOptions,
) -> Iterator[RowFile]:
    """The rows of a file; UnreadableFile or OSError if it is damaged."""
    if file_format == "parquet":
        yield open_parquet_rows(path, options.max_bytes)
        return
    text_file = TextFile(path, codec, options.max_bytes)
    text_file = detect_encoding(text_file, keep_invalid=keep_invalid)
    newline = newline_mode(file_format)
    keys: tuple[str, ...] = ()
    if file_format in DELIMITED:
        layout = read_layout(text_file, file_format, has_header=options.has_header)
    elif file_format == "jsonl" and find_keys:
        with open_text(text_file, newline) as text:
            keys = tuple(all_keys(open_json_rows(text).rows))
    with open_text(text_file, newline) as text:
        if file_format in DELIMITED:
            file = open_csv_rows(RowLines(text.lines), layout, text.position)
        elif file_format == "jsonl":
            file = replace(open_json_rows(text), columns=keys)
        else:
            file = RowFile(line_rows(text.lines), ("text",), text.position)
        yield replace(file, total=path.stat().st_size)


@contextmanager
def open_rows(
    path: str,
    flag: str,
    file_format: str | None = None,
    *,
    keep_invalid: bool = False,
    find_keys: bool = False,
    options: ReadOptions = DEFAULT_READING,
) -> Iterator[RowFile]:
    """The rows of a file, or of a stream (stdin if `path` is `-`). The format follows the suffix of
    a file if not given.

    `keep_invalid`: decode the invalid bytes of damaged UTF-8 as lone surrogates. `find_keys`: read
    JSON twice, first for its columns. One-line UserError if the file is missing or damaged.
    """
    with ExitStack() as stack:
        with reading_errors(flag, path):
            stack.enter_context(long_csv_cells())
            if is_stream(path):
                stream = sys.stdin.buffer
                if path != STDIN:
                    stream = stack.enter_context(open(path, "rb"))
                file = open_stream_rows(stream, file_format, has_header=options.has_header)
            else:
                check_file(Path(path))
                codec = CODECS.get(Path(path).suffix.lower())
                if file_format is None:
                    file_format, codec = find_format(Path(path))
                file = stack.enter_context(
                    open_file_rows(
                        Path(path),
                        file_format,
                        codec,
                        keep_invalid=keep_invalid,
                        find_keys=find_keys,
                        options=options,
                    )
                )
        yield replace(file, rows=guarded(file.rows, flag, path))
