"""A labelled file as read: its columns, the task it states, its complete rows and the keys of their texts.

Columns are found where there is no doubt, else asked for. A text's key is its normalised form; the text itself stays
as it is.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compression_config import Options, UserError
from corpus.readers import read_file
from task import Task

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

BINARY_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}

MAX_CLASSES = 50

BLANKS = r"[\s\x0b\x{1c}-\x{1f}\x{85}\p{Z}]+"  # what Python's str.split() splits at

ODD_BLANKS = r"  |^ | $|[\t-\r\x{1c}-\x{1f}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\p{Zl}\p{Zp}\x{202f}\x{205f}\x{3000}]"


@dataclass(frozen=True)
class LabelledCorpus:
    """A labelled file as read. `table` holds every column as text; `rows` the complete rows alone: `id` (row of the
    file, rising), `key` and `loose` (numbers of the normalised text, and of its letters and digits), `words`, `pattern`
    (number of the label or label combination), `split` (0, 1, 2 in the order of SPLITS; training where the file has no
    own) and, where asked for, `group`. `labels` [rows] or [rows, labels] goes with `rows`.
    """

    table: pa.Table
    text: str
    label_columns: tuple[str, ...]
    task: Task
    rows: pa.Table
    labels: np.ndarray

    def where(self, kept: np.ndarray) -> "LabelledCorpus":
        """The same file with the rows of a mask alone."""
        return dataclasses.replace(self, rows=self.rows.filter(kept), labels=self.labels[kept])

    def column(self, name: str) -> np.ndarray:
        """A column of `rows` that holds whole numbers."""
        return self.rows[name].to_numpy()

    def texts(self, chosen: np.ndarray | None = None) -> pa.ChunkedArray:
        """The texts of all rows, or of those that a mask chooses."""
        ids = self.column("id") if chosen is None else self.column("id")[chosen]
        whole = self.table[self.text]
        return whole if len(ids) == len(whole) else whole.filter(mask_of(ids, len(whole)))


def mask_of(places: np.ndarray, length: int) -> np.ndarray:
    """A mask [length] that is true at `places`."""
    mask = np.zeros(length, dtype=bool)
    mask[places] = True
    return mask


def map_chunks(
    function: Callable[[pa.Array], pa.Array], column: pa.ChunkedArray
) -> pa.ChunkedArray:
    """The function of every chunk, on all cores: Arrow's own functions of texts use one."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return pa.chunked_array(
            list(pool.map(function, column.chunks or [column.combine_chunks()]))
        )


def replace_matches(texts: pa.Array, found: str, pattern: str, by: str) -> pa.Array:
    """`pattern` replaced in the texts in which `found` occurs; looking is much cheaper than replacing."""
    mask = pc.match_substring_regex(texts, found)
    if not pc.any(mask).as_py():
        return texts
    return pc.replace_with_mask(
        texts, mask, pc.replace_substring_regex(texts.filter(mask), pattern, by)
    )


def text_key(texts: pa.Array) -> pa.Array:
    """The keys by which texts are the same: format characters (zero-width, direction marks) dropped, NFC, white
    space folded."""
    return pc.utf8_trim(
        replace_matches(
            nfc(replace_matches(texts, r"\p{Cf}", r"\p{Cf}+", "")), ODD_BLANKS, BLANKS, " "
        ),
        " ",
    )


def nfc(texts: pa.Array) -> pa.Array:
    """The texts in Unicode's normal form C, which ASCII is already."""
    mask = pc.invert(pc.string_is_ascii(texts))
    return pc.replace_with_mask(texts, mask, pc.utf8_normalize(texts.filter(mask), "NFC"))


def loose_key(keys: pa.Array) -> pa.Array:
    """What is left of keys when only letters, marks and digits count, in lower case."""
    bare = replace_matches(pc.utf8_lower(keys), r"[^\p{L}\p{M}\p{N} ]", r"[^\p{L}\p{M}\p{N} ]+", "")
    return pc.utf8_trim(replace_matches(bare, "  ", " +", " "), " ")


def encode_values(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """(number of each row's value, -1 for null; the distinct values)."""
    encoded = pc.dictionary_encode(column).chunks  # they share one dictionary
    return pa.chunked_array([chunk.indices for chunk in encoded]).fill_null(-1).to_numpy(), encoded[
        0
    ].dictionary


def distinct_values(column: pa.ChunkedArray) -> list[str]:
    """The distinct values of a column, without null."""
    return pc.unique(column.drop_null()).to_pylist()


def is_number(value: str) -> bool:
    """Whether a cell reads as a number."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def mostly_digits(value: str) -> bool:
    """Whether a cell has more digits than letters and marks, as numbers and dates do."""
    kinds = [unicodedata.category(character)[0] for character in value]
    return kinds.count("N") > kinds.count("L") + kinds.count("M")


def is_text(column: pa.ChunkedArray) -> bool:
    """Whether most values of a column differ, and most hold at least as many letters as digits."""
    present = column.drop_null()
    if not pc.count_distinct(present).as_py() > 0.5 * len(present):
        return False
    sample = present[:1000].to_pylist()
    return sum(map(mostly_digits, sample)) < 0.5 * len(sample)


def is_label(column: pa.ChunkedArray) -> bool:
    """Whether a column holds a few repeated values."""
    present = column.drop_null()
    if pc.count_distinct(present[:10_000]).as_py() > MAX_CLASSES:
        return False
    return 2 <= pc.count_distinct(present).as_py() <= min(MAX_CLASSES, 0.5 * len(present))


def is_binary(column: pa.ChunkedArray) -> bool:
    """Whether a column holds 0 and 1 (or false and true) alone."""
    return all(value.strip().lower() in BINARY_VALUES for value in distinct_values(column))


def has_splits(table: pa.Table) -> bool:
    """Whether the file carries its own split: a column `split` of train / validation / test."""
    return "split" in table.column_names and {
        value.lower() for value in distinct_values(table["split"])
    } <= set(SPLIT_NAMES)


def check_columns(table: pa.Table, options: Options) -> None:
    """UserError with a line for each column that is asked for and not there."""
    asked = [
        ("text_column", options.text_column),
        ("group_column", options.group_column),
        *(("label_columns", name) for name in options.label_columns or ()),
    ]
    lines = [
        f"--{flag} is {name}, but the file has the columns {', '.join(table.column_names)}"
        for flag, name in asked
        if name is not None and name not in table.column_names
    ]
    if lines:
        raise UserError(*lines)


def detect_text_column(table: pa.Table) -> str:
    """The only candidate for the column with the texts."""
    candidates = [name for name in table.column_names if is_text(table[name])]
    if len(candidates) != 1:
        columns = ", ".join(table.column_names)
        found = (
            f"several candidates ({', '.join(candidates)})"
            if candidates
            else f"none among {columns}"
        )
        raise UserError(f"--text_column is needed: the file has {found}")
    return candidates[0]


def detect_label_columns(table: pa.Table, not_labels: set[str | None]) -> tuple[str, ...]:
    """One label column, or several 0/1 columns, where the file can be read in one way alone."""
    skipped = not_labels | ({"split"} if has_splits(table) else set())
    candidates = [
        name for name in table.column_names if name not in skipped and is_label(table[name])
    ]
    if len(candidates) == 1 or (candidates and all(is_binary(table[name]) for name in candidates)):
        return tuple(candidates)
    found = (
        f"several candidates ({', '.join(candidates)})"
        if candidates
        else f"none among {', '.join(table.column_names)}"
    )
    raise UserError(f"--label_columns is needed: the file has {found}")


def label_text(value: str) -> str | None:
    """A label cell as its name: ` 1.0` and `1` are both `1`; nothing for an empty cell or `nan`."""
    value = value.strip()
    if value == "" or value.lower() == "nan":
        return None
    return str(int(float(value))) if is_number(value) and float(value).is_integer() else value


def read_classes(column: pa.ChunkedArray, name: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the classes, numbers in their order, and each row's class id (-1 where it has none)."""
    numbers, values = encode_values(column)
    names = [label_text(value) for value in values.to_pylist()]
    classes = sorted({name for name in names if name is not None})
    if all(map(is_number, classes)):
        classes.sort(key=float)
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise UserError(
            f"--label_columns is {name} with {len(classes)} values, but needs 2 to {MAX_CLASSES}"
        )
    ids = np.array([classes.index(name) if name is not None else -1 for name in names] + [-1])
    return tuple(classes), ids[numbers]


def read_binary_column(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Each row's 0 or 1, -1 where it has none."""
    numbers, distinct = encode_values(column)
    values = distinct.to_pylist()
    known = [
        BINARY_VALUES.get(value.strip().lower()) if label_text(value) is not None else -1
        for value in values
    ]
    if None in known:
        raise UserError(
            f"--label_columns names {name}, which holds {values[known.index(None)]!r}, but several label "
            "columns must hold 0 and 1 alone"
        )
    return np.array([*known, -1])[numbers]


def read_task(table: pa.Table, names: tuple[str, ...]) -> tuple[Task, np.ndarray]:
    """The task, and each row's label: a class id [rows], or 0/1 [rows, labels]; -1 where it is missing."""
    if len(names) > 1:
        return Task(names, True), np.stack(
            [read_binary_column(table[name], name) for name in names], axis=1
        )
    classes, ids = read_classes(table[names[0]], names[0])
    return Task(classes, False), ids


def label_patterns(labels: np.ndarray) -> np.ndarray:
    """The number [rows] of each row's label, or of its combination of labels."""
    return labels if labels.ndim == 1 else labels @ (1 << np.arange(labels.shape[1]))


def read_files(options: Options) -> pa.Table:
    """The files of a run, one under the other; those of --validation_path and --test_path bring a column `split`."""
    table = read_file(options.dataset_path, "--dataset_path")
    given = {"validation": options.validation_path, "test": options.test_path}
    if not any(given.values()):
        return table
    if has_splits(table):
        raise UserError(
            f"--dataset_path is {options.dataset_path} with its own column split, so that neither "
            "--validation_path nor --test_path can be given"
        )
    parts = [table.append_column("split", pa.nulls(len(table), pa.large_string()))]
    for name, path in given.items():
        if path:
            part = read_file(path, f"--{name}_path")
            if missing := set(table.column_names) - set(part.column_names):
                raise UserError(
                    f"--{name}_path is {path}, but it lacks the columns {', '.join(sorted(missing))}"
                )
            part = part.select(table.column_names)
            parts.append(
                part.append_column(
                    "split", pa.repeat(pa.scalar(name, pa.large_string()), len(part))
                )
            )
    return pa.concat_tables(parts)


def given_split(table: pa.Table) -> np.ndarray:
    """Each row's place in SPLITS as the file has it, else that of training."""
    if not has_splits(table):
        return np.zeros(len(table), dtype=int)
    numbers, values = encode_values(table["split"])
    return np.array(
        [*(SPLITS.index(SPLIT_NAMES[value.lower()]) for value in values.to_pylist()), 0]
    )[numbers]


def complete_rows(
    table: pa.Table, text: str, group: str | None, labels: np.ndarray, path: str
) -> tuple:
    """(rows that have a text and every label, as `Labelled.rows`; mask of them)."""
    keys = map_chunks(lambda chunk: text_key(chunk.fill_null("")), table[text])
    missing = pc.equal(keys, "").to_numpy() | (labels.reshape(len(table), -1) < 0).any(axis=1)
    if missing.mean() > 0.5:
        raise UserError(
            f"--dataset_path is {path}, but {missing.sum()} of {len(table)} rows lack a text or a label"
        )
    if missing.any():
        log.warning(
            "%d rows without text or label are dropped, first row %d",
            missing.sum(),
            missing.argmax() + 2,
        )
    with ThreadPoolExecutor(1) as pool:
        numbers = pool.submit(encode_values, keys)
        loose = map_chunks(loose_key, keys)
        words = pc.add(map_chunks(lambda chunk: pc.count_substring(chunk, " "), keys), 1)
        columns = {"id": np.arange(len(table)), "key": numbers.result()[0]}
    del numbers, keys  # their texts are not needed while the loose ones are numbered
    columns |= {
        "loose": encode_values(loose)[0],
        "words": words,
        "pattern": label_patterns(labels),
        "split": given_split(table),
    }
    if group:
        columns["group"] = pc.fill_null(pc.utf8_trim_whitespace(table[group]), "")
    return pa.table(columns).filter(~missing), ~missing


def read_corpus(options: Options) -> LabelledCorpus:
    """Read the files and find their columns; UserError in one line where that is in doubt."""
    table = read_files(options)
    check_columns(table, options)
    group, text = options.group_column, options.text_column or detect_text_column(table)
    names = tuple(options.label_columns or detect_label_columns(table, {text, group}))
    task, labels = read_task(table, names)
    rows, complete = complete_rows(table, text, group, labels, options.dataset_path)
    return LabelledCorpus(table, text, names, task, rows, labels[complete])


def max_by_key(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Each row's greatest value [rows] among the rows with its key."""
    found = np.full(keys.max() + 1, values.min())
    np.maximum.at(found, keys, values)
    return found[keys]


def contradicting_rows(labelled: LabelledCorpus) -> np.ndarray:
    """Mask of the rows whose text carries another label elsewhere."""
    pattern, keys = labelled.column("pattern"), labelled.column("key")
    return max_by_key(pattern, keys) > -max_by_key(-pattern, keys)


def leaking_rows(labelled: LabelledCorpus) -> np.ndarray:
    """Mask of the rows whose text the file's own split also holds out: test goes before validation before training."""
    own = labelled.column("split")
    return own < max_by_key(own, labelled.column("key"))
