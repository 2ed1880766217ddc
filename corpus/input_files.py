"""Open a file of rows in any supported format, compression and encoding.

Training and inference both read files through `open_rows`, so a file that trained a model can be
labeled by it. Training stops at the first row with an error (`corpus.readers`); inference reports
it and continues (`engines.file_scoring`).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from corpus.encodings import (
    CODECS,
    OpenText,
    TextFile,
    UnreadableFile,
    detect_encoding,
    format_of_name,
    open_text,
)
from corpus.parquet_rows import open_parquet_rows
from corpus.row_formats import (
    SAMPLE_CHARS,
    Row,
    RowFile,
    all_keys,
    line_rows,
    long_csv_cells,
    open_csv_rows,
    open_json_rows,
)
from runtime.errors import UserError

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

FIRST_OBJECTS = 100  # of JSON Lines on stdin; their keys are its columns


def find_format(path: Path) -> tuple[str, str | None]:
    """(format, compression) by the suffixes of a file's name; UnreadableFile if unsupported."""
    file_format, codec = format_of_name(path, FORMATS)
    if file_format is None:
        raise UnreadableFile(
            f"its name must end in {' or '.join(FORMATS)}, the text formats also in "
            f"{' or '.join(CODECS)}"
        )
    return file_format, codec


def check_file(path: Path) -> None:
    """Raise UnreadableFile if there is no file, or if it is empty."""
    if path.is_dir():
        raise UnreadableFile("that is a directory")
    if not path.is_file():
        raise UnreadableFile("there is no such file")
    if not path.stat().st_size:
        raise UnreadableFile("that file is empty")


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


def open_text_rows(text: OpenText, file_format: str, sample: str | None) -> RowFile:
    """The rows of an open text; `sample` is its beginning, for the delimiter of a CSV."""
    if file_format in DELIMITED:
        return open_csv_rows(text, sample)
    if file_format == "jsonl":
        return open_json_rows(text)
    return RowFile(line_rows(text.lines), ("text",), text.position)


def newline_mode(file_format: str) -> str | None:
    """`newline` of Python's `open`: the csv module needs the line ends as they are."""
    return "" if file_format in DELIMITED else None


def open_stdin_rows(file_format: str) -> RowFile:
    """The rows of stdin, which is read once and as UTF-8; invalid bytes become lone surrogates.

    The columns of JSON Lines are the keys of its first objects.
    """
    lines = io.TextIOWrapper(
        sys.stdin.buffer, "utf-8-sig", "surrogateescape", newline_mode(file_format)
    )
    file = open_text_rows(OpenText(lines, lambda: 0), file_format, sample=None)
    if file_format != "jsonl":
        return file
    first_rows = list(islice(file.rows, FIRST_OBJECTS))
    return replace(file, rows=chain(first_rows, file.rows), columns=tuple(all_keys(first_rows)))


@contextmanager
def open_file_rows(
    path: Path, file_format: str, codec: str | None, *, keep_invalid: bool, find_keys: bool
) -> Iterator[RowFile]:
    """The rows of a file; UnreadableFile or OSError if it is damaged."""
    if file_format == "parquet":
        yield open_parquet_rows(path)
        return
    text_file = detect_encoding(TextFile(path, codec), keep_invalid=keep_invalid)
    newline = newline_mode(file_format)
    sample = None
    keys: tuple[str, ...] = ()
    if file_format in DELIMITED:
        with open_text(text_file, newline) as text:
            sample = text.lines.read(SAMPLE_CHARS)
    elif file_format == "jsonl" and find_keys:
        with open_text(text_file, newline) as text:
            keys = tuple(all_keys(open_json_rows(text).rows))
    with open_text(text_file, newline) as text:
        file = open_text_rows(text, file_format, sample)
        yield replace(file, columns=file.columns or keys, total=path.stat().st_size)


@contextmanager
def open_rows(
    path: str,
    flag: str,
    file_format: str | None = None,
    *,
    keep_invalid: bool = False,
    find_keys: bool = False,
) -> Iterator[RowFile]:
    """The rows of a file, or of stdin if `path` is `-`. The format follows the suffix if not given.

    `keep_invalid`: decode the invalid bytes of damaged UTF-8 as lone surrogates. `find_keys`: read
    JSON twice, first for its columns. One-line UserError if the file is missing or damaged.
    """
    with ExitStack() as stack:
        with reading_errors(flag, path):
            stack.enter_context(long_csv_cells())
            if path == STDIN:
                file = open_stdin_rows(file_format)
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
                    )
                )
        yield replace(file, rows=guarded(file.rows, flag, path))
