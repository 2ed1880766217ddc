"""A labeled file for a model that exists: its labels are those of the model, in the same order.

Cells are read as in training (`corpus.labels`). A label that the model does not have is an error.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from compression_config import Options
from corpus.column_choice import ambiguity_error, detect_text_column
from corpus.columns import check_columns, check_header, check_text_column
from corpus.input_files import ReadOptions
from corpus.labels import LabelColumn, log_notes, read_flags, read_label_column
from corpus.readers import FileRows, RowPlaces, read_rows
from corpus.values import MISSING, decode_values
from runtime.errors import UserError
from task import Task

log = logging.getLogger(__name__)

INPUT = "--input"
PREDICTED = "predicted_"  # how the columns of inference.py start: they are no true labels
NAMED_LABELS = 5  # that an error names; it counts the others


class ColumnNames(NamedTuple):
    """Columns that the user named, and those that the model was trained on; None if unknown."""

    text: str | None
    labels: tuple[str, ...] | None
    trained_text: str | None = None
    trained_labels: tuple[str, ...] | None = None


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
    label_names = names.labels or find_label_columns(table, task, text_name, names.trained_labels)
    check_label_columns(tuple(label_names), text_name, task)
    labels = read_labels(rows, task, tuple(label_names))
    return complete_rows(rows, text_name, labels)


def find_label_columns(
    table: pa.Table, task: Task, text_name: str, trained: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The columns that the model was trained on; else those called as the labels of a multi-label
    model, or the only column that contains nothing but labels of the model."""
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
        labels = read_label_column(table[name], name).distinct_labels
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


def read_labels(rows: FileRows, task: Task, names: tuple[str, ...]) -> np.ndarray:
    """Class ids [rows], or 0/1 [rows, labels] in the order of the model; MISSING for a missing
    label."""
    places = RowPlaces([rows])
    if task.multi_label:
        columns = [read_label_column(rows.table[name], name) for name in task.labels]
        for column in columns:
            log_notes(column, places)
        return np.stack([read_flags(column) for column in columns], axis=1)
    column = read_label_column(rows.table[names[0]], names[0])
    log_notes(column, places)
    return class_ids(column, task, places)


def check_label_columns(names: tuple[str, ...], text_name: str, task: Task) -> None:
    """UserError if there are several columns for classes, if the columns are not called as the
    labels of a multi-label model, or if one is the text column."""
    if not task.multi_label and len(names) > 1:
        raise UserError(
            f"--label_columns is {' '.join(names)}, but the model has one label per text: name one "
            "column"
        )
    if task.multi_label:
        check_label_names(names, task)
    if text_name in names:
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
        raise UserError(
            f"--label_columns is {column.name}, but the model does not have its labels "
            f"{named(unknown)} ({places.name(column.rows_of(codes))}); those of the model are "
            f"{named(list(task.labels))}"
        )
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
