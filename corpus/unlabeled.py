"""Unlabeled texts for distillation: those of `--unlabeled_path` and augmented training texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from pandas.util import hash_array

from corpus.input_files import DEFAULT_READING, ReadOptions
from corpus.readers import stream_texts
from corpus.text_keys import text_key
from runtime.errors import UserError, escape_unprintable
from task import NO_LABEL

log = logging.getLogger(__name__)

DROP_RATE = 0.1  # fraction of words that augmentation drops
REPLACE_RATE = 0.15  # fraction of the remaining words that it replaces
SPLICE_RATE = 0.3  # fraction of texts that it splices with another text


def augment(texts: Sequence[str], variants: int, seed: int) -> Iterator[str]:
    """Yield `variants` random variants of each text; empty ones are skipped."""
    rng = Random(seed)
    vocabulary = []  # every occurrence of a word, so that frequent words are drawn more often
    for text in texts:
        vocabulary += text.split()
    for _ in range(variants):
        for text in texts:
            variant = augment_text(text, texts, vocabulary, rng)
            if variant:
                yield variant


def augment_text(text: str, texts: Sequence[str], vocabulary: Sequence[str], rng: Random) -> str:
    """One variant of a text.

    Its beginning may be spliced with the end of another text; then words are dropped, or replaced
    by words of `vocabulary`.
    """
    words = text.split()
    if rng.random() < SPLICE_RATE and words:
        donor = rng.choice(texts).split()
        beginning = words[: rng.randint(1, len(words))]
        words = beginning + donor[rng.randint(0, len(donor)) :]
    words = [word for word in words if rng.random() >= DROP_RATE]
    variant = []
    for word in words:
        if rng.random() < REPLACE_RATE:
            variant.append(rng.choice(vocabulary))
        else:
            variant.append(word)
    return " ".join(variant)


def key_hashes(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """64-bit hashes [rows] of the text keys, the same in every process."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    keys = text_key(texts.fill_null("").cast(pa.string()))
    return hash_array(keys.to_numpy(zero_copy_only=False), categorize=False)


def first_occurrences(hashes: np.ndarray, seen: set[int]) -> np.ndarray:
    """Mask of the first occurrence of each hash that is not in `seen`; adds all hashes to it."""
    is_first = np.zeros(len(hashes), dtype=bool)
    for position, key_hash in enumerate(hashes.tolist()):
        is_first[position] = key_hash not in seen
        seen.add(key_hash)
    return is_first


def unlabeled_sources(
    path: str | None,
    column: str,
    train: Dataset,
    variants: int,
    seed: int,
    reading: ReadOptions,
) -> Iterator[pa.ChunkedArray]:
    """Yield the texts of `--unlabeled_path` in parts, then those that `--augment` adds."""
    if path:
        yield from stream_texts(path, "--unlabeled_path", column, reading)
    if variants:
        texts = list(augment(train[:]["text"], variants, seed))
        yield pa.chunked_array([pa.array(texts, pa.string())])


class UnlabeledFilter:
    """Selects the unlabeled texts that are new: in no split, not seen before, and not empty.

    A text of the validation or test split would leak into training.
    """

    def __init__(self, splits: DatasetDict):
        hashes = {}
        for name, split in splits.items():
            hashes[name] = key_hashes(split.with_format("arrow")[:]["text"])
        self.held_out = np.concatenate([hashes["validation"], hashes["test"]])
        self.seen = set(hashes["train"].tolist())
        self.empty_hash = key_hashes(pa.array([""]))[0]
        self.texts = 0
        self.held_out_texts = 0
        self.duplicates = 0
        self.empty_texts = 0

    def select(self, texts: pa.ChunkedArray) -> np.ndarray:
        """Mask of the new texts; updates the counts."""
        hashes = key_hashes(texts)
        is_empty = hashes == self.empty_hash
        is_held_out = np.isin(hashes, self.held_out)
        is_repeated = ~first_occurrences(hashes, self.seen)
        is_duplicate = is_repeated & ~is_held_out & ~is_empty
        self.texts += len(texts)
        self.empty_texts += int(is_empty.sum())
        self.held_out_texts += int(is_held_out.sum())
        self.duplicates += int(is_duplicate.sum())
        return ~(is_empty | is_held_out | is_duplicate)


def write_unlabeled(
    path: str | None,
    column: str,
    splits: DatasetDict,
    out_path: Path,
    augment: int = 0,
    seed: int = 0,
    reading: ReadOptions = DEFAULT_READING,
) -> Dataset:
    """Write the new texts of `--unlabeled_path` and `--augment` as rows with the label NO_LABEL.

    `augment` is the number of variants of each training text. The file is read in parts and the
    rows stay on disk. `id` is the position of a text among all that were read. UserError if no
    text is new.
    """
    train = splits["train"].select_columns(["id", "text", "label"])
    schema = train.features.arrow_schema
    label = NO_LABEL
    if isinstance(train[0]["label"], list):
        label = [float(NO_LABEL)] * len(train[0]["label"])
    new_texts = UnlabeledFilter(splits)
    with pa.ipc.new_stream(out_path, schema) as stream:
        for texts in unlabeled_sources(path, column, train, augment, seed, reading):
            first_id = new_texts.texts
            mask = new_texts.select(texts)
            ids = first_id + np.flatnonzero(mask)
            labels = pa.array([label] * len(ids), schema.field("label").type)
            selected = texts.filter(pa.array(mask)).combine_chunks()
            stream.write_batch(pa.record_batch([ids, selected, labels], schema))
    unlabeled = Dataset.from_file(str(out_path))
    sources = []
    if path:
        sources.append(path)
    if augment:
        sources.append("augmented training texts")
    log.info(
        "%s: %d texts, %d skipped: %d of the validation or test split, %d duplicates, %d empty",
        escape_unprintable(" and ".join(sources)),
        new_texts.texts,
        new_texts.texts - len(unlabeled),
        new_texts.held_out_texts,
        new_texts.duplicates,
        new_texts.empty_texts,
    )
    if not len(unlabeled):
        if path:
            raise UserError(f"--unlabeled_path is {path}, but it contains no new text")
        raise UserError(f"--augment is {augment}, but the training texts yield no new text")
    return unlabeled
