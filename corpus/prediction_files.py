"""Files of predictions: the input's columns and, after them, what the model predicts.

The format follows the suffix of the output. While it is written, an output is a file to which bytes
are only appended, so that it can be truncated and continued: lines of text, or for Parquet a
sequence of Arrow IPC streams, one per window of rows. It is converted when it is complete.
pyarrow is imported only for Parquet and compression.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from corpus.encodings import CODECS, format_of_name
from corpus.row_formats import NumberText
from runtime.command_line import is_utf8
from runtime.errors import UserError

OUTPUT_FORMATS = {  # suffix -> format
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}

STDOUT_FORMATS = {  # format of the input -> format of stdout
    "csv": "csv",
    "tsv": "tsv",
    "txt": "csv",
    "jsonl": "jsonl",
    "parquet": "csv",
}

LABEL_SEPARATOR = "|"  # between the labels of a multi-label prediction in a CSV

COPY_BYTES = 2**20


def find_output_format(path: Path) -> tuple[str, str | None]:
    """(format, compression) by the suffixes of an output's name; UserError if unsupported."""
    output_format, codec = format_of_name(path, OUTPUT_FORMATS)
    if output_format is None:
        raise UserError(
            f"--output is {path}, but must end in {', '.join(OUTPUT_FORMATS)}, the text formats "
            f"also in {' or '.join(CODECS)}"
        )
    return output_format, codec


@dataclass(frozen=True)
class PredictionColumns:
    """Names of the columns that a prediction adds; `scores` has one per label, or none."""

    label: str
    score: str
    scores: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names in their order."""
        return (self.label, self.score, *self.scores)


def free_name(name: str, existing: Iterable[str]) -> str:
    """`name`, or `name_2`, `name_3` ... if a column is already called that."""
    if name not in existing:
        return name
    number = 2
    while f"{name}_{number}" in existing:
        number += 1
    return f"{name}_{number}"


def prediction_columns(
    labels: Sequence[str], existing: Iterable[str], *, with_scores: bool
) -> PredictionColumns:
    """Columns that do not collide with those of the input, nor with one another."""
    wanted = ["predicted_label", "predicted_score"]
    if with_scores:
        wanted += [f"score_{label}" for label in labels]
    used = set(existing)
    names = []
    for name in wanted:
        names.append(free_name(name, used))
        used.add(names[-1])
    label, score, *scores = names
    return PredictionColumns(label, score, tuple(scores))


def as_text(value: Any) -> str | None:
    """A value of any format as text: `true`, dates in ISO format, lists and objects as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple, dict)):
        return dump_json(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if hasattr(value, "as_py"):  # a pyarrow.Scalar
        return value.cast("string").as_py()
    return str(value)


def json_value(value: Any) -> Any:
    """A value as the json module writes it; numbers too large for Python become texts."""
    if isinstance(value, NumberText):
        return json_number(value)
    if isinstance(value, dict):
        return {name: json_value(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN and no infinity
    return value


def json_number(text: str) -> int | float | str:
    """A number of JSON; the text itself if Python cannot represent it."""
    try:
        number = json.loads(text)
    except ValueError:  # more digits than sys.get_int_max_str_digits()
        return str(text)
    return str(text) if number in (math.inf, -math.inf) else number


def dump_json(value: Any) -> str:
    """A value as one line of JSON; what JSON has no type for is written as text."""
    return json.dumps(json_value(value), ensure_ascii=False, default=as_text)


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD in place of lone surrogates, which UTF-8 cannot encode."""
    if is_utf8(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def csv_line(cells: Iterable[str | None], delimiter: str) -> str:
    """A line of CSV that ends in a newline; cells are quoted if necessary, lone `\\r` included."""
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def join_labels(labels: list[str]) -> str:
    """Labels as a cell that training reads back: joined, `[]` for none, and as a JSON list if one
    has the separator in it."""
    if not labels or any(LABEL_SEPARATOR in label for label in labels):
        return dump_json(labels)
    return LABEL_SEPARATOR.join(labels)


class Writer(Protocol):
    """Encodes rows (values by column) as bytes to append to an output."""

    def header(self) -> bytes:
        """The bytes at the start of the output."""

    def encode(self, rows: list[dict[str, Any]]) -> bytes:
        """The bytes of a window of rows."""


class CsvWriter:
    """CSV or TSV in UTF-8; None is an empty cell, the labels of a row are joined."""

    def __init__(self, columns: Sequence[str], label_column: str, delimiter: str):
        self.columns = columns
        self.label_column = label_column
        self.delimiter = delimiter

    def header(self) -> bytes:
        """The line of column names."""
        return csv_line(self.columns, self.delimiter).encode()

    def encode(self, rows: list[dict[str, Any]]) -> bytes:
        """One line per row, or more if a cell has line breaks."""
        lines = []
        for row in rows:
            cells = [self.cell(name, row.get(name)) for name in self.columns]
            lines.append(csv_line(cells, self.delimiter))
        return replace_surrogates("".join(lines)).encode()

    def cell(self, name: str, value: Any) -> str | None:
        """A value as the text of a cell."""
        if name == self.label_column and isinstance(value, list):
            return join_labels(value)
        return as_text(value)


class JsonLinesWriter:
    """One JSON object per row, with the keys of that row."""

    def header(self) -> bytes:
        """Nothing."""
        return b""

    def encode(self, rows: list[dict[str, Any]]) -> bytes:
        """One line per row."""
        lines = [dump_json(row) + "\n" for row in rows]
        return replace_surrogates("".join(lines)).encode()


class ParquetWriter:
    """Arrow IPC streams of one batch each. Columns of a Parquet input keep their types."""

    def __init__(
        self, columns: Sequence[str], added: PredictionColumns, schema: Any, *, multi_label: bool
    ):
        import pyarrow as pa

        self.pa = pa
        types = dict.fromkeys(columns, pa.string())
        if schema is not None:
            types.update(zip(schema.names, schema.types, strict=True))
        self.text_columns = () if schema is not None else tuple(columns)
        types[added.label] = pa.list_(pa.string()) if multi_label else pa.string()
        for name in (added.score, *added.scores):
            types[name] = pa.float64()
        self.schema = pa.schema(list(types.items()))

    def header(self) -> bytes:
        """A stream without rows, so that an output without rows has its columns."""
        return self.encode([])

    def encode(self, rows: list[dict[str, Any]]) -> bytes:
        """A stream with one batch."""
        columns = []
        for field in self.schema:
            values = [row.get(field.name) for row in rows]
            if field.name in self.text_columns:
                values = [parquet_text(value) for value in values]
            columns.append(self.pa.array(values, field.type))
        sink = self.pa.BufferOutputStream()
        with self.pa.ipc.new_stream(sink, self.schema) as stream:
            stream.write_batch(self.pa.record_batch(columns, schema=self.schema))
        return sink.getvalue().to_pybytes()


def parquet_text(value: Any) -> str | None:
    """A value from a text format as a string that UTF-8 can encode."""
    text = as_text(value)
    return None if text is None else replace_surrogates(text)


def finish_parquet(partial: Path, finished: Path) -> None:
    """Convert the IPC streams of a partial output to a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pa.OSFile(str(partial)) as source:
        reader = pa.ipc.open_stream(source)
        with pq.ParquetWriter(finished, reader.schema, compression="zstd") as writer:
            while True:
                for batch in reader:
                    writer.write_batch(batch)
                if source.tell() >= source.size():
                    break
                reader = pa.ipc.open_stream(source)


def compress(partial: Path, finished: Path, codec: str) -> None:
    """Compress a partial output."""
    import pyarrow as pa

    with (
        open(partial, "rb") as source,
        pa.output_stream(str(finished), compression=codec) as target,
    ):
        shutil.copyfileobj(source, target, COPY_BYTES)


def finish_output(partial: Path, output: Path, output_format: str, codec: str | None) -> None:
    """Convert a completely written partial file and move it to `output`, atomically."""
    finished = partial
    if output_format == "parquet" or codec:
        finished = partial.with_name(f"{partial.name}.finished")
    if output_format == "parquet":
        finish_parquet(partial, finished)
    elif codec:
        compress(partial, finished, codec)
    finished.replace(output)
    partial.unlink(missing_ok=True)
