"""The rows of a Parquet file, streamed. Importing this module does not import pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.encodings import UnreadableFile, size_error
from corpus.row_formats import Row, RowFile, clean_column_names

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 4096
BATCH_BYTES = 2**26  # a batch has fewer rows if they may be larger

DICTIONARY_ENCODINGS = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}

NUMBER_BYTES = 8  # of a value in memory, at least


@contextmanager
def arrow_errors() -> Iterator[None]:
    """Convert pyarrow errors raised in the block to UnreadableFile."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise UnreadableFile(f"it cannot be read: {error}") from error


def open_parquet(path: Path) -> pq.ParquetFile:
    """An open Parquet file, which verifies checksums."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)


def is_texts(kind: pa.DataType) -> bool:
    """Whether the values of a column are strings or bytes."""
    import pyarrow as pa

    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_string or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def dictionary_columns(file: pq.ParquetFile) -> list[str]:
    """The columns of texts that have a dictionary in the file."""
    import pyarrow as pa

    encoded = set()
    for group in range(file.num_row_groups):
        for index in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(index)
            if DICTIONARY_ENCODINGS & set(column.encodings):
                encoded.add(column.path_in_schema)
    names = []
    for field in file.schema_arrow:
        may_be_texts = is_texts(field.type) or pa.types.is_dictionary(field.type)
        if may_be_texts and field.name in encoded:
            names.append(field.name)
    return names


def largest_chunk(file: pq.ParquetFile, name: str) -> int:
    """Bytes of the largest part of a column as the metadata states it; no text in it is longer."""
    largest = 0
    for group in range(file.num_row_groups):
        for index in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(index)
            if column.path_in_schema == name:
                largest = max(largest, column.total_uncompressed_size)
    return largest


def largest_column_value(path: Path, file: pq.ParquetFile, name: str) -> int:
    """Bytes of the longest text in the dictionaries of a column.

    If pyarrow cannot read the dictionary of an encoding, that is bounded by the metadata.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    largest = 0
    try:
        with pq.ParquetFile(path, read_dictionary=[name]) as dictionaries:
            for group in range(file.num_row_groups):
                batches = dictionaries.iter_batches(1, row_groups=[group], columns=[name])
                first_batch = next(batches, None)
                if first_batch is None:
                    continue
                column = first_batch.column(0)
                if pa.types.is_dictionary(column.type) and is_texts(column.type.value_type):
                    size = pc.max(pc.binary_length(column.dictionary)).as_py()
                    largest = max(largest, size or 0)
    except (pa.ArrowNotImplementedError, OSError):  # a damaged file is refused when it is read
        return largest_chunk(file, name)
    return largest


def largest_dictionary_value(path: Path, file: pq.ParquetFile) -> int:
    """Bytes of the longest text in the dictionaries of a file, which its rows refer to."""
    sizes = [largest_column_value(path, file, name) for name in dictionary_columns(file)]
    return max(sizes, default=0)


def decoded_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of a batch in memory, with the texts of a dictionary counted once per row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    size = 0
    for column in batch.columns:
        size += column.nbytes
        if pa.types.is_dictionary(column.type) and is_texts(column.dictionary.type):
            lengths = pc.binary_length(column.dictionary)
            size += pc.sum(lengths.take(column.indices)).as_py() or 0
    return size


def batch_rows(path: Path, file: pq.ParquetFile) -> int:
    """Rows of a batch that has at most about BATCH_BYTES in memory."""
    largest = largest_dictionary_value(path, file)
    for group in range(file.num_row_groups):
        for index in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(index)
            mean = column.total_uncompressed_size // max(1, column.num_values)
            if "DELTA_BYTE_ARRAY" in column.encodings:  # a value may repeat the previous one
                mean = column.total_uncompressed_size
            largest = max(largest, mean)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))


def check_size(file: pq.ParquetFile, max_bytes: int) -> None:
    """UnreadableFile if the metadata of a file states more than `max_bytes` in memory."""
    size = 0
    for group in range(file.num_row_groups):
        for index in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(index)
            size += max(column.total_uncompressed_size, column.num_values * NUMBER_BYTES)
    if size > max_bytes:
        raise size_error(max_bytes)


def bounded_batches(
    path: Path, file: pq.ParquetFile, max_bytes: int, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The batches of a file; UnreadableFile as soon as they had more than `max_bytes` in memory.

    A few kilobytes of Parquet can be gigabytes of rows, because rows refer to a dictionary.
    """
    size = 0
    for batch in file.iter_batches(batch_rows(path, file), columns=columns):
        size += decoded_bytes(batch)
        if size > max_bytes:
            raise size_error(max_bytes)
        yield batch


def check_decoded_size(path: Path, file: pq.ParquetFile, max_bytes: int) -> None:
    """UnreadableFile if a file has more than `max_bytes` in memory; reads it only if it might."""
    check_size(file, max_bytes)
    values = file.metadata.num_rows * file.metadata.num_columns
    if values * largest_dictionary_value(path, file) > max_bytes:
        for _ in bounded_batches(path, file, max_bytes):
            pass


def column_values(column: pa.Array) -> list[Any]:
    """The values of a column as Python objects.

    Nanoseconds stay Arrow scalars: Python has no type for them.
    """
    if "[ns" in str(column.type):
        return list(column)
    return column.to_pylist()


def parquet_rows(
    path: Path, file: pq.ParquetFile, names: list[str], max_bytes: int
) -> Iterator[Row]:
    """The rows of an open file; columns are called `names`."""
    number = 0
    with arrow_errors():
        for batch in bounded_batches(path, file, max_bytes):
            batch.validate(full=True)
            size = batch.nbytes // max(1, batch.num_rows)
            columns = [column_values(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                number += 1
                yield Row(number, size, dict(zip(names, values, strict=True)))


def open_parquet_rows(path: Path, max_bytes: int) -> RowFile:
    """The rows of a Parquet file with all of its columns; UnreadableFile above `max_bytes`."""
    with arrow_errors():
        file = open_parquet(path)
        check_decoded_size(path, file, max_bytes)
    names = clean_column_names(file.schema_arrow.names)
    schema = file.schema_arrow.remove_metadata()
    for index, name in enumerate(names):
        schema = schema.set(index, schema.field(index).with_name(name))
    return RowFile(
        rows=parquet_rows(path, file, names, max_bytes),
        columns=tuple(names),
        total=file.metadata.num_rows,
        unit="row",
        schema=schema,
    )
