"""The rows of a Parquet file, streamed. Importing this module does not import pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.encodings import UnreadableFile
from corpus.row_formats import Row, RowFile, clean_column_names

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 4096


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


def column_values(column: pa.Array) -> list[Any]:
    """The values of a column as Python objects.

    Nanoseconds stay Arrow scalars: Python has no type for them.
    """
    if "[ns" in str(column.type):
        return list(column)
    return column.to_pylist()


def parquet_rows(file: pq.ParquetFile, names: list[str]) -> Iterator[Row]:
    """The rows of an open file; columns are called `names`."""
    number = 0
    with arrow_errors():
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            batch.validate(full=True)
            size = batch.nbytes // max(1, batch.num_rows)
            columns = [column_values(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                number += 1
                yield Row(number, size, dict(zip(names, values, strict=True)))


def open_parquet_rows(path: Path) -> RowFile:
    """The rows of a Parquet file with all of its columns."""
    with arrow_errors():
        file = open_parquet(path)
    names = clean_column_names(file.schema_arrow.names)
    schema = file.schema_arrow.remove_metadata()
    for index, name in enumerate(names):
        schema = schema.set(index, schema.field(index).with_name(name))
    return RowFile(
        rows=parquet_rows(file, names),
        columns=tuple(names),
        total=file.metadata.num_rows,
        unit="row",
        schema=schema,
    )
