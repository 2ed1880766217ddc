"""From the cells of label columns to the task and its labels.

A label is the text of its cell without surrounding white space. It never passes through a number
type, so `7`, `07` and `+7` are three classes, and so are two ids of 19 digits.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow as pa

from corpus.readers import RowPlaces
from corpus.values import MISSING, decode_values, encode_values
from runtime.errors import UserError, escape_unprintable
from task import Task

log = logging.getLogger(__name__)

MAX_CLASSES = 50

FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}

WHOLE_NUMBER = re.compile(r"-?[0-9]+(\.0*)?")  # also as a table stores it in a float column

DECIMAL_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")

NAN_WORDS = {"nan", "-nan", "<na>", "nat"}  # what pandas writes in place of a missing value

NA_WORDS = {"na", "n/a", "#n/a", "#na", "null", "none"}  # what pandas also reads as missing


def is_decimal(text: str) -> bool:
    """Whether a text is a number in plain digits, such as `-1`, `007` or `2.50`."""
    return DECIMAL_NUMBER.fullmatch(text) is not None


def missing_words(cells: list[str]) -> set[str]:
    """The words among distinct stripped cells that stand for a missing label.

    Those of NAN_WORDS always do. Those of NA_WORDS do in a column of numbers or of true and false;
    elsewhere, they are classes like any other word.
    """
    words = {cell for cell in cells if cell.casefold() in NAN_WORDS}
    na_words = {cell for cell in cells if cell.casefold() in NA_WORDS}
    others = [cell for cell in cells if cell and cell not in words | na_words]
    if others and all(is_decimal(cell) or cell.casefold() in FLAGS for cell in others):
        words |= na_words
    return words


@dataclass(frozen=True)
class LabelColumn:
    """The cells of a label column: codes [rows], and the cell and the label of each code.

    A code is MISSING for null; a label is None if the cell stands for a missing label.
    """

    name: str
    codes: np.ndarray
    cells: list[str]
    labels: list[str | None]

    @property
    def distinct_labels(self) -> set[str]:
        """The labels without None."""
        return set(self.labels) - {None}

    def rows_of(self, positions: list[int]) -> np.ndarray:
        """The rows, from 0, whose code is one of `positions`."""
        return np.flatnonzero(np.isin(self.codes, positions))


def read_label_column(column: pa.ChunkedArray, name: str) -> LabelColumn:
    """The labels of a column. `1.0` is the label `1` if all labels are whole numbers."""
    codes, values = encode_values(column)
    cells = [cell.strip() for cell in values.to_pylist()]
    missing = missing_words(cells) | {""}
    present = [cell for cell in cells if cell not in missing]
    has_whole_numbers = all(WHOLE_NUMBER.fullmatch(cell) for cell in present)
    labels: list[str | None] = []
    for cell in cells:
        if cell in missing:
            labels.append(None)
        else:
            labels.append(cell.partition(".")[0] if has_whole_numbers else cell)
    return LabelColumn(name, codes, cells, labels)


def note(text: str) -> None:
    """Log a note; labels and column names in it may contain control characters."""
    log.warning("note: %s", escape_unprintable(text))


def log_notes(column: LabelColumn, places: RowPlaces) -> None:
    """Log which words are read as missing labels or as classes, and which cells are one class."""
    cells_of_label: dict[str, set[str]] = {}
    missing_codes = []
    missing_cells = set()
    for code, (cell, label) in enumerate(zip(column.cells, column.labels, strict=True)):
        if label is not None:
            cells_of_label.setdefault(label, set()).add(cell)
        elif cell:
            missing_codes.append(code)
            missing_cells.add(cell)
    if missing_codes:
        words = ", ".join(sorted(missing_cells))
        rows = column.rows_of(missing_codes)
        note(
            f"label column {column.name}: {words} is read as a missing label in {places.name(rows)}"
        )
    for label, cells in cells_of_label.items():
        if label.casefold() in NA_WORDS:
            rows = column.rows_of([i for i, other in enumerate(column.labels) if other == label])
            note(
                f"label column {column.name}: {label} is read as a class in {places.name(rows)}; "
                "leave the cell empty if the label is missing"
            )
        if len(cells) > 1:
            note(f"label column {column.name}: {' and '.join(sorted(cells))} are one class")


def sort_labels(labels: set[str]) -> list[str]:
    """Labels in order: numbers by value, other labels as texts."""
    if all(is_decimal(label) for label in labels):
        return sorted(labels, key=number_key)
    return sorted(labels)


def number_key(label: str) -> tuple[Decimal, str]:
    """What numbers are sorted by: the exact value, then the text."""
    return Decimal(label), label


def read_classes(column: LabelColumn) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and class ids [rows], MISSING for a missing label."""
    classes = sort_labels(column.distinct_labels)
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise UserError(
            f"--label_columns is {column.name} with {len(classes)} values, but needs 2 to "
            f"{MAX_CLASSES}"
        )
    id_of_class = {class_name: class_id for class_id, class_name in enumerate(classes)}
    ids = [id_of_class.get(label, MISSING) for label in column.labels]
    return tuple(classes), decode_values(column.codes, ids, MISSING)


def is_flag(label: str | None) -> bool:
    """Whether a label is missing, or 0 or 1, or false or true."""
    return label is None or label.casefold() in FLAGS


def read_flags(column: LabelColumn) -> np.ndarray:
    """0 or 1 [rows], MISSING for a missing label."""
    flags = []
    for label in column.labels:
        if not is_flag(label):
            raise UserError(
                f"--label_columns includes {column.name}, which contains {label!r}, but several "
                "label columns must contain only 0 and 1"
            )
        flags.append(MISSING if label is None else FLAGS[label.casefold()])
    return decode_values(column.codes, flags, MISSING)


def read_task(
    table: pa.Table, names: tuple[str, ...], places: RowPlaces
) -> tuple[Task, np.ndarray]:
    """The task, and labels as class ids [rows] or 0/1 [rows, labels]; MISSING for missing ones."""
    columns = [read_label_column(table[name], name) for name in names]
    for column in columns:
        log_notes(column, places)
    if len(columns) == 1:
        classes, ids = read_classes(columns[0])
        return Task(classes, multi_label=False), ids
    return Task(names, multi_label=True), np.stack([read_flags(one) for one in columns], axis=1)


def label_patterns(labels: np.ndarray) -> np.ndarray:
    """An id [rows] of each row's label, or of its combination of labels."""
    if labels.ndim == 1:
        return labels
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(len(labels))
