"""Which columns of a file have the texts and the labels.

A column is chosen only if the choice is unambiguous; otherwise the user must name it.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus.label_cells import MAX_LABELS, NO_SEPARATOR, CellFormat, cell_labels, detect_format
from corpus.labels import MAX_CLASSES, WHOLE_NUMBER, is_decimal, is_flag, note, read_label_column
from corpus.values import encode_values
from runtime.errors import UserError
from runtime.suggestions import did_you_mean

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

LABEL_WORDS = {  # a column with one of these words in its name is meant as a label
    *("label", "labels", "class", "classes", "category", "categories", "target", "targets"),
    *("intent", "intents", "topic", "topics", "emotion", "emotions", "sentiment"),
}

MAX_DISTINCT_CELLS = 50_000  # of a column of label lists or of labels with a separator

ROWS_PER_CLASS = 10  # on average, of more than MAX_CLASSES classes in a column of any name


def distinct_values(column: pa.ChunkedArray) -> list[str]:
    """The distinct values of a column, without null."""
    return pc.unique(column.drop_null()).to_pylist()


def value_ids(column: pa.ChunkedArray) -> np.ndarray:
    """An id [rows] of each row's value: equal values have equal ids; MISSING for null."""
    ids, _ = encode_values(column)
    return ids


def is_mostly_digits(value: str) -> bool:
    """Whether a cell has more digits than letters and marks, as numbers and dates do."""
    kinds = [unicodedata.category(character)[0] for character in value]
    return kinds.count("N") > kinds.count("L") + kinds.count("M")


def is_text(column: pa.ChunkedArray) -> bool:
    """Whether most values of a column are distinct and most are not numbers or dates."""
    present = column.drop_null()
    if not pc.count_distinct(present).as_py() > 0.5 * len(present):
        return False
    sample = present[:1000].to_pylist()
    numeric = [value for value in sample if is_mostly_digits(value)]
    return len(numeric) < 0.5 * len(sample)


def is_label(column: pa.ChunkedArray) -> bool:
    """Whether a column has 2 to MAX_CLASSES values, each used at least twice on average."""
    present = column.drop_null()
    if pc.count_distinct(present[:10_000]).as_py() > MAX_CLASSES:
        return False
    return 2 <= pc.count_distinct(present).as_py() <= min(MAX_CLASSES, 0.5 * len(present))


def has_label_name(name: str) -> bool:
    """Whether the name of a column says that it has labels, as `label_text` and `Intent` do."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold())
    return not LABEL_WORDS.isdisjoint(words)


def is_large_label(column: pa.ChunkedArray, name: str) -> bool:
    """Whether a column has MAX_CLASSES to MAX_LABELS values that are plainly classes.

    Each is used at least twice on average if the name says that they are labels. In a column of
    any other name, each is used ROWS_PER_CLASS times, and not all are numbers. Numbers must be
    whole ones.
    """
    present = column.drop_null()
    count = pc.count_distinct(present).as_py()
    is_named = has_label_name(name)
    usual_rows = 2 if is_named else ROWS_PER_CLASS
    if not MAX_CLASSES < count <= min(MAX_LABELS, len(present) / usual_rows):
        return False
    values = [value.strip() for value in distinct_values(column)]
    if all(map(is_decimal, values)):
        return is_named and all(map(WHOLE_NUMBER.fullmatch, values))
    return True


def multi_label_format(column: pa.ChunkedArray, separator: str | None) -> CellFormat | None:
    """How the cells of a column with several labels per cell are read; None if it has none.

    It has 2 to MAX_LABELS distinct labels, each used at least twice on average.
    """
    present = column.drop_null()
    if separator == NO_SEPARATOR or pc.count_distinct(present).as_py() > MAX_DISTINCT_CELLS:
        return None
    cells = [cell.strip() for cell in distinct_values(column)]
    cell_format = detect_format(cells)
    if not cell_format.has_several_labels:
        return None
    labels: set[str] = set()
    for cell in cells:
        labels.update(cell_labels(cell, cell_format))
        if len(labels) > MAX_LABELS:
            return None
    return cell_format if 2 <= len(labels) <= 0.5 * len(present) else None


def is_binary(column: pa.ChunkedArray) -> bool:
    """Whether a column contains only 0 and 1, or false and true."""
    return all(is_flag(label) for label in read_label_column(column, "").labels)


def has_splits(table: pa.Table) -> bool:
    """Whether the file has its own split: a column `split` of train, validation and test."""
    if "split" not in table.column_names:
        return False
    return all(value.lower() in SPLIT_NAMES for value in distinct_values(table["split"]))


def missing_column_error(flag: str, name: str, table: pa.Table) -> str:
    """The error line for a named column that the file lacks."""
    columns = ", ".join(table.column_names)
    suggestion = did_you_mean(name, table.column_names)
    return f"--{flag} is {name}, but the file has the columns {columns}{suggestion}"


def ambiguity_error(flag: str, candidates: list[str], table: pa.Table) -> UserError:
    """The error for columns that cannot be detected: there are several candidates, or none."""
    if candidates:
        reason = f"several candidates ({', '.join(candidates)})"
    else:
        reason = f"no candidate among its columns ({', '.join(table.column_names)})"
    return UserError(f"{flag} is needed: the file has {reason}")


def detect_text_column(table: pa.Table, lists: frozenset[str] = frozenset()) -> str:
    """The only text column; UserError if there are several candidates, or none.

    `lists` are columns of lists, which are no texts.
    """
    candidates = []
    for name in table.column_names:
        if name in lists or not is_text(table[name]):
            continue
        if multi_label_format(table[name], None) is None:
            candidates.append(name)
    if len(candidates) != 1:
        raise ambiguity_error("--text_column", candidates, table)
    return candidates[0]


def label_candidates(table: pa.Table, excluded: set[str | None]) -> list[str]:
    """The columns that may be the label, in their order.

    Columns of at most MAX_CLASSES values; of more classes, or of several labels per cell, only if
    the name says that they are labels, or if there are no others.
    """
    candidates = []
    others = []
    for name in table.column_names:
        if name in excluded:
            continue
        column = table[name]
        cell_format = multi_label_format(column, None)
        is_plain = cell_format is None or not cell_format.has_lists
        if is_plain and is_label(column):
            candidates.append(name)
        elif cell_format is not None or is_large_label(column, name):
            if has_label_name(name):
                candidates.append(name)
            else:
                others.append(name)
    return candidates or others


def is_one_to_one(first: pa.ChunkedArray, second: pa.ChunkedArray) -> bool:
    """Whether each value of a column, null included, always has the same value beside it in the
    other column, and the reverse."""
    pairs = np.stack([value_ids(first), value_ids(second)], axis=1)
    distinct_pairs = np.unique(pairs, axis=0)
    counts = [len(np.unique(distinct_pairs[:, side])) for side in (0, 1)]
    return counts == [len(distinct_pairs), len(distinct_pairs)]


def is_number_column(column: pa.ChunkedArray) -> bool:
    """Whether all values of a column are numbers in plain digits."""
    return all(is_decimal(value.strip()) for value in distinct_values(column))


def choose_equivalent(candidates: list[str], table: pa.Table) -> str | None:
    """One of several columns that are one-to-one, with a note: the first one of words, if any.

    None if they are not one-to-one: the choice would change the task.
    """
    first = table[candidates[0]]
    if not all(is_one_to_one(first, table[name]) for name in candidates[1:]):
        return None
    of_words = [name for name in candidates if not is_number_column(table[name])]
    chosen = (of_words or candidates)[0]
    others = [name for name in candidates if name != chosen]
    note(
        f"label column {chosen}: {', '.join(others)} is one-to-one with it and is not used; "
        "--label_columns chooses another"
    )
    return chosen


def detect_label_columns(table: pa.Table, excluded: set[str | None]) -> tuple[str, ...]:
    """The only label column, or all 0/1 columns; UserError if the choice is ambiguous.

    Of several columns that are one-to-one, such as `label` and `label_text`, one is chosen.
    """
    if has_splits(table):
        excluded = excluded | {"split"}
    candidates = label_candidates(table, excluded)
    if len(candidates) == 1:
        return tuple(candidates)
    if candidates and all(is_binary(table[name]) for name in candidates):
        return tuple(candidates)
    if candidates:
        chosen = choose_equivalent(candidates, table)
        if chosen is not None:
            return (chosen,)
    raise ambiguity_error("--label_columns", candidates, table)
