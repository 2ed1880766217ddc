"""From a labelled file to leakage-free splits, and from their texts to tokens.

The text that models read is the raw text; the normalised text is only a key, by which copies of one text are kept
on one side of every split and texts with contradicting labels are dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold, MultilabelStratifiedShuffleSplit
from pandas.util import hash_array
from sklearn.model_selection import StratifiedKFold, train_test_split
from transformers import PreTrainedTokenizerBase

from compression_config import Options, UserError
from corpus.columns import (
    SPLITS,
    LabelledCorpus,
    contradicting_rows,
    encode_values,
    leaking_rows,
    mask_of,
    read_corpus,
    text_key,
)
from corpus.readers import stream_texts
from losses import NO_LABEL
from task import Task

log = logging.getLogger(__name__)

DROP_RATE, REPLACE_RATE, SPLICE_RATE = (
    0.1,
    0.15,
    0.3,
)  # shares: of words, of the words left, of texts


def augment(texts: Sequence[str], copies: int, seed: int) -> Iterator[str]:
    """`copies` variants of each text; a blank one is left out."""
    rng, words = Random(seed), [word for text in texts for word in text.split()]
    for _ in range(copies):
        for text in texts:
            if variant := augment_text(text.split(), texts, words, rng):
                yield variant


def augment_text(own: list[str], texts: Sequence[str], words: Sequence[str], rng: Random) -> str:
    """One variant: the beginning of the text, perhaps the end of another, then word by word dropped or replaced."""
    if rng.random() < SPLICE_RATE and own:
        other = rng.choice(texts).split()
        own = own[: rng.randint(1, len(own))] + other[rng.randint(0, len(other)) :]
    kept = [word for word in own if rng.random() >= DROP_RATE]
    return " ".join(rng.choice(words) if rng.random() < REPLACE_RATE else word for word in kept)


CHUNK = 10_000  # rows of a file on disk that are looked at together

SMALLEST_STRATUM = (
    10  # texts of one class and group that are spread on their own; fewer go with the class
)


def drop_unusable_rows(labelled: LabelledCorpus) -> LabelledCorpus:
    """The rows to learn from and measure on: no text with two labels, none that leaks over the file's own split."""
    leaks = leaking_rows(labelled)
    if leaks.any():
        log.warning(
            "%d rows are dropped: their text is also in a held-out split of the file", leaks.sum()
        )
    labelled = labelled.where(~leaks)
    against = contradicting_rows(labelled)
    if against.any():
        texts = len(np.unique(labelled.column("key")[against]))
        log.warning(
            "%d rows are dropped: their %d %s more than one label",
            against.sum(),
            texts,
            "text has" if texts == 1 else "texts have",
        )
    return labelled.where(~against)


def group_numbers(rows: pa.Table) -> np.ndarray:
    """The number of each row's group, 0 for all where no group is asked for."""
    return (
        encode_values(rows["group"])[0]
        if "group" in rows.column_names
        else np.zeros(len(rows), dtype=int)
    )


def strata(labelled: LabelledCorpus) -> np.ndarray:
    """What a split spreads evenly: [rows] class with group, or [rows, labels and groups] of 0/1 in multi-label."""
    groups = group_numbers(labelled.rows)
    if labelled.task.multi_label:
        return np.hstack([labelled.labels, np.eye(groups.max() + 1, dtype=int)[groups]])
    fine = labelled.labels * (groups.max() + 1) + groups
    rare = np.bincount(fine)[fine] < SMALLEST_STRATUM
    return np.where(rare, -1 - labelled.labels, fine)


def too_few(labelled: LabelledCorpus, what: str) -> UserError:
    """The refusal of a split for which the rarest class has too few texts."""
    counts = np.bincount(labelled.labels, minlength=len(labelled.task.labels))
    rarest = counts.argmin()
    name = labelled.task.labels[rarest]
    return UserError(f"--label_columns: label {name} has {counts[rarest]} texts, too few {what}")


def held_out_mask(texts: LabelledCorpus, fraction: float, seed: int) -> np.ndarray:
    """Mask of `fraction` of distinct texts, stratified."""
    even, everything = strata(texts), np.arange(len(texts.rows))
    if texts.task.multi_label:
        splitter = MultilabelStratifiedShuffleSplit(1, test_size=fraction, random_state=seed)
        held = next(splitter.split(everything, even))[1]
    else:
        _, least = np.unique(even, return_counts=True)
        if least.min() < 2:  # a class so rare that some of it stands alone: stratify by class
            even = texts.labels
        try:
            held = train_test_split(
                everything, test_size=fraction, random_state=seed, stratify=even
            )[1]
        except ValueError as error:
            raise too_few(texts, f"to hold out {fraction:.0%} of {len(texts.rows)}") from error
    return mask_of(held, len(everything))


def fold_mask(texts: LabelledCorpus, fold: int, options: Options) -> np.ndarray:
    """Mask of the distinct texts that are the test split of fold 0, 1, ..."""
    kind = MultilabelStratifiedKFold if texts.task.multi_label else StratifiedKFold
    if not texts.task.multi_label and np.bincount(texts.labels).min() < options.num_folds:
        raise too_few(texts, f"for --num_folds {options.num_folds}")
    splitter = kind(options.num_folds, shuffle=True, random_state=options.seed)
    folds = list(splitter.split(np.zeros(len(texts.rows)), strata(texts)))
    return mask_of(folds[fold][1], len(texts.rows))


def assign_splits(labelled: LabelledCorpus, options: Options, fold: int | None) -> np.ndarray:
    """0 (train), 1 (validation) or 2 (test) for each row: the file's own where given, the rest drawn by text."""
    keys, own = labelled.column("key"), labelled.column("split")
    split_of = np.zeros(keys.max() + 1, dtype=int)  # by key
    split_of[keys] = own
    first = np.zeros(keys.max() + 1, dtype=int)
    first[keys[::-1]] = np.arange(len(keys))[::-1]
    one_each = mask_of(first[keys], len(keys))
    share = options.validation_fraction
    if not (own == 2).any():
        rest = labelled.where(one_each & (own == 0))
        held = (
            held_out_mask(rest, options.test_fraction, options.seed)
            if fold is None
            else fold_mask(rest, fold, options)
        )
        split_of[rest.column("key")[held]] = 2
        share /= 1 - (options.test_fraction if fold is None else 1 / options.num_folds)
    if not (own == 1).any():
        rest = labelled.where(one_each & (split_of[keys] == 0))
        split_of[rest.column("key")[held_out_mask(rest, share, options.seed)]] = 1
    return split_of[keys]


def label_column(labelled: LabelledCorpus) -> pa.Array:
    """The labels as models take them: class ids, or lists of 0.0/1.0."""
    if not labelled.task.multi_label:
        return pa.array(labelled.labels, pa.int64())
    values = pa.array(labelled.labels.astype(float).ravel())
    return pa.FixedSizeListArray.from_arrays(values, labelled.labels.shape[1]).cast(
        pa.list_(pa.float64())
    )


def build_split(labelled: LabelledCorpus, chosen: np.ndarray) -> Dataset:
    """The rows of a mask as models take them."""
    part = labelled.where(chosen)
    columns = {
        "id": part.rows["id"],
        "text": labelled.texts(chosen).combine_chunks(),
        "label": label_column(part),
    }
    groups = {"group": part.rows["group"]} if "group" in part.rows.column_names else {}
    return Dataset(pa.table(columns | groups).combine_chunks())


def split_corpus(
    labelled: LabelledCorpus, options: Options, fold: int | None = None
) -> DatasetDict:
    """`train`, `validation`, `test` of usable rows, each with id, text, label (and group); of one fold where given."""
    chosen = assign_splits(labelled, options, fold)
    parts = (build_split(labelled, chosen == number) for number in range(len(SPLITS)))
    splits = DatasetDict(zip(SPLITS, parts, strict=True))
    if options.data_fraction < 1:
        count = round(options.data_fraction * len(splits["train"]))
        drawn = np.random.default_rng(options.seed).choice(
            len(splits["train"]), count, replace=False
        )
        splits["train"] = splits["train"].select(np.sort(drawn)).flatten_indices()
    check_splits(splits, labelled.task)
    return splits


def load_splits(options: Options) -> tuple[DatasetDict, Task, dict]:
    """The file as `train`, `validation`, `test`; the task it states; and the columns that were read."""
    labelled = read_corpus(options)
    splits = split_corpus(drop_unusable_rows(labelled), options)
    return (
        splits,
        labelled.task,
        {"text_column": labelled.text, "label_columns": labelled.label_columns},
    )


def check_splits(splits: DatasetDict, task: Task) -> None:
    """Refuse splits in which a class cannot be learnt or measured."""
    for name, part in splits.items():
        labels = label_array(part)
        found = (labels.sum(axis=0) > 0).sum() if task.multi_label else len(np.unique(labels))
        if found < len(task.labels):
            raise UserError(
                f"--dataset_path: {found} of {len(task.labels)} labels occur in the {name} split of "
                f"{len(part)} rows; give it a larger share, or more rows"
            )


def key_hashes(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """64-bit hashes [rows] of the normalised texts, the same in every process."""
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    return hash_array(
        text_key(texts.fill_null("").cast(pa.string())).to_numpy(zero_copy_only=False),
        categorize=False,
    )


def first_occurrences(seen: set[int], hashes: np.ndarray) -> np.ndarray:
    """Mask of the hashes that `seen` lacked, the first of equal ones; `seen` gets them all."""
    new = np.zeros(len(hashes), dtype=bool)
    for place, one in enumerate(hashes.tolist()):
        new[place] = one not in seen
        seen.add(one)
    return new


def augmented_texts(train: Dataset, copies: int, seed: int) -> pa.ChunkedArray:
    """The texts that `--augment` adds."""
    return pa.chunked_array([pa.array(augment(train[:]["text"], copies, seed), pa.string())])


def write_unlabeled(
    path: str | None,
    column: str,
    splits: DatasetDict,
    out_path: Path,
    augment: int = 0,
    seed: int = 0,
) -> Dataset:
    """The texts of `--unlabeled_path`, read part by part, and `augment` variants of each training text, as rows that
    lie on disk and carry NO_LABEL.

    A text that also stands in the splits, or stood above, is left out: one of validation or test would leak.
    """
    train = splits["train"].select_columns(["id", "text", "label"])
    schema, label = train.features.arrow_schema, splits["train"][0]["label"]
    blank = [float(NO_LABEL)] * len(label) if isinstance(label, list) else NO_LABEL
    known = {
        name: key_hashes(split.with_format("arrow")[:]["text"]) for name, split in splits.items()
    }
    held_out, seen = (
        np.concatenate([known["validation"], known["test"]]),
        set(known["train"].tolist()),
    )
    counts = dict.fromkeys(("read", "empty", "held out", "copies"), 0)
    empty = key_hashes(pa.array([""]))[0]
    sources = chain(
        stream_texts(path, "--unlabeled_path", column) if path else (),
        [augmented_texts(splits["train"], augment, seed)] if augment else (),
    )
    with pa.ipc.new_stream(out_path, schema) as stream:
        for texts in sources:
            hashes = key_hashes(texts)
            empties, leaks = hashes == empty, np.isin(hashes, held_out)
            copies = ~first_occurrences(seen, hashes) & ~leaks & ~empties
            chosen = ~(empties | leaks | copies)
            ids, kept = (
                np.flatnonzero(chosen) + counts["read"],
                texts.filter(pa.array(chosen)).combine_chunks(),
            )
            stream.write_batch(
                pa.record_batch([ids, kept, pa.array([blank] * len(kept), schema.types[2])], schema)
            )
            found = (len(texts), empties.sum(), leaks.sum(), copies.sum())
            counts = {
                name: count + int(more)
                for (name, count), more in zip(counts.items(), found, strict=True)
            }
    unlabeled = Dataset.from_file(str(out_path))
    name = " and ".join(filter(None, [path, "variants of the training texts" if augment else ""]))
    log.info(
        "%s: %d texts, %d left out: %d stand in validation or test, %d stood before, %d are empty",
        name,
        counts["read"],
        counts["read"] - len(unlabeled),
        counts["held out"],
        counts["copies"],
        counts["empty"],
    )
    if not len(unlabeled):
        raise UserError(
            f"--unlabeled_path is {path}, but holds no text that is new"
            if path
            else f"--augment is {augment}, but the training texts give no text that is new"
        )
    return unlabeled


def labelled_rows(split: Dataset) -> Dataset:
    """The rows of a split that carry a label; those of `--unlabeled_path` stand behind them."""
    labels = label_array(split)
    return split.select(
        range(int(((labels if labels.ndim == 1 else labels[:, 0]) != NO_LABEL).sum()))
    )


def label_array(split: Dataset) -> np.ndarray:
    """Labels as [rows] of class ids, or [rows, labels] of 0.0/1.0."""
    values = split.select_columns("label").with_format("arrow")[:]["label"].combine_chunks()
    several = pa.types.is_nested(values.type)
    return (
        pc.list_flatten(values).to_numpy().reshape(len(values), -1)
        if several
        else values.to_numpy()
    )


def write_tokens(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, out_path: Path
) -> None:
    """Write the `input_ids` and `attention_mask` of every row, with its label and what a loss compares it to."""
    out_path.parent.mkdir(parents=True, exist_ok=True)
    dropped = [name for name in split.column_names if name not in ("label", "teacher_logits")]
    split.map(
        lambda rows: dict(tokenizer(rows["text"], truncation=True, max_length=max_length)),
        batched=True,
        remove_columns=dropped,
        desc="tokenize",
        load_from_cache_file=False,
        cache_file_name=str(out_path),
    )


def read_tokens(path: Path) -> Dataset:
    """`input_ids`, `attention_mask` and `labels` (with `teacher_logits` where the split has them), on disk."""
    return Dataset.from_file(str(path)).rename_column("label", "labels")


def token_lengths(tokenized: Dataset) -> list[int]:
    """The number of tokens of each row."""
    rows = tokenized.select_columns("input_ids").with_format("arrow")
    return [
        count
        for start in range(0, len(rows), CHUNK)
        for count in pc.list_value_length(rows[start : start + CHUNK]["input_ids"]).to_pylist()
    ]
