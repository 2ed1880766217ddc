"""From the cells of label columns to the task and its labels.

A label is the text of its cell without surrounding white space. It never passes through a number
type, so `7`, `07` and `+7` are three classes, and so are two ids of 19 digits.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import pyarrow as pa

from compression_config import split_label_name
from corpus.label_cells import (
    MAX_LABELS,
    NO_SEPARATOR,
    CellFormat,
    Labels,
    cell_labels,
    detect_format,
    list_labels,
    possible_separator,
)
from corpus.readers import RowPlaces
from corpus.values import MISSING, decode_values, encode_values
from runtime.errors import UserError, escape_unprintable
from task import Task

log = logging.getLogger(__name__)

MAX_CLASSES = 50  # of a column that is detected by its values only

MAX_NAMED = 10  # labels that a message lists; it counts the others

RATINGS = [[str(star) for star in range(1, stars + 1)] for stars in (5, 10)]

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


def list_names(names: Sequence[str]) -> str:
    """The first MAX_NAMED names, and how many more there are."""
    others = len(names) - MAX_NAMED
    listed = ", ".join(names[:MAX_NAMED])
    return f"{listed} and {others} more" if others > 0 else listed


def check_label_count(name: str, count: int) -> None:
    """Raise UserError unless a label column has 2 to MAX_LABELS labels."""
    if not 2 <= count <= MAX_LABELS:
        raise UserError(
            f"--label_columns is {name} with {count} values, but needs 2 to {MAX_LABELS}"
        )


def read_classes(column: LabelColumn) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and class ids [rows], MISSING for a missing label."""
    classes = sort_labels(column.distinct_labels)
    check_label_count(column.name, len(classes))
    id_of_class = {class_name: class_id for class_id, class_name in enumerate(classes)}
    ids = [id_of_class.get(label, MISSING) for label in column.labels]
    return tuple(classes), decode_values(column.codes, ids, MISSING)


def note_about_classes(column: LabelColumn) -> None:
    """Notes about cells that may be several labels, and about ratings."""
    classes = sort_labels(column.distinct_labels)
    possible = possible_separator(classes)
    if possible:
        separator, cell = possible
        note(
            f"label column {column.name}: {cell!r} is read as one class; --label_separator "
            f"{separator!r} reads it as several labels"
        )
    if classes in RATINGS:
        note(
            f"label column {column.name}: 1 to {classes[-1]} are read as classes without an order: "
            "an error of one star counts like an error of all. If that matters less than the "
            "sentiment, use a column of fewer classes, such as negative, neutral and positive"
        )


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


def named_task(task: Task, label_names: Sequence[str]) -> Task:
    """The task with other names for its labels, as `--label_names` states them (`LABEL=NAME`).

    UserError unless each label of the file has a name, and no other.
    """
    if not label_names:
        return task
    names = dict(split_label_name(pair) for pair in label_names)
    problems = []
    unknown = [label for label in names if label not in task.labels]
    unnamed = [label for label in task.labels if label not in names]
    if unknown:
        problems.append(f"{list_names(unknown)} is not one of them")
    if unnamed:
        problems.append(f"{list_names(unnamed)} has no name")
    if problems:
        raise UserError(
            f"--label_names is {' '.join(label_names)}, but must name each label of the file, "
            f"{list_names(task.labels)}: {' and '.join(problems)}"
        )
    return replace(task, labels=tuple(names[label] for label in task.labels))


def is_flag_vectors(labels_of_cell: Sequence[Labels]) -> bool:
    """Whether all lists are equally long, and contain only 0 and 1: a flag for each label."""
    lengths = set(map(len, labels_of_cell))
    if len(lengths) != 1 or lengths.pop() < 2:
        return False
    return all(is_flag(label) for labels in labels_of_cell for label in labels)


def flagged_positions(flags: Labels) -> Labels:
    """The positions, from 0, of the flags that are set."""
    return tuple(str(i) for i, flag in enumerate(flags) if FLAGS[flag.casefold()])


def check_lists(column: LabelColumn, places: RowPlaces) -> None:
    """UserError if a cell starts like a list, but is not one of labels, or names a label twice."""
    for code, (cell, label) in enumerate(zip(column.cells, column.labels, strict=True)):
        if label is None or not cell.startswith("["):
            continue
        labels = list_labels(cell)
        if labels is None:
            problem = "is not a list of words or numbers"
        elif len(set(labels)) < len(labels):
            problem = "names a label twice"
        else:
            continue
        place = places.name(column.rows_of([code]))
        raise UserError(f"--label_columns is {column.name}, but {cell[:80]} in {place} {problem}")


def note_about_cells(column: LabelColumn, cell_format: CellFormat, labels: Sequence[str]) -> None:
    """Notes that say how cells of several labels are read, with an example, and how empty ones
    are."""
    kind = "lists of labels"
    if cell_format.separator:
        kind = f"labels separated by {cell_format.separator!r}"
    example = max(column.cells, key=lambda cell: len(cell_labels(cell, cell_format)))
    note(
        f"label column {column.name}: its cells are read as {kind}, such as {example[:80]!r}; the "
        f"labels are {list_names(labels)}; --label_separator none reads each cell as one class"
    )
    empty_rows = int((column.codes == MISSING).sum())
    if empty_rows:
        note(
            f"label column {column.name}: {empty_rows} rows have an empty cell, which is read as a "
            "missing label; write [] where no label applies"
        )


def read_label_cells(
    column: LabelColumn, places: RowPlaces, cell_format: CellFormat
) -> tuple[Task, np.ndarray]:
    """The task and the labels of a column whose cells have several labels.

    Lists of 0 and 1 of one length are flags. If every list has exactly one label, the labels are
    classes.
    """
    cells = []
    for cell, label in zip(column.cells, column.labels, strict=True):
        cells.append(None if label is None else cell_labels(cell, cell_format))
    present = [labels for labels in cells if labels is not None]
    is_flags = cell_format == CellFormat(has_lists=True) and is_flag_vectors(present)
    if is_flags:
        labels = tuple(str(i) for i in range(len(present[0])))
        cells = [flags if flags is None else flagged_positions(flags) for flags in cells]
        note(
            f"label column {column.name}: its lists of 0 and 1 are read as one flag per label; "
            "--label_names names the labels, such as 0=NAME 1=NAME"
        )
    else:
        if cell_format.has_lists:
            check_lists(column, places)
        labels = tuple(sort_labels({label for labels in present for label in labels}))
    has_one_each = not is_flags and all(len(own_labels) == 1 for own_labels in present)
    if has_one_each:
        note(f"label column {column.name}: every list has one label, so the labels are classes")
    elif not is_flags:
        note_about_cells(column, cell_format, labels)
    check_label_count(column.name, len(labels))
    flags = np.zeros((len(cells), len(labels)), dtype=np.int8)
    id_of_label = {label: i for i, label in enumerate(labels)}
    for code, own_labels in enumerate(cells):
        if own_labels is None:
            flags[code] = MISSING
        else:
            flags[code, [id_of_label[label] for label in own_labels]] = 1
    rows = flags[column.codes]
    rows[column.codes == MISSING] = MISSING
    if has_one_each:
        is_missing = (rows == MISSING).any(axis=1)
        return Task(labels, multi_label=False), np.where(is_missing, MISSING, rows.argmax(axis=1))
    return Task(labels, multi_label=True), rows


def read_single_column(
    column: LabelColumn, places: RowPlaces, separator: str | None
) -> tuple[Task, np.ndarray]:
    """The task and the labels of the only label column."""
    cells = [cell for cell, label in zip(column.cells, column.labels, strict=True) if label]
    if separator == NO_SEPARATOR:
        cell_format = CellFormat()
    elif separator is None:
        cell_format = detect_format(cells)
    else:
        cell_format = CellFormat(has_lists=False, separator=separator)
        if not any(separator in cell for cell in cells):
            raise UserError(
                f"--label_separator is {separator}, but no cell of {column.name} contains it"
            )
    if cell_format.has_several_labels:
        return read_label_cells(column, places, cell_format)
    classes, ids = read_classes(column)
    if separator is None:
        note_about_classes(column)
    return Task(classes, multi_label=False), ids


def read_task(
    table: pa.Table,
    names: tuple[str, ...],
    places: RowPlaces,
    separator: str | None = None,
    label_names: Sequence[str] = (),
) -> tuple[Task, np.ndarray]:
    """The task, and labels as class ids [rows] or 0/1 [rows, labels]; MISSING for missing ones.

    `separator` and `label_names` are `--label_separator` and `--label_names`.
    """
    columns = [read_label_column(table[name], name) for name in names]
    for column in columns:
        log_notes(column, places)
    if len(columns) == 1:
        task, labels = read_single_column(columns[0], places, separator)
    else:
        task = Task(names, multi_label=True)
        labels = np.stack([read_flags(one) for one in columns], axis=1)
    return named_task(task, label_names), labels


def label_patterns(labels: np.ndarray) -> np.ndarray:
    """An id [rows] of each row's label, or of its combination of labels."""
    if labels.ndim == 1:
        return labels
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(len(labels))
