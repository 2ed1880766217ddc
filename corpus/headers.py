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

SHORT_NAME_WORDS = 3  # a name of more words is not short

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


def is_class_name(name: str, column: pa.ChunkedArray) -> bool:
    """Whether the name of a column is also a value of it, and the column has few values."""
    values = pc.count_distinct(column.drop_null()).as_py()
    return values <= min(MAX_VALUES, 0.5 * len(column)) and occurs_in(column, name)


def is_row_cell(name: str, column: pa.ChunkedArray) -> bool:
    """Whether the name of a column can hardly be one.

    It is also a text of its column, with a space in it; or it is a number above numbers.
    """
    if " " in name and not is_class_name(name, column) and occurs_in(column, name):
        return True
    values = pc.unique(column.drop_null())
    if not NUMBER.fullmatch(name) or not len(values):
        return False
    return all(NUMBER.fullmatch(value.strip()) for value in values.to_pylist())


def is_short_name(name: str, column: pa.ChunkedArray) -> bool:
    """Whether a name has one word, or up to SHORT_NAME_WORDS words and the cells below it many
    more: it is a name, and not a text."""
    words = len(name.split())
    if words <= 1:
        return True
    counts = pc.add(pc.count_substring(pc.utf8_trim_whitespace(column.drop_null()), " "), 1)
    usual_words = pc.approximate_median(counts).as_py() or 0
    return words <= SHORT_NAME_WORDS and usual_words > 2 * words


def repeated_header_problem(rows: FileRows) -> str:
    """Which lines of a file repeat its header, worded to follow `--flag is PATH, but`; or empty."""
    repeated = repeated_header_rows(rows.table)
    if not len(repeated):
        return ""
    place = name_rows(rows.numbers[repeated], rows.unit)
    if len(repeated) == 1:
        return f"{place} repeats the header; delete it"
    return f"{place} repeat the header; delete them"


def row_like_names(table: pa.Table) -> tuple[str | None, str | None]:
    """A name that shows that the header is a row, and one that does not suffice to show it.

    Names of classes, such as `spam` above spam and ham, show it only if the other names look like
    texts. A header with a usual name, such as `text`, is one, and so are the numbers 0, 1, 2 ...
    that pandas writes in place of names.
    """
    names = table.column_names
    has_usual_name = any(name.casefold() in USUAL_NAMES for name in names)
    if has_usual_name or names == [str(number) for number in range(len(names))]:
        return None, None
    class_name = None
    for name in names:
        if is_row_cell(name, table[name]):
            return name, None
        if class_name is None and is_class_name(name, table[name]):
            class_name = name
    others = [name for name in names if name != class_name]
    if class_name is None or all(is_short_name(name, table[name]) for name in others):
        return None, class_name
    return class_name, None


def is_long_name(name: str) -> bool:
    """Whether the name of a column is so long that it may be a text."""
    return len(name.split()) >= LONG_NAME_WORDS
