"""Splits without leakage, and their labels and tokens.

Models read the raw text. The normalized text is only a key: duplicates stay in one split, and
texts with contradicting labels are dropped.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold, MultilabelStratifiedShuffleSplit
from sklearn.model_selection import StratifiedKFold, train_test_split

from compression_config import Options
from corpus.column_choice import value_ids
from corpus.columns import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    LabeledCorpus,
    contradicting_rows,
    leaking_rows,
    mask_of,
    read_corpus,
)
from corpus.labels import list_names
from runtime.errors import UserError, escape_unprintable
from task import NO_LABEL, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

MIN_STRATUM_TEXTS = 10  # a smaller stratum of a class and a group joins those of its class

MIN_LABEL_ROWS = 3  # a label of so many rows is in every split

SMALL_TEST_ROWS = 20

CHUNK_ROWS = 10_000  # rows of a file on disk that are read together

# --- Splits ---


def drop_unusable_rows(corpus: LabeledCorpus) -> LabeledCorpus:
    """The corpus without contradicting texts and without leaks across the file's own splits.

    Contradictions are looked for first, and in all splits together: a text whose label in training
    differs from its label in test is in neither.
    """
    is_contradicting = contradicting_rows(corpus)
    if is_contradicting.any():
        texts = len(np.unique(corpus.column("key")[is_contradicting]))
        log.warning(
            "%d rows are dropped: their %d %s more than one label",
            is_contradicting.sum(),
            texts,
            "text has" if texts == 1 else "texts have",
        )
    is_leaking = leaking_rows(corpus, is_contradicting)
    if is_leaking.any():
        log.warning(
            "%d rows are dropped: their text is also in a held-out split of the file",
            is_leaking.sum(),
        )
    return corpus.filter(~(is_contradicting | is_leaking))


def group_ids(rows: pa.Table) -> np.ndarray:
    """An id [rows] of each row's group; 0 for all rows without `--group_column`."""
    if "group" not in rows.column_names:
        return np.zeros(len(rows), dtype=int)
    return value_ids(rows["group"])


def strata(corpus: LabeledCorpus) -> np.ndarray:
    """What a split stratifies by.

    Stratum ids [rows], one for each class and group; multi-label: 0/1 [rows, labels + groups].
    """
    groups = group_ids(corpus.rows)
    group_count = groups.max() + 1
    if corpus.task.multi_label:
        return np.hstack([corpus.labels, np.eye(group_count, dtype=int)[groups]])
    class_and_group = corpus.labels * group_count + groups
    class_only = -1 - corpus.labels  # negative, and so distinct from every id of class and group
    is_small = np.bincount(class_and_group)[class_and_group] < MIN_STRATUM_TEXTS
    return np.where(is_small, class_only, class_and_group)


def too_few_error(corpus: LabeledCorpus, purpose: str) -> UserError:
    """The error for a split that the rarest class has too few texts for."""
    counts = np.bincount(corpus.labels, minlength=len(corpus.task.labels))
    rarest = counts.argmin()
    label = corpus.task.labels[rarest]
    return UserError(
        f"--label_columns: label {label} has {counts[rarest]} texts, too few {purpose}; add rows "
        "with it, or delete its rows"
    )


def held_out_counts(counts: np.ndarray, fraction: float) -> np.ndarray:
    """How many texts of each class to hold out, for `counts` [classes] of its texts: about
    `fraction`, but at least one on each side, and none of a single text."""
    rounded = np.round(fraction * counts).astype(int)
    return np.where(counts < 2, 0, np.clip(rounded, 1, np.maximum(counts - 1, 1)))


def is_rare(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Whether a class has too few texts for a random split to have one of them on each side."""
    return min(fraction, 1 - fraction) * counts < 1


def held_out_mask(texts: LabeledCorpus, fraction: float, seed: int) -> np.ndarray:
    """Mask [texts] of a stratified random `fraction` of distinct texts.

    A label of at least two texts has one on each side.
    """
    positions = np.arange(len(texts.rows))
    if texts.task.multi_label:
        splitter = MultilabelStratifiedShuffleSplit(1, test_size=fraction, random_state=seed)
        _, held_out = next(splitter.split(positions, strata(texts)))
        return with_every_label(mask_of(held_out, len(positions)), texts.labels, seed)
    counts = np.bincount(texts.labels, minlength=len(texts.task.labels))
    rare_classes = is_rare(counts, fraction)
    is_held_out = np.zeros(len(positions), dtype=bool)
    generator = np.random.default_rng(seed)
    for class_id in np.flatnonzero(rare_classes):
        own = np.flatnonzero(texts.labels == class_id)
        count = held_out_counts(counts, fraction)[class_id]
        is_held_out[generator.choice(own, count, replace=False)] = True
    common = np.flatnonzero(~rare_classes[texts.labels])
    if len(common):
        stratum_ids = strata(texts)[common]
        _, stratum_sizes = np.unique(stratum_ids, return_counts=True)
        if stratum_sizes.min() < 2:  # scikit-learn needs two texts: stratify by class only
            stratum_ids = texts.labels[common]
        _, held_out = train_test_split(
            common, test_size=fraction, random_state=seed, stratify=stratum_ids
        )
        is_held_out[held_out] = True
    return is_held_out


def with_every_label(is_held_out: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The mask [texts] with texts moved to the other side for labels that this side lacks.

    `labels` [texts, labels] are 0/1. A text is moved only if its labels stay on its own side.
    """
    is_held_out = is_held_out.copy()
    generator = np.random.default_rng(seed)
    for label in labels.sum(axis=0).argsort():
        for side in (True, False):
            if (labels[is_held_out == side, label] == 1).any():
                continue
            others = is_held_out != side
            is_spare = (labels[others].sum(axis=0) > 1) | (labels == 0)
            movable = np.flatnonzero(others & (labels[:, label] == 1) & is_spare.all(axis=1))
            if len(movable):
                is_held_out[generator.choice(movable)] = side
    return is_held_out


def fold_mask(texts: LabeledCorpus, fold: int, num_folds: int, seed: int) -> np.ndarray:
    """Mask [texts] of the distinct texts in the test split of `fold` (from 0)."""
    if texts.task.multi_label:
        splitter = MultilabelStratifiedKFold(num_folds, shuffle=True, random_state=seed)
    else:
        if np.bincount(texts.labels).min() < num_folds:
            raise too_few_error(texts, f"for --num_folds {num_folds}")
        splitter = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    folds = list(splitter.split(np.zeros(len(texts.rows)), strata(texts)))
    _, held_out = folds[fold]
    return mask_of(held_out, len(texts.rows))


def assign_splits(corpus: LabeledCorpus, options: Options, fold: int | None) -> np.ndarray:
    """The position in SPLITS [rows] of each row.

    The file's own splits are kept. A test or validation split that the file lacks is drawn from
    the distinct texts of its training rows.
    """
    keys = corpus.column("key")
    file_splits = corpus.column("split")
    is_first = ~pd.Series(keys).duplicated().to_numpy()  # the first row of each distinct text
    split_of_key = np.full(keys.max() + 1, TRAIN)
    split_of_key[keys] = file_splits
    validation_fraction = options.validation_fraction
    if not (file_splits == TEST).any():
        texts = corpus.filter(is_first & (file_splits == TRAIN))
        if fold is None:
            test_fraction = options.test_fraction
            is_held_out = held_out_mask(texts, test_fraction, options.seed)
        else:
            test_fraction = 1 / options.num_folds
            is_held_out = fold_mask(texts, fold, options.num_folds, options.seed)
        split_of_key[texts.column("key")[is_held_out]] = TEST
        validation_fraction /= 1 - test_fraction
    if not (file_splits == VALIDATION).any():
        texts = corpus.filter(is_first & (split_of_key[keys] == TRAIN))
        is_held_out = held_out_mask(texts, validation_fraction, options.seed)
        split_of_key[texts.column("key")[is_held_out]] = VALIDATION
    return split_of_key[keys]


def label_column(corpus: LabeledCorpus) -> pa.Array:
    """The labels in the format of Hugging Face models: class ids, or lists of 0.0 and 1.0."""
    if not corpus.task.multi_label:
        return pa.array(corpus.labels, pa.int64())
    flat = pa.array(corpus.labels.astype(float).ravel())
    rows = pa.FixedSizeListArray.from_arrays(flat, corpus.labels.shape[1])
    return rows.cast(pa.list_(pa.float64()))


def build_split(corpus: LabeledCorpus, mask: np.ndarray) -> Dataset:
    """The rows that a mask selects, with `id`, `text`, `label` and, if set, `group`."""
    selected = corpus.filter(mask)
    columns = {
        "id": selected.rows["id"],
        "text": corpus.texts(mask).combine_chunks(),
        "label": label_column(selected),
    }
    if "group" in selected.rows.column_names:
        columns["group"] = selected.rows["group"]
    return Dataset(pa.table(columns).combine_chunks())


def sample_rows(split: Dataset, fraction: float, seed: int) -> Dataset:
    """A random `fraction` of the rows, in their order."""
    count = round(fraction * len(split))
    drawn = np.random.default_rng(seed).choice(len(split), count, replace=False)
    return split.select(np.sort(drawn)).flatten_indices()


def split_corpus(corpus: LabeledCorpus, options: Options, fold: int | None = None) -> DatasetDict:
    """`train`, `validation` and `test` of usable rows, with `id`, `text`, `label` (and `group`).

    With `--num_folds`, `fold` (from 0) selects the fold that is the test split.
    """
    positions = assign_splits(corpus, options, fold)
    splits = DatasetDict()
    for position, name in enumerate(SPLITS):
        splits[name] = build_split(corpus, positions == position)
    if options.data_fraction < 1:
        splits["train"] = sample_rows(splits["train"], options.data_fraction, options.seed)
    check_splits(splits, corpus.task)
    return splits


def load_splits(options: Options) -> tuple[DatasetDict, Task, dict[str, Any]]:
    """The splits of the file, its task, and the columns that were read."""
    corpus = read_corpus(options)
    splits = split_corpus(drop_unusable_rows(corpus), options)
    columns = {"text_column": corpus.text_column, "label_columns": corpus.label_columns}
    return splits, corpus.task, columns


def count_labels(split: Dataset, task: Task) -> np.ndarray:
    """The number of rows [labels] of a split with each label."""
    labels = label_array(split)
    if task.multi_label:
        return labels.sum(axis=0).astype(int)
    return np.bincount(labels, minlength=len(task.labels))


def check_splits(splits: DatasetDict, task: Task) -> None:
    """Raise UserError if a split lacks a label, which then could not be learned or measured.

    A label of one or two rows may lack in the held-out splits, with a note, if these have at least
    two labels.
    """
    for name, split in splits.items():
        if not len(split):
            raise UserError(
                f"--dataset_path: the file has too few texts for a {name} split; add rows"
            )
    counts = {name: count_labels(split, task) for name, split in splits.items()}
    rows_of_label = sum(counts.values())
    for name, split in splits.items():
        missing = np.flatnonzero(counts[name] == 0)
        has_two_labels = len(task.labels) - len(missing) >= 2
        for label_id in missing:
            rows = rows_of_label[label_id]
            if name != "train" and rows < MIN_LABEL_ROWS and has_two_labels:
                continue
            flag = "--data_fraction" if name == "train" else f"--{name}_fraction"
            raise UserError(
                f"--dataset_path: label {task.labels[label_id]} has {rows} rows, but none in the "
                f"{name} split of {len(split)} rows; add rows with it, delete its rows, or raise "
                f"{flag} if the split is drawn at random"
            )
    log_rare_labels(counts, task)
    log_small_test(splits)


def log_rare_labels(counts: dict[str, np.ndarray], task: Task) -> None:
    """A note that names the labels that the held-out splits lack."""
    for split in ("validation", "test"):
        missing = [task.labels[i] for i in np.flatnonzero(counts[split] == 0)]
        if missing:
            log.warning(
                "note: the %s split has no row with the label %s, which has only one or two rows; "
                "its F1 there is not part of macro-F1",
                split,
                escape_unprintable(list_names(missing)),
            )


def log_small_test(splits: DatasetDict) -> None:
    """A note if a single test row changes the results by several points."""
    rows = len(splits["test"])
    if rows < SMALL_TEST_ROWS:
        log.warning(
            "note: the test split has %d rows, so that each of them is %.0f points of accuracy: "
            "the results say little about new texts; add rows, or give --num_folds",
            rows,
            100 / rows,
        )


# --- Labels and tokens of a split ---


def labeled_rows(split: Dataset) -> Dataset:
    """The labeled rows of a split; unlabeled rows come after them."""
    labels = label_array(split)
    if labels.ndim == 2:
        labels = labels[:, 0]
    return split.select(range(int((labels != NO_LABEL).sum())))


def label_array(split: Dataset) -> np.ndarray:
    """Labels as class ids [rows], or as 0.0/1.0 [rows, labels]."""
    labels = split.select_columns("label").with_format("arrow")[:]["label"].combine_chunks()
    if pa.types.is_nested(labels.type):
        return pc.list_flatten(labels).to_numpy().reshape(len(labels), -1)
    return labels.to_numpy()


def tokenize(
    rows: dict[str, list], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list]:
    """The `input_ids` and `attention_mask` of a batch of rows."""
    return dict(tokenizer(rows["text"], truncation=True, max_length=max_length))


def write_tokens(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, out_path: Path
) -> None:
    """Write `input_ids`, `attention_mask`, `label` and, if present, `teacher_logits` of a split."""
    out_path.parent.mkdir(parents=True, exist_ok=True)
    targets = ("label", "teacher_logits")
    split.map(
        partial(tokenize, tokenizer=tokenizer, max_length=max_length),
        batched=True,
        remove_columns=[name for name in split.column_names if name not in targets],
        desc="tokenize",
        load_from_cache_file=False,
        cache_file_name=str(out_path),
    )


def read_tokens(path: Path) -> Dataset:
    """The rows that `write_tokens` wrote, on disk, with `label` renamed to `labels`."""
    return Dataset.from_file(str(path)).rename_column("label", "labels")


def token_lengths(tokenized: Dataset) -> list[int]:
    """The number of tokens of each row."""
    rows = tokenized.select_columns("input_ids").with_format("arrow")
    lengths = []
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        lengths += pc.list_value_length(chunk["input_ids"]).to_pylist()
    return lengths
