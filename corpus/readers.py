"""Read a file for training: an Arrow table in which every column is text.

Values are not interpreted and rows are not dropped: `NA` stays a text, only an empty CSV field is
null, and the first row with an error rejects the file. A nameless column N is called `column N`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from corpus.annotation_exports import check_annotation_export
from corpus.encodings import UnreadableFile
from corpus.input_files import (
    DEFAULT_READING,
    DELIMITED,
    ReadOptions,
    check_file,
    find_format,
    open_rows,
    reading_errors,
)
from corpus.parquet_rows import arrow_errors, bounded_batches, check_decoded_size, open_parquet
from corpus.prediction_files import as_text
from corpus.row_formats import Row, RowFile, clean_column_names, row_groups
from runtime.errors import UserError, escape_unprintable

log = logging.getLogger(__name__)

BATCH_ROWS = 10_000
BATCH_CHARS = 2**26

NAMED_ROWS = 5  # rows that a message names; it counts the others

BAR_DELAY_S = 1  # a file that is read sooner (some 10 MB of CSV) shows no progress bar


class FileRows(NamedTuple):
    """A file, or a part of it: columns of strings and nulls, and where its rows are.

    A list of plain values is JSON text in the table. Columns with other lists, or with objects, are
    not in the table of a file. `lists` and `nested` are such columns, each with the number of the
    first row that shows it.
    """

    table: pa.Table
    numbers: np.ndarray  # [rows] as in `Row.number`
    unit: str  # what `numbers` counts: lines, or the objects of a JSON array, or rows of Parquet
    path: str
    lists: Mapping[str, int] = MappingProxyType({})
    nested: Mapping[str, int] = MappingProxyType({})


@contextmanager
def progress_bar(path: str, total: int, unit: str) -> Iterator[tqdm]:
    """A bar on stderr that appears after BAR_DELAY_S."""
    name = Path(path).name
    with tqdm(
        total=total,
        unit=unit,
        unit_scale=True,
        desc=f"read {name}",
        leave=False,
        delay=BAR_DELAY_S,
    ) as bar:
        yield bar


def is_plain(value: Any) -> bool:
    """Whether a JSON value is neither a list nor an object."""
    return not isinstance(value, (list, dict))


def is_plain_list(value: Any) -> bool:
    """Whether a JSON value is a list of values that are neither lists nor objects."""
    return isinstance(value, list) and all(map(is_plain, value))


def choices_of(value: Any) -> Any:
    """The list of `{"choices": [...]}`, as Label Studio writes several labels; else the value."""
    if isinstance(value, dict) and value.keys() == {"choices"}:
        return value["choices"]
    return value


def check_surrogates(values: dict[str, str | None]) -> None:
    """Raise UnreadableFile if a key or a value has half a surrogate pair, which UTF-8 cannot
    encode."""
    texts = [*values, *filter(None, values.values())]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise UnreadableFile("has half of a surrogate pair") from error


def plain_values(row: Row) -> dict[str, str | None]:
    """The texts of a JSON object, its lists and objects as JSON; UnreadableFile if it has no
    keys."""
    if not row.values:
        raise UnreadableFile("is not a JSON object with keys and values")
    values = {name: as_text(choices_of(value)) for name, value in row.values.items()}
    check_surrogates(values)
    return values


def checked_values(row: Row, file: RowFile) -> dict[str, str | None]:
    """The texts of a row by column; UnreadableFile if it has an error."""
    try:
        if row.values is None:
            raise UnreadableFile(row.error)
        return row.values if file.columns else plain_values(row)
    except UnreadableFile as error:
        raise UnreadableFile(f"{file.unit} {row.number} {error}") from error


def add_nested_columns(rows: list[Row], lists: dict[str, int], nested: dict[str, int]) -> None:
    """Add the columns with lists of plain values to `lists`, and those with objects or other lists
    to `nested`, each with the number of the first such row."""
    for row in rows:
        for name, value in row.values.items():
            if is_plain(value):
                continue
            kind = lists if is_plain_list(choices_of(value)) else nested
            kind.setdefault(name, row.number)


def text_tables(
    path: str, flag: str, file_format: str | None, options: ReadOptions
) -> Iterator[FileRows]:
    """A text file in parts; keys of JSON become columns when they occur."""
    with (
        open_rows(path, flag, file_format, options=options) as file,
        progress_bar(path, file.total, "B") as bar,
    ):
        names = dict.fromkeys(file.columns)
        lists: dict[str, int] = {}
        nested: dict[str, int] = {}
        for rows in row_groups(file.rows, BATCH_ROWS, BATCH_CHARS):
            bar.update(file.position() - bar.n)
            with reading_errors(flag, path):
                values = [checked_values(row, file) for row in rows]
            if not file.columns:
                add_nested_columns(rows, lists, nested)
                for row_values in values:
                    names.update(dict.fromkeys(row_values))
            columns = {}
            for name in names:
                texts = [row_values.get(name) for row_values in values]
                columns[name] = pa.array(texts, pa.string())
            numbers = np.array([row.number for row in rows])
            yield FileRows(pa.table(columns), numbers, file.unit, path, lists, nested)


def is_list_of_texts(kind: pa.DataType) -> bool:
    """Whether a type is a list of values that can be cast to text."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_list = is_list or pa.types.is_fixed_size_list(kind)
    return is_list and not pa.types.is_nested(kind.value_type)


def casts_to_text(path: Path, file: pq.ParquetFile, field: pa.Field, max_bytes: int) -> bool:
    """Whether every value of a column can be cast to text, judged by its type, or by its values
    if it is binary. A list of plain values becomes JSON."""
    if pa.types.is_nested(field.type):
        return is_list_of_texts(field.type)
    is_binary = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    try:
        if not is_binary:
            pa.nulls(0, field.type).cast(pa.string())
            return True
        for batch in bounded_batches(path, file, max_bytes, [field.name]):
            batch[0].cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def column_as_text(column: pa.Array) -> pa.Array:
    """A column of Parquet as strings; lists as JSON."""
    if pa.types.is_nested(column.type):
        return pa.array([as_text(value) for value in column.to_pylist()], pa.string())
    return column.cast(pa.string())


def parquet_tables(path: str, max_bytes: int) -> Iterator[FileRows]:
    """The columns of a Parquet file that can be cast to text, and the names of the others."""
    check_file(Path(path))
    file = open_parquet(Path(path))
    check_decoded_size(Path(path), file, max_bytes)
    names = clean_column_names(file.schema_arrow.names)
    text_columns = {}
    lists = {}
    nested = {}
    for name, field in zip(names, file.schema_arrow, strict=True):
        if casts_to_text(Path(path), file, field, max_bytes):
            text_columns[field.name] = name
            if pa.types.is_nested(field.type):
                lists[name] = 1
        else:
            nested[name] = 1
    if not text_columns:
        raise UnreadableFile(f"its columns have no plain values: {', '.join(names)}")
    with progress_bar(path, file.metadata.num_rows, "rows") as bar:
        first_number = 1
        for batch in bounded_batches(Path(path), file, max_bytes, list(text_columns)):
            bar.update(batch.num_rows)
            columns = {}
            for field_name in batch.schema.names:
                columns[text_columns[field_name]] = column_as_text(batch[field_name])
            table = pa.table(columns)
            table.validate(full=True)
            numbers = np.arange(first_number, first_number + len(table))
            first_number += len(table)
            yield FileRows(table, numbers, "row", path, lists, nested)


def is_delimited(path: str) -> bool:
    """Whether a file for training is CSV or TSV, as .txt files are."""
    file_format, _ = find_format(Path(path))
    return file_format in (*DELIMITED, "txt")


def stream_parts(
    path: str, flag: str, options: ReadOptions, *, txt_is_table: bool
) -> Iterator[FileRows]:
    """The parts of a file; one-line UserError if it cannot be read.

    A .txt file is a CSV if `txt_is_table`, else one text per line.
    """
    with reading_errors(flag, path):
        check_file(Path(path))
        file_format, _ = find_format(Path(path))
    if file_format == "txt" and txt_is_table:
        file_format = "csv"
    if file_format not in (*DELIMITED, "txt") and not options.has_header:
        raise UserError(f"--no_header is given, but {flag} is {path}, which names its columns")
    if file_format == "parquet":
        with reading_errors(flag, path), arrow_errors():
            yield from parquet_tables(path, options.max_bytes)
    else:
        yield from text_tables(path, flag, file_format, options)


def nested_reason(rows: FileRows, name: str) -> str:
    """Why a column with lists or objects cannot have texts, worded to follow `but`."""
    if rows.unit == "row":  # of Parquet, whose columns have types
        return f"its column {name} has no plain values"
    number = {**rows.lists, **rows.nested}[name]
    return f"{rows.unit} {number} has a list or an object in {name}, which must have plain values"


def read_rows(path: str, flag: str, options: ReadOptions = DEFAULT_READING) -> FileRows:
    """A file in one piece; one-line UserError if it cannot be read or has no rows.

    A .txt file is read as a CSV. Columns with objects are left out.
    """
    parts = list(stream_parts(path, flag, options, txt_is_table=True))
    tables = [pa.table({}), *(part.table for part in parts)]
    table = pa.concat_tables(tables, promote_options="default")
    if not table.num_rows:
        raise UserError(f"{flag} is {path}, but it has no rows")
    numbers = np.concatenate([part.numbers for part in parts])
    rows = parts[0]._replace(table=table, numbers=numbers)
    check_annotation_export(rows, flag)
    plain_names = [name for name in table.column_names if name not in rows.nested]
    if not plain_names:
        raise UserError(f"{flag} is {path}, but {nested_reason(rows, table.column_names[0])}")
    return rows._replace(table=table.select(plain_names))


def read_file(path: str, flag: str) -> pa.Table:
    """The columns of a file as strings and nulls; errors as in `read_rows`."""
    return read_rows(path, flag).table


def stream_texts(
    path: str, flag: str, column: str | None, options: ReadOptions = DEFAULT_READING
) -> Iterator[pa.ChunkedArray]:
    """The texts of an unlabeled file in chunks: the lines of .txt, else `column`, or the only one.

    one-line UserError if the file cannot be read or has no such column.
    """
    has_named_columns = options.has_header and find_format(Path(path))[0] in DELIMITED
    for number, part in enumerate(stream_parts(path, flag, options, txt_is_table=False)):
        names = part.table.column_names
        if column in part.lists or column in part.nested:
            raise UserError(f"{flag} is {path}, but {nested_reason(part, column)}")
        if column not in names and len(names) != 1:
            raise UserError(
                f"{flag} is {path}, but has no column {column}; it has {', '.join(names)}"
            )
        if number == 0 and column not in names and has_named_columns:
            log.warning(
                "note: %s: the first line, %s, is read as the name of the only column",
                *(escape_unprintable(path), escape_unprintable(repr(names[0]))),
            )
        yield part.table[column if column in names else names[0]]


def name_rows(numbers: np.ndarray, unit: str) -> str:
    """Rows in words: `line 7`, or `lines 2, 4, 6, 8, 10 and 3 more`."""
    listed = ", ".join(str(number) for number in numbers[:NAMED_ROWS])
    others = len(numbers) - NAMED_ROWS
    plural = "" if len(numbers) == 1 else "s"
    return f"{unit}{plural} {listed}" + (f" and {others} more" if others > 0 else "")


class RowPlaces:
    """Where the rows of one or several files are, for messages, and which columns are not plain."""

    def __init__(self, files: Sequence[FileRows]):
        """`files` in the order in which they are joined; their tables are not kept."""
        self.files = [rows._replace(table=pa.table({})) for rows in files]

    @property
    def lists(self) -> dict[str, FileRows]:
        """The columns with lists of plain values, and a file that has such a list."""
        return {name: rows for rows in self.files for name in rows.lists}

    @property
    def nested(self) -> dict[str, FileRows]:
        """The columns with objects or other lists, and a file that has such a value."""
        return {name: rows for rows in self.files for name in rows.nested}

    def name(self, ids: np.ndarray) -> str:
        """The rows with these ids (from 0) in words, with their files if there are several."""
        names = []
        first_id = 0
        for rows in self.files:
            numbers = rows.numbers
            is_in_file = (ids >= first_id) & (ids < first_id + len(numbers))
            if is_in_file.any():
                name = name_rows(numbers[ids[is_in_file] - first_id], rows.unit)
                names.append(f"{name} of {rows.path}" if len(self.files) > 1 else name)
            first_id += len(numbers)
        return " and ".join(names)
