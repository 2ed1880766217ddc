"""The quality of a model on a labeled file: figures with intervals, thresholds, worst errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray
from sklearn.metrics import precision_recall_fscore_support

from metrics import (
    BOOTSTRAP_DRAWS,
    accuracy_of_counts,
    confusion_counts,
    count_patterns,
    f1_of_counts,
    macro_f1_of_counts,
    percentile_interval,
)
from task import Task

BLOCK_VALUES = 2**24  # pattern counts that are drawn at a time, to bound the memory
THRESHOLDS = tuple(step / 20 for step in range(1, 20))
FEW_ROWS = 100  # fewer rows have rough intervals
NUM_ERRORS = 10


@dataclass(frozen=True)
class Predictions:
    """A model on labeled rows: labels and decisions as class ids [rows] or 0/1 [rows, labels], and
    probabilities [rows, labels]."""

    task: Task
    labels: ndarray
    decisions: ndarray
    probabilities: ndarray


# --- Figures with intervals ---


def correlation(covariance: ndarray, label_variance: ndarray, variance: ndarray) -> ndarray:
    """Matthews correlation from three sums of the same shape; 0 if a variance is 0."""
    product = label_variance * variance
    root = np.sqrt(np.where(product > 0, product, 1))
    return np.where(product > 0, covariance / root, 0)


def matthews_of_counts(
    counts: ndarray, labels: ndarray, decisions: ndarray, *, multi_label: bool
) -> ndarray:
    """Matthews correlation [...] of pattern counts [..., patterns]; multi-label: its mean over
    labels.

    `labels` and `decisions` are booleans [patterns, labels]. Gorodkin (2004), equation 8: with
    `s` rows, `c` correct ones, and `t`, `p` rows of each class and predictions of it,
    (c s - sum(t p)) / sqrt((s^2 - sum(p^2)) (s^2 - sum(t^2))).
    """
    rows = counts.sum(axis=-1)
    of_label = counts @ labels
    predicted = counts @ decisions
    if not multi_label:
        correct = counts @ (labels & decisions).any(axis=1)
        covariance = correct * rows - (of_label * predicted).sum(axis=-1)
        label_variance = rows**2 - (of_label**2).sum(axis=-1)
        variance = rows**2 - (predicted**2).sum(axis=-1)
        return correlation(covariance, label_variance, variance)
    rows = rows[..., None]
    correct = counts @ (labels == decisions)
    chance = of_label * predicted + (rows - of_label) * (rows - predicted)
    label_variance = rows**2 - of_label**2 - (rows - of_label) ** 2
    variance = rows**2 - predicted**2 - (rows - predicted) ** 2
    return correlation(correct * rows - chance, label_variance, variance).mean(axis=-1)


def with_intervals(
    counts: ndarray,
    statistics: dict[str, Callable[[ndarray], ndarray]],
    seed: int,
    draws: int = BOOTSTRAP_DRAWS,
) -> dict[str, dict[str, float]]:
    """Name -> the value of a statistic of pattern counts, and both ends of its 95 % bootstrap
    interval."""
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_VALUES // len(counts))
    drawn: dict[str, list[ndarray]] = {name: [] for name in statistics}
    for start in range(0, draws, block):
        size = min(block, draws - start)
        rows = counts.sum()
        sample = generator.multinomial(rows, counts / rows, size=size).astype(float)
        for name, statistic in statistics.items():
            drawn[name].append(statistic(sample))
    metrics = {}
    for name, statistic in statistics.items():
        low, high = percentile_interval(np.concatenate(drawn[name]))
        value = float(statistic(counts.astype(float)))
        metrics[name] = {"value": value, "low": low, "high": high}
    return metrics


def headline_metrics(predictions: Predictions, seed: int = 0) -> dict[str, dict[str, float]]:
    """Macro-F1, accuracy and Matthews correlation with intervals.

    Labels that neither occur nor are predicted are excluded from means.
    """
    task = predictions.task
    counts, (labels, decisions) = count_patterns(
        len(task.labels), predictions.labels, predictions.decisions
    )
    is_used = (labels | decisions).any(axis=0)
    if is_used.any():
        labels = labels[:, is_used]
        decisions = decisions[:, is_used]
    columns = {"labels": labels, "decisions": decisions}
    statistics = {
        "macro_f1": partial(macro_f1_of_counts, **columns),
        "accuracy": partial(accuracy_of_counts, **columns),
        "mcc": partial(matthews_of_counts, **columns, multi_label=task.multi_label),
    }
    return with_intervals(counts, statistics, seed)


def label_metrics(predictions: Predictions) -> list[dict[str, Any]]:
    """For each label: rows, predictions of it, precision, recall and F1; 0 if undefined."""
    task = predictions.task
    precision, recall, f1, rows = precision_recall_fscore_support(
        predictions.labels,
        predictions.decisions,
        labels=range(len(task.labels)),
        average=None,
        zero_division=0,
    )
    lines = []
    for index, label in enumerate(task.labels):
        lines.append(
            {
                "label": label,
                "rows": int(rows[index]),
                "predicted": int(indicator(predictions.decisions, index).sum()),
                "precision": float(precision[index]),
                "recall": float(recall[index]),
                "f1": float(f1[index]),
            }
        )
    return lines


def indicator(values: ndarray, index: int) -> ndarray:
    """Mask [rows] of a label: of class ids [rows], or of 0/1 [rows, labels]."""
    return values == index if values.ndim == 1 else values[:, index] == 1


# --- Thresholds ---


def threshold_curve(scores: ndarray, positives: ndarray, *, average_classes: bool) -> list[dict]:
    """Precision, recall and F1 of `scores > threshold` [rows] for each of THRESHOLDS.

    With `average_classes`, also macro-F1 of positives and negatives.
    """
    curve = []
    for threshold in THRESHOLDS:
        predicted = scores > threshold
        true_positives = int((predicted & positives).sum())
        errors = int((predicted ^ positives).sum())
        f1 = float(f1_of_counts(np.array(true_positives), np.array(errors)))
        entry = {
            "threshold": threshold,
            "predicted": int(predicted.sum()),
            "precision": true_positives / max(1, int(predicted.sum())),
            "recall": true_positives / max(1, int(positives.sum())),
            "f1": f1,
        }
        if average_classes:
            true_negatives = int((~predicted & ~positives).sum())
            f1_of_negatives = float(f1_of_counts(np.array(true_negatives), np.array(errors)))
            entry["macro_f1"] = (f1 + f1_of_negatives) / 2
        curve.append(entry)
    return curve


def threshold_curves(predictions: Predictions) -> dict[str, list[dict]]:
    """Label -> its curve: of the second of two classes, or of each label of a multi-label model."""
    task = predictions.task
    if not task.multi_label and not task.is_binary:
        return {}
    indices = range(len(task.labels)) if task.multi_label else [1]
    curves = {}
    for index in indices:
        curves[task.labels[index]] = threshold_curve(
            predictions.probabilities[:, index],
            indicator(predictions.labels, index),
            average_classes=task.is_binary,
        )
    return curves


# --- Errors ---


def worst_errors(predictions: Predictions, limit: int = NUM_ERRORS) -> list[dict[str, Any]]:
    """The wrong rows with the highest confidence: `row` (from 0), the true labels, the predicted
    ones, and `surprise`, which is 1 minus the probability of the truth (multi-label: of the worst
    label)."""
    task = predictions.task
    labels = predictions.labels
    if task.multi_label:
        is_wrong = labels != predictions.decisions
        surprise = np.abs(labels - predictions.probabilities)
        surprise = np.where(is_wrong, surprise, -1).max(axis=1)
    else:
        is_wrong = labels != predictions.decisions
        surprise = 1 - predictions.probabilities[np.arange(len(labels)), labels]
        surprise = np.where(is_wrong, surprise, -1)
    errors = []
    for row in np.argsort(-surprise, kind="stable")[:limit]:
        if surprise[row] < 0:
            break
        errors.append(
            {
                "row": int(row),
                "true": names_of(labels[row], task),
                "predicted": names_of(predictions.decisions[row], task),
                "surprise": float(surprise[row]),
            }
        )
    return errors


def names_of(value: Any, task: Task) -> list[str]:
    """The names of a class id, or of the labels of a 0/1 row."""
    if not task.multi_label:
        return [task.labels[value]]
    return [label for label, flag in zip(task.labels, value, strict=True) if flag]


# --- All of it ---


def quality_notes(predictions: Predictions) -> list[str]:
    """What a user must not miss: a constant model, labels without rows, few rows."""
    task = predictions.task
    decisions = predictions.decisions
    notes = []
    if len(decisions) > 1 and (decisions == decisions[0]).all():
        names = " and ".join(map(repr, names_of(decisions[0], task))) or "no label"
        notes.append(f"the model predicts {names} for every row: a constant classifier")
    empty = [line for line in label_metrics(predictions) if not line["rows"]]
    unused = [repr(line["label"]) for line in empty if not line["predicted"]]
    wrong = [repr(line["label"]) for line in empty if line["predicted"]]
    if unused:
        notes.append(f"the file has no row of {', '.join(unused)}: not part of macro-F1")
    if wrong:
        notes.append(
            f"the file has no row of {', '.join(wrong)}, but predictions of it: they count as "
            "F1 = 0 in macro-F1"
        )
    if len(decisions) < FEW_ROWS:
        notes.append(f"the file has only {len(decisions)} rows: the intervals are rough")
    return notes


def file_quality(predictions: Predictions) -> dict[str, Any]:
    """Everything about a model on labeled rows, as JSON values."""
    task = predictions.task
    return {
        "labels": list(task.labels),
        "problem_type": task.problem_type,
        "rows": len(predictions.labels),
        "notes": quality_notes(predictions),
        "metrics": headline_metrics(predictions),
        "per_label": label_metrics(predictions),
        "confusion": confusion_counts(predictions.labels, predictions.decisions, task),
        "thresholds": threshold_curves(predictions),
        "errors": worst_errors(predictions),
    }
