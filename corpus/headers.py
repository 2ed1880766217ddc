"""Whether the first line of a delimited file is a header, or a row."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus.readers import FileRows, name_rows

# names of columns that are hardly ever labels or texts
TEXT_NAMES = {"text", "texts", "comment", "comments", "tweet", "content", "sentence", "review"}
LABEL_NAMES = {"label", "labels", "class", "category", "target"}
USUAL_NAMES = TEXT_NAMES | LABEL_NAMES | {"id", "index", "message", "body", "title", "split"}

MAX_VALUES = 50  # a column with more distinct values contains texts or numbers, not labels

LONG_NAME_WORDS = 6  # a name of so many words may be a text

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")


def occurs_in(column: pa.ChunkedArray, value: str) -> bool:
    """Whether a cell of a column is `value`, white space around it ignored."""
    is_equal = pc.equal(pc.utf8_trim_whitespace(column), value)
    return bool(pc.any(is_equal).as_py())


def repeated_header_rows(table: pa.Table) -> np.ndarray:
    """Positions of the rows whose cells are the names of the columns."""
    is_repeated = np.ones(len(table), dtype=bool)
    for name in table.column_names:
        is_equal = pc.equal(pc.utf8_trim_whitespace(table[name]), name)
        is_repeated &= pc.fill_null(is_equal, False).to_numpy()
    return np.flatnonzero(is_repeated)


def is_row_cell(name: str, column: pa.ChunkedArray) -> bool:
    """Whether the name of a column looks like one of its cells.

    It does if it is a value of a column with few values; or a value with a space in it; or a number
    above a column of numbers.
    """
    values = pc.unique(column.drop_null())
    has_few_values = len(values) <= min(MAX_VALUES, 0.5 * len(column))
    if (has_few_values or " " in name) and occurs_in(column, name):
        return True
    if not NUMBER.fullmatch(name) or not len(values):
        return False
    return all(NUMBER.fullmatch(value.strip()) for value in values.to_pylist())


def header_problem(rows: FileRows) -> str:
    """Why the header of a file cannot be one, worded to follow `--flag is PATH, but`; else empty.

    A header with a usual name, such as `text`, is one, and so are the numbers 0, 1, 2 ... that
    pandas writes in place of names.
    """
    names = rows.table.column_names
    repeated = repeated_header_rows(rows.table)
    if len(repeated):
        place = name_rows(rows.numbers[repeated], rows.unit)
        if len(repeated) == 1:
            return f"{place} repeats the header; delete it"
        return f"{place} repeat the header; delete them"
    has_usual_name = any(name.casefold() in USUAL_NAMES for name in names)
    if has_usual_name or names == [str(number) for number in range(len(names))]:
        return ""
    for name in names:
        if is_row_cell(name, rows.table[name]):
            return (
                f"its first line looks like a row: {name!r} is like the cells below it; give "
                "--no_header, or name the columns in the first line"
            )
    return ""


def is_long_name(name: str) -> bool:
    """Whether the name of a column is so long that it may be a text."""
    return len(name.split()) >= LONG_NAME_WORDS
