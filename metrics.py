"""How far a measured number can be trusted: bootstrap intervals, paired tests, calibration, decision thresholds.

Rows that agree in label and decisions are one pattern, so a bootstrap of rows is a multinomial draw of pattern counts.
Classes are those of `num_labels`: one that a draw lacks and nobody predicts counts as F1 = 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray
from scipy.stats import binom, t
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    multilabel_confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

from task import Task, decide, probabilities


def count_patterns(num_labels: int, *columns: ndarray) -> tuple[ndarray, list[ndarray]]:
    """Counts [patterns] of the distinct joint rows of `columns`, and each column there as booleans [patterns, labels].

    A column holds class ids [rows], which become one-hot, or 0/1 [rows, labels].
    """
    one_hot = np.eye(num_labels, dtype=bool)
    joint = np.hstack(
        [one_hot[column] if column.ndim == 1 else column.astype(bool) for column in columns]
    )
    distinct, counts = np.unique(joint, axis=0, return_counts=True)
    return counts, np.split(distinct, len(columns), axis=1)


def resample(counts: ndarray, draws: int, seed: int) -> ndarray:
    """Counts [draws, patterns] of as many rows as there are, drawn with replacement; whole numbers, as floats."""
    rows = counts.sum()
    return np.random.default_rng(seed).multinomial(rows, counts / rows, size=draws).astype(float)


def f1_of_counts(hits: ndarray, errors: ndarray) -> ndarray:
    """2 TP / (2 TP + FP + FN) of counts `hits` (TP) and `errors` (FP + FN); 0 where the denominator is 0."""
    return 2 * hits / np.maximum(2 * hits + errors, 1)


def macro_f1_of_counts(counts: ndarray, labels: ndarray, decisions: ndarray) -> ndarray:
    """F1 averaged over labels, for each draw of `counts` [..., patterns]; the others are [patterns, labels]."""
    return f1_of_counts(counts @ (labels & decisions), counts @ (labels ^ decisions)).mean(axis=-1)


def accuracy_of_counts(counts: ndarray, labels: ndarray, decisions: ndarray) -> ndarray:
    """Share of rows with every label right, for each draw of `counts` [..., patterns]."""
    return counts @ (labels == decisions).all(axis=1) / counts.sum(axis=-1)


def percentile_interval(values: ndarray) -> tuple[float, float]:
    """Efron & Tibshirani (1993), section 13.3: the 2.5th and 97.5th percentile of `values` [draws]."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap(
    labels: ndarray, decisions: ndarray, num_labels: int, seed: int, draws: int = 2000
) -> dict:
    """95 % intervals of macro-F1 and accuracy, as fractions, over the test rows that might have been drawn."""
    counts, (truth, decided) = count_patterns(num_labels, labels, decisions)
    drawn, found = resample(counts, draws, seed), {}
    for name, metric in (("macro_f1", macro_f1_of_counts), ("accuracy", accuracy_of_counts)):
        found[f"{name}_low"], found[f"{name}_high"] = percentile_interval(
            metric(drawn, truth, decided)
        )
    return found


def paired_bootstrap(
    labels: ndarray,
    decisions: ndarray,
    reference_decisions: ndarray,
    num_labels: int,
    seed: int,
    draws: int = 2000,
) -> dict:
    """Macro-F1 minus the reference's on the rows as they are, and its 95 % interval; each draw serves both models."""
    counts, (truth, decided, reference) = count_patterns(
        num_labels, labels, decisions, reference_decisions
    )
    drawn = resample(counts, draws, seed)
    low, high = percentile_interval(
        macro_f1_of_counts(drawn, truth, decided) - macro_f1_of_counts(drawn, truth, reference)
    )
    delta = macro_f1_of_counts(counts, truth, decided) - macro_f1_of_counts(
        counts, truth, reference
    )
    return {"delta_macro_f1": float(delta), "delta_macro_f1_low": low, "delta_macro_f1_high": high}


def mcnemar(right: ndarray, reference_right: ndarray) -> float:
    """Fagerland, Lydersen & Laake (2013): two-sided mid-p value of two models being right equally often, of booleans
    [rows]; 1 where no row tells the models apart."""
    fewer, more = sorted(
        [int((right & ~reference_right).sum()), int((reference_right & ~right).sum())]
    )
    point = binom.pmf(fewer, fewer + more, 0.5)
    if fewer == more:
        return float(1 - point / 2) if more else 1.0
    return float(2 * binom.cdf(fewer, fewer + more, 0.5) - point)


def calibration_gap(confidence: ndarray, right: ndarray, bins: int) -> float:
    """Guo et al. (2017), equation 3: |mean confidence - share right| of each bin (low, high], weighted by its rows."""
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    return float(np.abs(np.bincount(bin_of, weights=confidence - right)).sum() / len(confidence))


def expected_calibration_error(
    probabilities: ndarray, labels: ndarray, multi_label: bool, bins: int = 15
) -> float:
    """Calibration gap of the most probable class against class ids [rows]; with 0/1 [rows, labels], that of each
    label's own probability against its rate, averaged over labels. A fraction."""
    if multi_label:
        return float(
            np.mean(
                [
                    calibration_gap(*pair, bins)
                    for pair in zip(probabilities.T, labels.T, strict=True)
                ]
            )
        )
    return calibration_gap(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins)


def brier_score(probabilities: ndarray, labels: ndarray, multi_label: bool) -> float:
    """Brier (1950): squared error of probabilities, mean over rows. Three or more classes: summed over classes, in
    [0, 2]. Two: the second's alone, half that sum; 0/1 `labels` [rows, labels]: each label's, averaged; in [0, 1]."""
    num_labels = probabilities.shape[1]
    outcomes = labels if multi_label else np.eye(num_labels)[labels]
    per_row = ((probabilities - outcomes) ** 2).sum(axis=1)
    return float(per_row.mean() / (num_labels if multi_label or num_labels == 2 else 1))


def interval_of_mean(
    values: list[float], test_share: float
) -> tuple[float, float | None, float | None, float | None]:
    """Mean, sample standard deviation, and the ends of Nadeau & Bengio's (2003) corrected resampled 95 % t interval.

    `values` [K] come of K random splits with `test_share` = test rows / training rows; one value has no interval.
    """
    mean, runs = float(np.mean(values)), len(values)
    if runs == 1:
        return mean, None, None, None
    deviation = float(np.std(values, ddof=1))
    half = float(t.ppf(0.975, runs - 1) * deviation * np.sqrt(1 / runs + test_share))
    return mean, deviation, mean - half, mean + half


def best_threshold(scores: ndarray, positives: ndarray, both_classes: bool) -> float:
    """The threshold in (0, 1) whose decision `scores > threshold` has the best F1 of the boolean `positives` [rows],
    or of positives and negatives averaged: 0.5 or midway between neighbouring scores, of equals the nearest to 0.5."""
    distinct = np.unique(scores)
    candidates = np.append(0.5, (distinct[:-1] + distinct[1:]) / 2)
    candidates = candidates[
        (candidates > 0) & (candidates < 1)
    ]  # midway between 1 and its neighbour rounds to 1
    candidates = candidates[np.argsort(np.abs(candidates - 0.5), kind="stable")]
    order = np.argsort(scores)
    negative = np.searchsorted(
        scores[order], candidates, side="right"
    )  # rows decided negative, of each candidate
    missed = np.append(0, np.cumsum(positives[order]))[negative]
    hits, rejections = positives.sum() - missed, negative - missed
    errors = len(scores) - hits - rejections
    quality = f1_of_counts(hits, errors) + (f1_of_counts(rejections, errors) if both_classes else 0)
    return float(
        candidates[quality.round(12).argmax()]
    )  # rounded: equal sums of fractions differ in the last bit


def tune_thresholds(probabilities: ndarray, labels: ndarray, multi_label: bool) -> list[float]:
    """One threshold of best macro-F1 on the second of two classes (`labels` ids [rows]), or one of best F1 a label
    (`labels` 0/1 [rows, labels]); a probability above its threshold decides yes."""
    scores, positives = probabilities.astype(float), labels.astype(bool)
    if multi_label:
        return [best_threshold(*pair, False) for pair in zip(scores.T, positives.T, strict=True)]
    assert scores.shape[1] == 2, scores.shape
    return [best_threshold(scores[:, 1], positives, True)]


def macro_f1(labels: np.ndarray, decisions: np.ndarray) -> float:
    """The headline metric: F1 of each class or label, averaged without weights; 0 where one is never predicted."""
    return float(f1_score(labels, decisions, average="macro", zero_division=0))


def agreement(decisions: np.ndarray, teacher_decisions: np.ndarray) -> float:
    """Share of rows on which all decisions are the teacher's."""
    return float(all_correct(teacher_decisions, decisions).mean())


def quality_metrics(logits: np.ndarray, labels: np.ndarray, task: Task) -> dict[str, Any]:
    """Accuracy, macro-F1, ROC-AUC, Matthews correlation, calibration, confusion, labels never predicted; and F1,
    precision and recall of each class or label, `f1.<label>`, without suffix of the second of two classes. Accuracy
    of multi-label rows counts rows with every label right; their Matthews correlation is the mean over labels."""
    decisions, scores = decide(logits, task.multi_label), probabilities(logits, task.multi_label)
    binary = len(task.labels) == 2 and not task.multi_label
    columns = zip(labels.T, decisions.T, strict=True) if task.multi_label else [(labels, decisions)]
    found = {
        "accuracy": accuracy_score(labels, decisions),
        "macro_f1": macro_f1(labels, decisions),
        "roc_auc": roc_auc_score(
            labels, scores[:, 1] if binary else scores, average="macro", multi_class="ovr"
        ),
        "mcc": np.mean([matthews_corrcoef(*pair) for pair in columns]),
        "ece": expected_calibration_error(scores, labels, task.multi_label),
        "brier": brier_score(scores, labels, task.multi_label),
    }
    per_label = precision_recall_fscore_support(
        labels, decisions, labels=range(len(task.labels)), average=None, zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1"), per_label[:3], strict=True):
        found |= {name: values[1]} if binary else {}
        found |= {
            f"{name}.{label}": value for label, value in zip(task.labels, values, strict=True)
        }
    found = {name: float(value) for name, value in found.items()} | {
        "confusion": confusion_counts(labels, decisions, task)
    }
    missed = never_predicted(decisions, task)
    return found | ({"never_predicted": missed} if missed else {})


def confusion_counts(labels: np.ndarray, decisions: np.ndarray, task: Task) -> list:
    """Counts [true class, decided class]; in multi-label [label, truth, decision] of 0/1."""
    if task.multi_label:
        return multilabel_confusion_matrix(labels, decisions).tolist()
    return confusion_matrix(labels, decisions, labels=range(len(task.labels))).tolist()


def never_predicted(decisions: np.ndarray, task: Task) -> str:
    """Names of the labels that no row is given."""
    given = (
        decisions.sum(axis=0)
        if task.multi_label
        else np.bincount(decisions, minlength=len(task.labels))
    )
    return ", ".join(label for label, number in zip(task.labels, given, strict=True) if not number)


def confidence_intervals(
    labels: np.ndarray, decisions: np.ndarray, reference: np.ndarray, task: Task, seed: int
) -> dict:
    """95 % bootstrap intervals; and the difference from the teacher's (`reference`) decisions, tested in pairs."""
    count = len(task.labels)
    right, reference_right = (all_correct(labels, decided) for decided in (decisions, reference))
    return {
        **bootstrap(labels, decisions, count, seed),
        **paired_bootstrap(labels, decisions, reference, count, seed),
        "mcnemar_p": mcnemar(right, reference_right),
    }


def all_correct(labels: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """Mask of the rows on which every decision is right."""
    same = labels == decisions
    return same.all(axis=1) if same.ndim == 2 else same


def slice_metrics(
    test: pd.DataFrame, labels: np.ndarray, decisions: np.ndarray
) -> dict[str, float]:
    """Rows, macro-F1 and accuracy of each value of `group` and `rows`, such as `macro_f1[group=female]`; labels that
    neither occur nor are decided in a slice are left out of its mean."""
    found = {}
    for column in ("group", "rows"):
        for value, rows in test.groupby(column).indices.items() if column in test else ():
            name = f"[{column}={value}]"
            found |= {
                f"rows{name}": len(rows),
                f"accuracy{name}": accuracy_score(labels[rows], decisions[rows]),
                f"macro_f1{name}": f1_score(
                    labels[rows], decisions[rows], average="macro", zero_division=np.nan
                ),
            }
    return {name: float(value) for name, value in found.items()}
