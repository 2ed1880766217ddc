"""Read a labeled file: its columns, its task, its complete rows and the keys of its texts."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from compression_config import Options
from corpus.column_choice import (
    SPLIT_NAMES,
    detect_label_columns,
    detect_text_column,
    has_splits,
    missing_column_error,
    value_ids,
)
from corpus.encodings import BYTES_PER_GB
from corpus.headers import is_long_name, repeated_header_problem, row_like_names
from corpus.input_files import ReadOptions
from corpus.labels import label_patterns, note, read_task
from corpus.readers import FileRows, RowPlaces, is_delimited, nested_reason, read_rows
from corpus.text_keys import map_chunks, near_duplicate_key, text_key
from corpus.values import MISSING, decode_values, encode_values
from runtime.errors import UserError, escape_unprintable
from task import Task

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")

TRAIN, VALIDATION, TEST = range(len(SPLITS))  # positions in SPLITS


@dataclass(frozen=True)
class LabeledCorpus:
    """A labeled file.

    `table` contains every column of the file as strings. `rows` contains the complete rows only,
    in file order, with the columns

    - `id`: row number in the file, from 0;
    - `key`, `near_key`: ids of the normalized text and of its near-duplicate key;
    - `words`: number of words;
    - `label_pattern`: id of the label, or of the combination of labels;
    - `split`: position in SPLITS; TRAIN if the file has no split of its own;
    - `group`: value of `--group_column`, if that is set.

    `labels` [rows] of class ids, or [rows, labels] of 0/1, is aligned with `rows`.
    """

    table: pa.Table
    text_column: str
    label_columns: tuple[str, ...]
    task: Task
    rows: pa.Table
    labels: np.ndarray

    def filter(self, mask: np.ndarray) -> LabeledCorpus:
        """The same file with only the rows that a mask [rows] selects."""
        return dataclasses.replace(self, rows=self.rows.filter(mask), labels=self.labels[mask])

    def column(self, name: str) -> np.ndarray:
        """An integer column of `rows`."""
        return self.rows[name].to_numpy()

    def texts(self, mask: np.ndarray | None = None) -> pa.ChunkedArray:
        """The raw texts of all rows, or of the rows that a mask [rows] selects."""
        ids = self.column("id")
        if mask is not None:
            ids = ids[mask]
        texts = self.table[self.text_column]
        if len(ids) == len(texts):
            return texts
        return texts.filter(mask_of(ids, len(texts)))


def mask_of(positions: np.ndarray, length: int) -> np.ndarray:
    """A mask [length] that is true at `positions`."""
    mask = np.zeros(length, dtype=bool)
    mask[positions] = True
    return mask


def check_columns(table: pa.Table, places: RowPlaces, options: Options) -> None:
    """Raise a UserError with one line for each named column that the file lacks, or that has
    objects."""
    requested = [
        ("text_column", options.text_column),
        ("group_column", options.group_column),
    ]
    for name in options.label_columns or ():
        requested.append(("label_columns", name))
    errors = []
    for flag, name in requested:
        if name in places.nested:
            errors.append(f"--{flag} is {name}, but {nested_reason(places.nested[name], name)}")
        elif name is not None and name not in table.column_names:
            errors.append(missing_column_error(flag, name, table))
    if errors:
        raise UserError(*errors)


def check_text_column(name: str, places: RowPlaces) -> None:
    """Raise UserError if the text column has lists."""
    if name in places.lists:
        raise UserError(f"--text_column is {name}, but {nested_reason(places.lists[name], name)}")


def note_skipped_columns(places: RowPlaces, used: set[str]) -> None:
    """A note about the columns with lists or objects that are not used."""
    skipped = [name for name in {**places.nested, **places.lists} if name not in used]
    if skipped:
        note(f"columns with lists or objects are skipped: {', '.join(skipped)}")


def read_options(options: Options) -> ReadOptions:
    """How the files of a run are read."""
    return ReadOptions(not options.no_header, int(options.max_input_gb * BYTES_PER_GB))


def check_header(
    rows: FileRows, flag: str, options: Options, known_columns: list[str] | None = None
) -> None:
    """UserError if the first line of a file is not a header, but a row, or if a line repeats it.

    A header that `--text_column` or `--label_columns` names is one, and so is one of
    `known_columns`.
    """
    if options.no_header or not is_delimited(rows.path):
        return
    problem = repeated_header_problem(rows)
    if problem:
        raise UserError(f"{flag} is {rows.path}, but {problem}")
    names = rows.table.column_names
    named = {options.text_column, *(options.label_columns or ())}
    if named & set(names) or names == known_columns:
        return
    row_cell, class_name = row_like_names(rows.table)
    if row_cell is not None:
        raise UserError(
            f"{flag} is {rows.path}, but its first line looks like a row: {row_cell!r} is like the "
            "cells below it; give --no_header, or --text_column and --label_columns if it is a "
            "header"
        )
    if class_name is not None:
        log.warning(
            "note: %s: the first line is read as the header, although %r is also a value of its "
            "column; give --no_header if it is a row",
            *(escape_unprintable(rows.path), class_name),
        )


def note_long_name(text_column: str, options: Options) -> None:
    """A note if the name of the text column of a delimited file may be a text."""
    is_named_by_file = not options.no_header and is_delimited(options.dataset_path)
    if options.text_column is None and is_named_by_file and is_long_name(text_column):
        log.warning(
            "note: the first line is read as the header, with the text column %r; give --no_header "
            "if it is a row",
            text_column,
        )


def read_files(options: Options) -> tuple[pa.Table, RowPlaces]:
    """The rows of all files of a run, and where they are.

    If `--validation_path` or `--test_path` is set, the table gets a column `split`, which is null
    for the rows of `--dataset_path`.
    """
    reading = read_options(options)
    rows = read_rows(options.dataset_path, "--dataset_path", reading)
    check_header(rows, "--dataset_path", options)
    paths = {"validation": options.validation_path, "test": options.test_path}
    if not any(paths.values()):
        return rows.table, RowPlaces([rows])
    if "split" in rows.table.column_names:
        raise UserError(
            f"--dataset_path is {options.dataset_path}, which has a column split, but "
            "--validation_path and --test_path need a file without one"
        )
    tables = [rows.table.append_column("split", pa.nulls(len(rows.table), pa.large_string()))]
    files = [rows]
    for split, path in paths.items():
        if path:
            held_out = read_rows(path, f"--{split}_path", reading)
            check_header(held_out, f"--{split}_path", options, rows.table.column_names)
            check_same_columns(held_out.table, path, split, rows.table.column_names)
            split_column = pa.repeat(pa.scalar(split, pa.large_string()), len(held_out.table))
            selected = held_out.table.select(rows.table.column_names)
            tables.append(selected.append_column("split", split_column))
            files.append(held_out)
    return pa.concat_tables(tables), RowPlaces(files)


def check_same_columns(table: pa.Table, path: str, split: str, columns: list[str]) -> None:
    """UserError if the file of `--validation_path` or `--test_path` lacks one of `columns`."""
    missing = sorted(set(columns) - set(table.column_names))
    if missing:
        raise UserError(f"--{split}_path is {path}, but it lacks the columns {', '.join(missing)}")


def file_splits(table: pa.Table) -> np.ndarray:
    """The position in SPLITS [rows] that the file states; TRAIN if it states none."""
    if not has_splits(table):
        return np.full(len(table), TRAIN)
    codes, values = encode_values(table["split"])
    positions = [SPLITS.index(SPLIT_NAMES[value.lower()]) for value in values.to_pylist()]
    return decode_values(codes, positions, TRAIN)


def count_words(keys: pa.Array) -> pa.Array:
    """The number of words of each text key."""
    return pc.add(pc.count_substring(keys, " "), 1)


def normalized_keys(texts: pa.Array) -> pa.Array:
    """The key of each text; "" for null."""
    return text_key(texts.fill_null(""))


def is_incomplete(
    keys: pa.ChunkedArray, labels: np.ndarray, path: str, places: RowPlaces
) -> np.ndarray:
    """Mask of the rows that lack a text or a label; UserError if that is more than half of them."""
    lacks_text = pc.equal(keys, "").to_numpy()
    lacks_label = (labels.reshape(len(labels), -1) == MISSING).any(axis=1)
    incomplete = lacks_text | lacks_label
    count = incomplete.sum()
    if incomplete.mean() > 0.5:
        raise UserError(
            f"--dataset_path is {path}, but {count} of {len(labels)} rows lack a text or a label"
        )
    if count:
        rows = np.flatnonzero(incomplete)
        log.warning("dropped %d rows without a text or a label: %s", count, places.name(rows))
    return incomplete


def build_rows(
    table: pa.Table,
    text_column: str,
    labels: np.ndarray,
    places: RowPlaces,
    options: Options,
) -> tuple[pa.Table, np.ndarray]:
    """The complete rows as `LabeledCorpus.rows`, and the mask [rows of the file] of them."""
    keys = map_chunks(normalized_keys, table[text_column])
    is_complete = ~is_incomplete(keys, labels, options.dataset_path, places)
    with ThreadPoolExecutor(1) as pool:
        pending_ids = pool.submit(value_ids, keys)
        near_keys = map_chunks(near_duplicate_key, keys)
        words = map_chunks(count_words, keys)
        key_ids = pending_ids.result()
    del pending_ids, keys  # frees the normalized texts before the near keys are encoded
    columns = {
        "id": np.arange(len(table)),
        "key": key_ids,
        "near_key": value_ids(near_keys),
        "words": words,
        "label_pattern": label_patterns(labels),
        "split": file_splits(table),
    }
    if options.group_column:
        groups = pc.utf8_trim_whitespace(table[options.group_column])
        columns["group"] = pc.fill_null(groups, "")
    return pa.table(columns).filter(is_complete), is_complete


def read_corpus(options: Options) -> LabeledCorpus:
    """Read the files of a run and detect their columns; UserError if a column is ambiguous."""
    table, places = read_files(options)
    check_columns(table, places, options)
    text_column = options.text_column or detect_text_column(table, frozenset(places.lists))
    check_text_column(text_column, places)
    note_long_name(text_column, options)
    label_columns = options.label_columns
    if not label_columns:
        label_columns = detect_label_columns(table, {text_column, options.group_column})
    label_columns = tuple(label_columns)
    note_skipped_columns(places, {*label_columns, options.group_column})
    separator = options.label_separator
    task, labels = read_task(table, label_columns, places, separator, options.label_names or ())
    rows, is_complete = build_rows(table, text_column, labels, places, options)
    return LabeledCorpus(table, text_column, label_columns, task, rows, labels[is_complete])


def contradicting_rows(corpus: LabeledCorpus) -> np.ndarray:
    """Mask of the rows whose text also occurs with another label."""
    patterns = pd.Series(corpus.column("label_pattern")).groupby(corpus.column("key"))
    return (patterns.transform("min") < patterns.transform("max")).to_numpy()


def leaking_rows(corpus: LabeledCorpus, is_contradicting: np.ndarray) -> np.ndarray:
    """Mask of the rows, without contradicting ones, whose text is also in a later split of the
    file.

    A duplicate stays in test rather than in validation, and in validation rather than in train.
    """
    splits = corpus.column("split")
    last_split = pd.Series(splits).groupby(corpus.column("key")).transform("max")
    return (splits < last_split.to_numpy()) & ~is_contradicting
