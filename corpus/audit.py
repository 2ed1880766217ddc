"""What is wrong with a labelled file, found before anything is trained on it.

Counts are of rows that have a text and every label, in the order of the file; nothing here changes a row.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import DatasetDict
from scipy.special import kolmogorov
from transformers import PreTrainedTokenizerBase

from corpus.columns import (
    LabelledCorpus,
    contradicting_rows,
    distinct_values,
    is_label,
    leaking_rows,
    map_chunks,
    mask_of,
    nfc,
)

CHARACTERS = {
    "no_break_space": "\u00a0",
    "left_to_right_mark": "\u200e",
    "newline": "\n",
    "zero_width": "\u200b-\u200d\u2060\ufeff",
}

MAX_TOKENIZED = 5_000  # texts whose tokens are counted, evenly spaced over the file

DRIFT_MAX_P, DRIFT_MIN_GAP, DRIFT_MIN_SIDE = (
    0.001,
    0.05,
    0.01,
)  # a drift: this unlikely, this large, with so much on either side


def duplicate_counts(labelled: LabelledCorpus) -> dict[str, int]:
    """Rows that repeat an earlier one: letter by letter; by key; with case and punctuation ignored too."""
    keys = labelled.column("key")
    repeated = labelled.texts(np.bincount(keys)[keys] > 1)
    columns = {
        "exact": repeated,
        "normalized": labelled.rows["key"],
        "near": labelled.rows["loose"],
    }
    return {
        name: len(column) - pc.count_distinct(column).as_py() for name, column in columns.items()
    }


def character_counts(texts: pa.ChunkedArray) -> dict[str, dict[str, int]]:
    """Rows with blanks at an edge or another NFC form, and rows and occurrences of characters that do not show."""
    edges = map_chunks(lambda chunk: pc.not_equal(pc.utf8_trim_whitespace(chunk), chunk), texts)
    changed = map_chunks(lambda chunk: pc.not_equal(nfc(chunk), chunk), texts)
    found = {
        "edge_blanks": {"rows": count_true(edges)},
        "changed_by_nfc": {"rows": count_true(changed)},
    }
    pattern = "[" + "".join(CHARACTERS.values()) + "]"
    marked = texts.filter(map_chunks(lambda chunk: pc.match_substring_regex(chunk, pattern), texts))
    for name, character in CHARACTERS.items():
        numbers = pc.count_substring_regex(marked, f"[{character}]")
        found[name] = {
            "rows": count_true(pc.greater(numbers, 0)),
            "characters": pc.sum(numbers).as_py() or 0,
        }
    return found


def count_true(mask: pa.ChunkedArray) -> int:
    """How many are true."""
    return pc.sum(mask).as_py() or 0


def near_equal_values(table: pa.Table, text: str) -> dict[str, list[list[str]]]:
    """Column -> groups of its values that differ in case, blanks or Unicode form alone."""
    found = {}
    for name in table.column_names:
        if name == text or not is_label(table[name]):
            continue
        alike = defaultdict(list)
        for value in sorted(distinct_values(table[name])):
            alike[" ".join(unicodedata.normalize("NFKC", value).casefold().split())].append(value)
        if groups := [values for values in alike.values() if len(values) > 1]:
            found[name] = groups
    return found


def indicators(labelled: LabelledCorpus) -> np.ndarray:
    """0/1 [rows, labels], also for classes."""
    if labelled.task.multi_label:
        return labelled.labels
    return np.eye(len(labelled.task.labels), dtype=np.int8)[labelled.labels]


def change_point(flags: np.ndarray) -> tuple[int, float]:
    """(rows before the likeliest change of a 0/1 sequence's rate, the probability of such a sequence without one).

    The change maximises the likelihood of two rates (Hinkley & Hinkley 1970); the probability is that of the
    largest cumulative deviation from the mean, a Brownian bridge if order means nothing (Kolmogorov's distribution).
    """
    n, total, before = len(flags), int(flags.sum()), np.arange(1, len(flags))
    ones = np.cumsum(flags, dtype=np.int64)[:-1]
    margin = max(1, int(DRIFT_MIN_SIDE * n))
    likelihood = log_likelihood(ones, before) + log_likelihood(total - ones, n - before)
    at = margin - 1 + int(likelihood[margin - 1 : n - margin].argmax())
    deviation = np.abs(ones - before * (total / n)).max() / max(flags.std() * np.sqrt(n), 1e-12)
    return at + 1, float(kolmogorov(deviation))


def log_likelihood(ones: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of `ones` successes in `rows` draws at their own rate."""
    rate = np.clip(ones / rows, 1e-12, 1 - 1e-12)
    return ones * np.log(rate) + (rows - ones) * np.log1p(-rate)


def label_drift(labelled: LabelledCorpus) -> list[dict[str, Any]]:
    """Labels whose rate depends on the position in the file, the widest gap first: `last_row` before the change
    (counted from 1), the rates `before` and `after`, and the probability `p` of that without a drift."""
    found, ids = [], labelled.column("id")
    for name, flags in zip(labelled.task.labels, indicators(labelled).T, strict=True):
        at, p = change_point(flags)
        before, after = float(flags[:at].mean()), float(flags[at:].mean())
        if p < DRIFT_MAX_P and abs(before - after) >= DRIFT_MIN_GAP:
            found.append(
                {
                    "label": name,
                    "last_row": int(ids[at - 1]) + 1,
                    "before": before,
                    "after": after,
                    "p": p,
                }
            )
    found.sort(key=lambda drift: -abs(drift["before"] - drift["after"]))
    binary = len(labelled.task.labels) == 2 and not labelled.task.multi_label
    return (
        [drift for drift in found if drift["label"] == labelled.task.labels[1]] if binary else found
    )


def summarize(numbers: np.ndarray) -> dict[str, float]:
    """Mean, 95th percentile and maximum."""
    return {
        "mean": float(numbers.mean()),
        "p95": float(np.percentile(numbers, 95)),
        "max": float(numbers.max()),
    }


def token_counts(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, float]:
    """Tokens per text, the share of texts cut at `max_length`, and the share of tokens that are unknown."""
    encoded = tokenizer(texts)["input_ids"]
    lengths = np.array([len(ids) for ids in encoded])
    unknown = (
        sum(ids.count(tokenizer.unk_token_id) for ids in encoded)
        if tokenizer.unk_token_id is not None
        else 0
    )
    own = lengths.sum() - len(texts) * tokenizer.num_special_tokens_to_add()
    return summarize(lengths) | {
        "truncated": float((lengths > max_length).mean()),
        "unknown": unknown / max(int(own), 1),
        "texts": len(texts),
    }


def token_sample(labelled: LabelledCorpus) -> list[str]:
    """At most 5,000 texts, evenly spaced over the file."""
    step = -(-len(labelled.rows) // MAX_TOKENIZED)
    return labelled.texts(np.arange(len(labelled.rows)) % step == 0).to_pylist()


def leak_counts(labelled: LabelledCorpus, splits: DatasetDict) -> dict[str, int]:
    """Rows whose text the file's own split repeats in one that is held out; and, in the splits as used, held-out
    rows whose text is in training with other case or punctuation."""
    found, ids = {"same_text": int(leaking_rows(labelled).sum())}, labelled.column("id")
    loose = {
        name: labelled.column("loose")[np.searchsorted(ids, split.data.column("id").to_numpy())]
        for name, split in splits.items()
    }
    trained = mask_of(loose["train"], labelled.column("loose").max() + 1)
    for name in ("validation", "test"):
        found[f"near_identical_{name}"] = int(trained[loose[name]].sum())
    return found


def audit_corpus(
    labelled: LabelledCorpus,
    splits: DatasetDict,
    tokenizers: dict[str, PreTrainedTokenizerBase],
    max_length: int,
) -> dict[str, Any]:
    """Everything found, as plain JSON values; `tokenizers` are named `teacher` and `student`."""
    rows, total = labelled.rows, len(labelled.table)
    against, sample = contradicting_rows(labelled), token_sample(labelled)
    rates = indicators(labelled).mean(axis=0)
    return {
        "rows": total,
        "incomplete": total - len(rows),
        "copies": duplicate_counts(labelled),
        "contradictions": {
            "texts": len(np.unique(labelled.column("key")[against])),
            "rows": int(against.sum()),
        },
        "characters": character_counts(labelled.texts()),
        "near_equal_values": near_equal_values(labelled.table, labelled.text),
        "labels": dict(zip(labelled.task.labels, rates.tolist(), strict=True)),
        "words": summarize(labelled.column("words")),
        "tokens": {name: token_counts(sample, one, max_length) for name, one in tokenizers.items()},
        "leaks": leak_counts(labelled, splits),
        "splits": splits.num_rows,
        "order_drift": label_drift(labelled),
    }


def drift_text(drift: dict[str, Any]) -> str:
    """A drift in words."""
    return f"label {drift['label']}: {drift['before']:.1%} up to row {drift['last_row']}, {drift['after']:.1%} after it"


def length_text(numbers: dict[str, float]) -> str:
    """Lengths in words."""
    text = (
        f"mean {numbers['mean']:.1f}, 95 % up to {numbers['p95']:.0f}, longest {numbers['max']:.0f}"
    )
    if "truncated" in numbers:
        text += (
            f"; {numbers['truncated']:.1%} of texts cut, {numbers['unknown']:.2%} of tokens unknown"
        )
    return text


def audit_lines(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, how much, what is done about it) for the table; what was not found is left out."""
    total = found["rows"]
    share: Callable[[int], str] = lambda number: f"{number} ({number / total:.1%})"  # noqa: E731
    marks, repeated, against = found["characters"], found["copies"], found["contradictions"]
    said = [
        ("rows", str(total), ""),
        ("without text or label", share(found["incomplete"]), "dropped"),
        ("copies, letter by letter", share(repeated["exact"]), "kept in one split"),
        (
            "copies but for blanks and Unicode form",
            share(repeated["normalized"]),
            "kept in one split",
        ),
        ("copies but for case and punctuation too", share(repeated["near"]), "they stay"),
        (
            "with contradicting labels",
            f"{against['texts']} texts, {share(against['rows'])}",
            "dropped",
        ),
        (
            "of a held-out text, in the file's own split",
            share(found["leaks"]["same_text"]),
            "dropped",
        ),
        *(
            (
                f"{name} rows nearly as in training",
                str(found["leaks"][f"near_identical_{name}"]),
                "kept",
            )
            for name in ("validation", "test")
        ),
        *(
            (
                name.replace("_", " ")
                + (f" ({counts['characters']} times)" if "characters" in counts else ""),
                share(counts["rows"]),
                "kept",
            )
            for name, counts in marks.items()
        ),
    ]
    said = [line for line in said if not line[1].startswith("0")]
    said += [
        (f"nearly equal values of {name}", ", ".join(map(repr, values)), "kept apart")
        for name, groups in found["near_equal_values"].items()
        for values in groups
    ]
    said += [
        ("labels", ", ".join(f"{name} {rate:.1%}" for name, rate in found["labels"].items()), ""),
        ("words", length_text(found["words"]), ""),
    ]
    said += [
        (f"tokens of the {name}", length_text(numbers), "")
        for name, numbers in found["tokens"].items()
    ]
    said += [
        ("order drift", drift_text(drift), "measured on both sides" if not i else "")
        for i, drift in enumerate(found["order_drift"])
    ]
    return [
        *said,
        ("splits", ", ".join(f"{rows} {name}" for name, rows in found["splits"].items()), ""),
    ]


def audit_table(found: dict[str, Any]) -> str:
    """The findings as aligned text, one a line."""
    said = audit_lines(found)
    wide = [max(len(line[i]) for line in said) for i in range(2)]
    return "\n".join(
        f"{what:{wide[0]}}  {much:{wide[1]}}  {done}".rstrip() for what, much, done in said
    )
