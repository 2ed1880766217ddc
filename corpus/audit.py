"""Audit a labeled file before training: duplicates, contradictions, odd characters, leaks, drift.

Nothing here changes a row. Unless stated otherwise, counts are of complete rows: those with a text
and every label.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import kolmogorov

from corpus.column_choice import distinct_values, is_label
from corpus.columns import LabeledCorpus, contradicting_rows, leaking_rows, mask_of
from corpus.text_keys import map_chunks, normalize_nfc
from runtime.errors import escape_unprintable

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

CHARACTERS = {  # key in audit.json -> the characters, as a regular expression in RE2 syntax
    "no_break_space": "[\u00a0]",
    "left_to_right_mark": "[\u200e]",
    "newline": "[\n]",
    "zero_width": "[\u200b-\u200d\u2060\ufeff]",
    "replacement_character": "\ufffd",
    "html_entities": "&(?:[A-Za-z]{2,8}[0-9]{0,2}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});",
}

MAX_TOKENIZED = 5_000  # texts that are tokenized, evenly spaced over the file

DRIFT_MAX_P = 0.001  # largest p-value of a drift that is reported
DRIFT_MIN_GAP = 0.05  # smallest difference of the rates before and after it
DRIFT_MIN_SIDE = 0.01  # smallest fraction of the rows on either side of it

MAX_RATES = 20  # labels whose rates are in the table

TINY = 1e-12  # keeps logarithms and quotients finite


def duplicate_counts(corpus: LabeledCorpus) -> dict[str, int]:
    """Rows that repeat an earlier one: `exact`; `normalized` (same key); `near` (same near key)."""
    keys = corpus.column("key")
    is_repeated = np.bincount(keys)[keys] > 1
    columns = {
        "exact": corpus.texts(is_repeated),  # only these can be exact duplicates
        "normalized": corpus.rows["key"],
        "near": corpus.rows["near_key"],
    }
    counts = {}
    for name, column in columns.items():
        counts[name] = len(column) - pc.count_distinct(column).as_py()
    return counts


def has_edge_blanks(texts: pa.Array) -> pa.Array:
    """Whether each text starts or ends with white space."""
    return pc.not_equal(pc.utf8_trim_whitespace(texts), texts)


def is_changed_by_nfc(texts: pa.Array) -> pa.Array:
    """Whether each text differs from its Unicode normalization form C."""
    return pc.not_equal(normalize_nfc(texts), texts)


def has_listed_character(texts: pa.Array) -> pa.Array:
    """Whether each text contains one of CHARACTERS."""
    return pc.match_substring_regex(texts, "|".join(CHARACTERS.values()))


def character_counts(texts: pa.ChunkedArray) -> dict[str, dict[str, int]]:
    """Rows with edge blanks or not in NFC; rows and occurrences of each of CHARACTERS."""
    counts = {
        "edge_blanks": {"rows": count_true(map_chunks(has_edge_blanks, texts))},
        "changed_by_nfc": {"rows": count_true(map_chunks(is_changed_by_nfc, texts))},
    }
    selected = texts.filter(map_chunks(has_listed_character, texts))
    for name, pattern in CHARACTERS.items():
        occurrences = pc.count_substring_regex(selected, pattern)
        counts[name] = {
            "rows": count_true(pc.greater(occurrences, 0)),
            "characters": pc.sum(occurrences).as_py() or 0,
        }
    return counts


def count_true(mask: pa.ChunkedArray) -> int:
    """The number of true values; 0 for an empty mask."""
    return pc.sum(mask).as_py() or 0


def near_equal_values(table: pa.Table, text_column: str) -> dict[str, list[list[str]]]:
    """Column -> groups of values that differ only in case, white space or Unicode form (NFKC)."""
    groups_of_column = {}
    for name in table.column_names:
        if name == text_column or not is_label(table[name]):
            continue
        values_of_key = defaultdict(list)
        for value in sorted(distinct_values(table[name])):
            folded = unicodedata.normalize("NFKC", value).casefold()
            values_of_key[" ".join(folded.split())].append(value)
        groups = [values for values in values_of_key.values() if len(values) > 1]
        if groups:
            groups_of_column[name] = groups
    return groups_of_column


def label_indicators(corpus: LabeledCorpus) -> np.ndarray:
    """Labels as 0/1 [rows, labels]; class ids become one-hot."""
    if corpus.task.multi_label:
        return corpus.labels
    return np.eye(len(corpus.task.labels), dtype=np.int8)[corpus.labels]


def change_point(flags: np.ndarray) -> tuple[int, float]:
    """Number of rows before the likeliest change in the rate of 1s in `flags` [rows], and its
    p-value.

    The change maximizes the likelihood of two rates (Hinkley & Hinkley, 1970). The p-value is that
    of the largest cumulative deviation from the mean, which is the supremum of a Brownian bridge
    (Kolmogorov's distribution) if the order is random.
    """
    rows = len(flags)
    total = int(flags.sum())
    rows_before = np.arange(1, rows)
    ones_before = np.cumsum(flags, dtype=np.int64)[:-1]
    likelihood = log_likelihood(ones_before, rows_before) + log_likelihood(
        total - ones_before, rows - rows_before
    )
    margin = max(1, int(DRIFT_MIN_SIDE * rows))  # rows on each side, at least
    last_row = margin + int(likelihood[margin - 1 : rows - margin].argmax())
    deviation = np.abs(ones_before - rows_before * (total / rows)).max()
    scale = max(flags.std() * np.sqrt(rows), TINY)
    return last_row, float(kolmogorov(deviation / scale))


def log_likelihood(ones: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Log-likelihood of `ones` successes in `rows` Bernoulli trials at the rate `ones / rows`."""
    rate = np.clip(ones / rows, TINY, 1 - TINY)
    return ones * np.log(rate) + (rows - ones) * np.log1p(-rate)


def drift_gap(drift: dict[str, Any]) -> float:
    """The absolute difference of the rates before and after a drift."""
    return abs(drift["before"] - drift["after"])


def label_drift(corpus: LabeledCorpus) -> list[dict[str, Any]]:
    """Labels whose rate changes along the file, largest change first; for two classes, only the
    second.

    Each has the `label`, `last_row` before the change (counted from 1), the rates `before` and
    `after`, and the p-value `p` of `change_point`.
    """
    ids = corpus.column("id")
    drifts = []
    for label, flags in zip(corpus.task.labels, label_indicators(corpus).T, strict=True):
        if corpus.task.is_binary and label != corpus.task.labels[1]:
            continue
        rows_before, p = change_point(flags)
        drift = {
            "label": label,
            "last_row": int(ids[rows_before - 1]) + 1,
            "before": float(flags[:rows_before].mean()),
            "after": float(flags[rows_before:].mean()),
            "p": p,
        }
        if p < DRIFT_MAX_P and drift_gap(drift) >= DRIFT_MIN_GAP:
            drifts.append(drift)
    return sorted(drifts, key=drift_gap, reverse=True)


def length_summary(lengths: np.ndarray) -> dict[str, float]:
    """Mean, 95th percentile and maximum."""
    return {
        "mean": float(lengths.mean()),
        "p95": float(np.percentile(lengths, 95)),
        "max": float(lengths.max()),
    }


def token_counts(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, float]:
    """Summary of the tokens per text, special tokens included.

    `truncated` is the fraction of texts longer than `max_length`; `unknown` is the fraction of
    tokens that are unknown, special tokens excluded.
    """
    encoded = tokenizer(texts)["input_ids"]
    lengths = np.array([len(ids) for ids in encoded])
    unknown = 0
    if tokenizer.unk_token_id is not None:
        unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded)
    special = len(texts) * tokenizer.num_special_tokens_to_add()
    return length_summary(lengths) | {
        "truncated": float((lengths > max_length).mean()),
        "unknown": unknown / max(int(lengths.sum()) - special, 1),
        "texts": len(texts),
    }


def token_sample(corpus: LabeledCorpus) -> list[str]:
    """At most MAX_TOKENIZED texts, evenly spaced over the file."""
    rows = len(corpus.rows)
    step = math.ceil(rows / MAX_TOKENIZED)
    return corpus.texts(np.arange(rows) % step == 0).to_pylist()


def leak_counts(corpus: LabeledCorpus, splits: DatasetDict) -> dict[str, int]:
    """Held-out texts that also occur in another split.

    `same_text` counts rows of the file's own splits that a later split repeats, without
    contradicting ones (these are dropped). `near_identical_*` count rows of the final splits whose
    text is a near-duplicate of a training text.
    """
    ids = corpus.column("id")
    near_keys = corpus.column("near_key")
    keys_of_split = {}
    for name, split in splits.items():
        positions = np.searchsorted(ids, split.data.column("id").to_numpy())
        keys_of_split[name] = near_keys[positions]
    is_in_training = mask_of(keys_of_split["train"], near_keys.max() + 1)
    return {
        "same_text": int(leaking_rows(corpus, contradicting_rows(corpus)).sum()),
        "near_identical_validation": int(is_in_training[keys_of_split["validation"]].sum()),
        "near_identical_test": int(is_in_training[keys_of_split["test"]].sum()),
    }


def contradiction_counts(corpus: LabeledCorpus) -> dict[str, int]:
    """Distinct texts that occur with several labels, and the rows of these texts."""
    is_contradicting = contradicting_rows(corpus)
    return {
        "texts": len(np.unique(corpus.column("key")[is_contradicting])),
        "rows": int(is_contradicting.sum()),
    }


def audit_corpus(
    corpus: LabeledCorpus,
    splits: DatasetDict,
    tokenizers: dict[str, PreTrainedTokenizerBase],
    max_length: int,
) -> dict[str, Any]:
    """All findings as JSON values; `tokenizers` are those of the `teacher` and the `student`.

    `rows` counts the rows of the file; the keys are those of audit.json.
    """
    sample = token_sample(corpus)
    tokens = {}
    for name, tokenizer in tokenizers.items():
        tokens[name] = token_counts(sample, tokenizer, max_length)
    rates = label_indicators(corpus).mean(axis=0).tolist()
    return {
        "columns": {"text": corpus.text_column, "labels": list(corpus.label_columns)},
        "rows": len(corpus.table),
        "incomplete": len(corpus.table) - len(corpus.rows),
        "copies": duplicate_counts(corpus),
        "contradictions": contradiction_counts(corpus),
        "characters": character_counts(corpus.texts()),
        "near_equal_values": near_equal_values(corpus.table, corpus.text_column),
        "labels": dict(zip(corpus.task.labels, rates, strict=True)),
        "words": length_summary(corpus.column("words")),
        "tokens": tokens,
        "leaks": leak_counts(corpus, splits),
        "splits": splits.num_rows,
        "order_drift": label_drift(corpus),
    }


class AuditLine(NamedTuple):
    """One line of the audit table: a finding, its amount, and what the run does about it."""

    finding: str
    amount: str
    action: str


CHARACTER_FINDINGS = {  # key in audit.json -> the words of the table
    "edge_blanks": "leading or trailing white space",
    "changed_by_nfc": "not in Unicode NFC",
    "no_break_space": "no-break spaces",
    "left_to_right_mark": "left-to-right marks",
    "newline": "newlines",
    "zero_width": "zero-width characters",
    "replacement_character": "replacement characters U+FFFD, left by a wrong decoding",
    "html_entities": "HTML entities such as &amp;",
}


def problem_lines(audit: dict[str, Any]) -> list[AuditLine]:
    """The problems that occur in at least one row."""
    duplicates = audit["copies"]
    contradictions = audit["contradictions"]
    leaks = audit["leaks"]
    contradicting = f"contradicting labels ({contradictions['texts']} texts)"
    problems = [
        ("rows without text or label", audit["incomplete"], "dropped"),
        ("exact duplicates", duplicates["exact"], "kept in one split"),
        ("duplicates after normalization", duplicates["normalized"], "kept in one split"),
        ("near-duplicates (case and punctuation ignored)", duplicates["near"], "kept"),
        (contradicting, contradictions["rows"], "dropped"),
        ("leaks across the file's own splits", leaks["same_text"], "dropped"),
        (
            "near-duplicates of training rows in validation",
            leaks["near_identical_validation"],
            "kept",
        ),
        ("near-duplicates of training rows in test", leaks["near_identical_test"], "kept"),
    ]
    for name, counts in audit["characters"].items():
        finding = CHARACTER_FINDINGS[name]
        if "characters" in counts:
            finding += f" ({counts['characters']} in total)"
        problems.append((finding, counts["rows"], "kept"))
    lines = []
    for finding, rows, action in problems:
        if rows > 0:
            lines.append(AuditLine(finding, f"{rows} ({rows / audit['rows']:.1%})", action))
    return lines


def drift_text(drift: dict[str, Any]) -> str:
    """The rates of a label before and after a drift."""
    return (
        f"label {drift['label']}: {drift['before']:.1%} up to row {drift['last_row']}, "
        f"{drift['after']:.1%} after it"
    )


def length_text(summary: dict[str, float]) -> str:
    """A summary of lengths in words or tokens."""
    text = (
        f"mean {summary['mean']:.1f}, 95th percentile {summary['p95']:.0f}, "
        f"maximum {summary['max']:.0f}"
    )
    if "truncated" in summary:
        text += (
            f"; {summary['truncated']:.1%} of texts truncated, "
            f"{summary['unknown']:.2%} of tokens unknown"
        )
    return text


def label_rates_text(rates: dict[str, float]) -> str:
    """The rate of each label; of more than MAX_RATES labels, those of the most frequent ones."""
    shown = list(rates.items())
    if len(rates) > MAX_RATES:
        shown = sorted(shown, key=itemgetter(1), reverse=True)[:MAX_RATES]
    text = ", ".join(f"{label} {rate:.1%}" for label, rate in shown)
    others = len(rates) - len(shown)
    if others:
        rarest = min(rates, key=rates.get)
        text += f" and {others} more, the rarest {rarest} {rates[rarest]:.2%}"
    return text


def audit_lines(audit: dict[str, Any]) -> list[AuditLine]:
    """The lines of the audit table; problems that do not occur are omitted.

    Control characters of labels and of column names are escaped.
    """
    columns = audit["columns"]
    lines = [
        AuditLine("rows", str(audit["rows"]), ""),
        AuditLine("text column", columns["text"], ""),
        AuditLine("label columns", ", ".join(columns["labels"]), ""),
        *problem_lines(audit),
    ]
    for column, groups in audit["near_equal_values"].items():
        for values in groups:
            quoted = ", ".join(repr(value) for value in values)
            lines.append(
                AuditLine(f"near-equal values of {column}", quoted, "kept as different values")
            )
    lines.append(AuditLine("label rates", label_rates_text(audit["labels"]), ""))
    lines.append(AuditLine("words per text", length_text(audit["words"]), ""))
    for name, summary in audit["tokens"].items():
        lines.append(AuditLine(f"tokens per text ({name})", length_text(summary), ""))
    action = "test results also given for each side"  # of the widest drift, which is the first
    for drift in audit["order_drift"]:
        lines.append(AuditLine("label drift along the file", drift_text(drift), action))
        action = ""
    sizes = [f"{rows} {split}" for split, rows in audit["splits"].items()]
    lines.append(AuditLine("splits", ", ".join(sizes), ""))
    return [AuditLine(*map(escape_unprintable, line)) for line in lines]


def audit_table(audit: dict[str, Any]) -> str:
    """The lines of the audit as aligned text."""
    lines = audit_lines(audit)
    finding_width = max(len(line.finding) for line in lines)
    amount_width = max(len(line.amount) for line in lines)
    rows = []
    for finding, amount, action in lines:
        row = f"{finding:{finding_width}}  {amount:{amount_width}}  {action}"
        rows.append(row.rstrip())
    return "\n".join(rows)
