"""A labeled file for a model that exists: its labels are those of the model, in the same order.

Cells are read as in training (`corpus.labels`). A label that the model does not have is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from compression_config import Options
from corpus.column_choice import ambiguity_error, detect_text_column
from corpus.columns import check_columns, check_header, check_text_column
from corpus.input_files import ReadOptions
from corpus.label_cells import NO_SEPARATOR, SEPARATORS, CellFormat, cell_labels, list_labels
from corpus.labels import (
    LabelColumn,
    check_lists,
    flagged_positions,
    is_flag_vectors,
    log_notes,
    read_flags,
    read_label_column,
)
from corpus.readers import FileRows, RowPlaces, read_rows
from corpus.values import MISSING, decode_values
from runtime.errors import UserError
from task import Task

log = logging.getLogger(__name__)

INPUT = "--input"
PREDICTED = "predicted_"  # how the columns of inference.py start: they are no true labels
NAMED_LABELS = 5  # that an error names; it counts the others


class ColumnNames(NamedTuple):
    """Columns that the user named, and those that the model was trained on; None if unknown.

    `label_names` and `separator` are those of training: label of the file -> name in the model.
    """

    text: str | None
    labels: tuple[str, ...] | None
    trained_text: str | None = None
    trained_labels: tuple[str, ...] | None = None
    label_names: Mapping[str, str] = MappingProxyType({})
    separator: str | None = None

    def name_of(self, label: str | None) -> str | None:
        """The name of a label in the model; a label without another name is its name."""
        return self.label_names.get(label, label)


class LabeledRows(NamedTuple):
    """The complete rows of a file: texts, labels as class ids [rows] or 0/1 [rows, labels], and the
    number of each row, with its unit."""

    texts: list[str]
    labels: np.ndarray
    numbers: list[int]
    unit: str
    dropped: int


def read_labeled_rows(
    path: str, task: Task, names: ColumnNames, reading: ReadOptions
) -> LabeledRows:
    """The rows of a file that have a text and a label; UserError if a column is missing or
    ambiguous, or if a label is not one of the model's."""
    rows = read_rows(path, INPUT, reading)
    table = rows.table
    text_name = names.text
    if text_name is None and names.trained_text in table.column_names:
        text_name = names.trained_text
    given = Options(
        dataset_path=path,
        text_column=text_name,
        label_columns=names.labels,
        no_header=not reading.has_header,
    )
    places = RowPlaces([rows])
    check_columns(table, places, given)
    check_header(rows, INPUT, given)
    if text_name is None:
        text_name = detect_text_column(table, frozenset(places.lists))
    check_text_column(text_name, places)
    label_columns = tuple(names.labels or find_label_columns(table, task, text_name, names))
    check_label_columns(label_columns, text_name, task, names)
    labels = read_labels(rows, task, label_columns, names)
    return complete_rows(rows, text_name, labels)


def find_label_columns(
    table: pa.Table, task: Task, text_name: str, names: ColumnNames
) -> tuple[str, ...]:
    """The columns that the model was trained on; else those called as the labels of a multi-label
    model, or the only column that contains nothing but labels of the model."""
    trained = names.trained_labels
    if trained and set(trained) <= set(table.column_names):
        return trained
    if task.multi_label:
        missing = [label for label in task.labels if label not in table.column_names]
        if missing:
            raise UserError(
                "--label_columns is not given, and the file has no column for the labels "
                f"{named(missing)}"
            )
        return task.labels
    known_labels = set(task.labels)
    candidates = []
    partial_candidates = []  # with labels that the model does not have, which is an error later
    for name in table.column_names:
        if name == text_name or name.startswith(PREDICTED):
            continue
        labels = set(map(names.name_of, read_label_column(table[name], name).distinct_labels))
        if labels and labels <= known_labels:
            candidates.append(name)
        elif labels & known_labels:
            partial_candidates.append(name)
    candidates = candidates or partial_candidates
    if len(candidates) != 1:
        raise ambiguity_error("--label_columns", candidates, table)
    return tuple(candidates)


def named(labels: list[str]) -> str:
    """Labels in words, at most NAMED_LABELS of them by name."""
    others = len(labels) - NAMED_LABELS
    listed = ", ".join(map(repr, labels[:NAMED_LABELS]))
    return f"{listed} and {others} more" if others > 0 else listed


def is_cell_column(columns: tuple[str, ...], task: Task, names: ColumnNames) -> bool:
    """Whether the labels of a multi-label model are all in the cells of one column."""
    return task.multi_label and len(columns) == 1 and names.name_of(columns[0]) not in task.labels


def read_labels(
    rows: FileRows, task: Task, columns: tuple[str, ...], names: ColumnNames
) -> np.ndarray:
    """Class ids [rows], or 0/1 [rows, labels] in the order of the model; MISSING for a missing
    label."""
    places = RowPlaces([rows])
    if task.multi_label and not is_cell_column(columns, task, names):
        column_of = {names.name_of(name): name for name in columns}
        flags = []
        for label in task.labels:
            column = read_label_column(rows.table[column_of[label]], column_of[label])
            log_notes(column, places)
            flags.append(read_flags(column))
        return np.stack(flags, axis=1)
    column = read_label_column(rows.table[columns[0]], columns[0])
    if task.multi_label:
        return read_cells(column, task, places, names)
    log_notes(column, places)
    column = replace(column, labels=[names.name_of(label) for label in column.labels])
    return class_ids(column, task, places)


def read_cells(
    column: LabelColumn, task: Task, places: RowPlaces, names: ColumnNames
) -> np.ndarray:
    """0/1 [rows, labels] of a column with several labels per cell; MISSING for an empty cell."""
    cells = [cell for cell, label in zip(column.cells, column.labels, strict=True) if label]
    labels_of_cell = read_flag_cells(cells, task)
    if labels_of_cell is None:
        check_lists(column, places)
        labels_of_cell = read_named_cells(column.name, cells, task, names)
    flags = np.full((len(column.cells), len(task.labels)), MISSING)
    for code, cell in enumerate(column.cells):
        if cell in labels_of_cell:
            flags[code] = [label in labels_of_cell[cell] for label in task.labels]
    labels_of_rows = flags[column.codes]
    labels_of_rows[column.codes == MISSING] = MISSING
    return labels_of_rows


def read_flag_cells(cells: list[str], task: Task) -> dict[str, set[str]] | None:
    """Cell -> labels of lists with 0 or 1 for each label of the model; None if they are others."""
    flags_of_cell = {cell: list_labels(cell) for cell in cells}
    if None in flags_of_cell.values() or not is_flag_vectors(list(flags_of_cell.values())):
        return None
    labels_of_cell = {}
    for cell, flags in flags_of_cell.items():
        if len(flags) != len(task.labels):
            return None
        labels_of_cell[cell] = {task.labels[int(one)] for one in flagged_positions(flags)}
    return labels_of_cell


def read_named_cells(
    column: str, cells: list[str], task: Task, names: ColumnNames
) -> dict[str, set[str]]:
    """Cell -> labels of lists, or of cells with a separator.

    Of no separator and each possible one, the first that gives only labels of the model is used.
    """
    fewest_unknown = None
    for separator in dict.fromkeys((names.separator, None, *SEPARATORS)):
        if separator == NO_SEPARATOR:
            continue
        labels_of_cell = {}
        for cell in cells:
            labels = cell_labels(cell, CellFormat(has_lists=True, separator=separator))
            labels_of_cell[cell] = {names.name_of(label) for label in labels}
        unknown = set().union(*labels_of_cell.values()) - set(task.labels)
        if not unknown:
            return labels_of_cell
        if fewest_unknown is None or len(unknown) < len(fewest_unknown):
            fewest_unknown = unknown
    raise unknown_labels_error(column, sorted(fewest_unknown), task, "")


def unknown_labels_error(column: str, unknown: list[str], task: Task, place: str) -> UserError:
    """The error for labels that the model does not have; `place` names their rows, if known."""
    return UserError(
        f"--label_columns is {column}, but the model does not have its labels "
        f"{named(unknown)}{place}; those of the model are {named(list(task.labels))}"
    )


def check_label_columns(
    columns: tuple[str, ...], text_name: str, task: Task, names: ColumnNames
) -> None:
    """UserError if there are several columns for classes, if the columns are not called as the
    labels of a multi-label model, or if one is the text column."""
    if not task.multi_label and len(columns) > 1:
        raise UserError(
            f"--label_columns is {' '.join(columns)}, but the model has one label per text: "
            "name one column"
        )
    if task.multi_label and not is_cell_column(columns, task, names):
        check_label_names(tuple(names.name_of(name) for name in columns), task)
    if text_name in columns:
        raise UserError(f"--label_columns includes {text_name}, but that is the text column")


def check_label_names(names: tuple[str, ...], task: Task) -> None:
    """UserError if the columns are not called as the labels of a multi-label model."""
    unknown = [name for name in names if name not in task.labels]
    missing = [label for label in task.labels if label not in names]
    if unknown or missing:
        problem = f"{named(unknown)} unknown" if unknown else f"{named(missing)} missing"
        raise UserError(
            f"--label_columns is {' '.join(names)}, but must be the labels of the model "
            f"({named(list(task.labels))}): {problem}"
        )


def class_ids(column: LabelColumn, task: Task, places: RowPlaces) -> np.ndarray:
    """The id of each row's label in the model; UserError names the labels that it does not have."""
    unknown = sorted(column.distinct_labels - set(task.labels))
    if unknown:
        codes = [code for code, label in enumerate(column.labels) if label in unknown]
        place = f" ({places.name(column.rows_of(codes))})"
        raise unknown_labels_error(column.name, unknown, task, place)
    ids = []
    for label in column.labels:
        ids.append(MISSING if label is None else task.labels.index(label))
    return decode_values(column.codes, ids, MISSING)


def complete_rows(rows: FileRows, text_name: str, labels: np.ndarray) -> LabeledRows:
    """The rows with a text that is not blank and with every label; the log counts the others."""
    texts = rows.table[text_name].to_pylist()
    has_text = np.array([text is not None and text.strip() != "" for text in texts])
    has_labels = (labels.reshape(len(labels), -1) != MISSING).all(axis=1)
    kept = np.flatnonzero(has_text & has_labels)
    dropped = np.flatnonzero(~(has_text & has_labels))
    if not len(kept):
        raise UserError(f"{INPUT} is {rows.path}, but no row of it has both a text and a label")
    if len(dropped):
        log.warning(
            "note: %d rows without a text or a label are left out: %s",
            *(len(dropped), RowPlaces([rows]).name(dropped)),
        )
    return LabeledRows(
        texts=[texts[row] for row in kept],
        labels=labels[kept],
        numbers=rows.numbers[kept].tolist(),
        unit=rows.unit,
        dropped=len(dropped),
    )
