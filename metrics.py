"""Quality metrics of decisions and probabilities, their uncertainty, and decision thresholds.

NumPy only: labels and decisions are class ids [rows], or 0/1 [rows, labels] in a multi-label task.
The F1 of a label that is never predicted is 0. Means over labels are over those that occur in the
rows: a label of one or two rows may lack in a split.

Bootstraps draw rows. Rows with the same label and the same decisions are interchangeable, so a
draw of rows is a multinomial draw of the counts of such patterns, which is much faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray
from scipy.stats import binom, t
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    multilabel_confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

from runtime.finite import FORMAT_ADVICE, check_logits
from task import Task, decide, probabilities

BOOTSTRAP_DRAWS = 2000

CALIBRATION_BINS = 15

MIN_REPEATS = 3  # with an interval: of two, the t quantile alone is 12.7

# --- Quality of decisions ---


def occurring(labels: ndarray) -> ndarray:
    """The ids of the labels that occur in at least one row."""
    if labels.ndim == 1:
        return np.unique(labels)
    return np.flatnonzero(labels.any(axis=0))


def macro_f1(labels: ndarray, decisions: ndarray) -> float:
    """The headline metric: the unweighted mean of the F1 of each class or label that occurs."""
    present = occurring(labels)
    return float(f1_score(labels, decisions, labels=present, average="macro", zero_division=0))


def agreement(decisions: ndarray, teacher_decisions: ndarray) -> float:
    """The fraction of rows on which all decisions equal the teacher's."""
    return float(accuracy_score(teacher_decisions, decisions))


def is_correct(labels: ndarray, decisions: ndarray) -> ndarray:
    """Mask [rows] of the rows on which every decision is correct."""
    equal = labels == decisions
    if equal.ndim == 1:
        return equal
    return equal.all(axis=1)


def confusion_counts(labels: ndarray, decisions: ndarray, task: Task) -> list:
    """Counts [true class, predicted class]; multi-label: [label, true 0/1, predicted 0/1]."""
    if task.multi_label:
        return multilabel_confusion_matrix(labels, decisions).tolist()
    return confusion_matrix(labels, decisions, labels=range(len(task.labels))).tolist()


def never_predicted(decisions: ndarray, task: Task) -> str:
    """The names of the labels that are predicted for no row, separated by commas."""
    if task.multi_label:
        counts = decisions.sum(axis=0)
    else:
        counts = np.bincount(decisions, minlength=len(task.labels))
    return ", ".join(np.array(task.labels)[counts == 0])


def matthews_correlation(labels: ndarray, decisions: ndarray) -> float:
    """Matthews correlation coefficient; multi-label: its mean over labels."""
    if labels.ndim == 1:
        return float(matthews_corrcoef(labels, decisions))
    present = occurring(labels)
    columns = zip(labels.T[present], decisions.T[present], strict=True)
    return float(np.mean([matthews_corrcoef(label, decision) for label, decision in columns]))


# --- Quality of probabilities ---


def calibration_gap(confidence: ndarray, correct: ndarray, bins: int) -> float:
    """Guo et al. (2017), equation 3: the expected calibration error of `confidence` [rows].

    |mean confidence - fraction correct| of each bin (low, high], weighted by its rows.
    """
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    bin_of_row = np.digitize(confidence, inner_edges, right=True)
    gaps = np.bincount(bin_of_row, weights=confidence - correct)
    return float(np.abs(gaps).sum() / len(confidence))


def expected_calibration_error(
    probabilities: ndarray, labels: ndarray, bins: int = CALIBRATION_BINS
) -> float:
    """Calibration gap of the most probable class, a fraction; `probabilities` [rows, labels].

    Multi-label: the gap between each label's probability and its rate, averaged over labels.
    """
    if labels.ndim == 1:
        correct = probabilities.argmax(axis=1) == labels
        return calibration_gap(probabilities.max(axis=1), correct, bins)
    columns = zip(probabilities.T, labels.T, strict=True)
    return float(np.mean([calibration_gap(column, label, bins) for column, label in columns]))


def brier_score(probabilities: ndarray, labels: ndarray) -> float:
    """Brier (1950): the squared error of `probabilities` [rows, labels], averaged over rows.

    Two classes: of the second class, in [0, 1]. More classes: summed over classes, in [0, 2].
    Multi-label: averaged over labels, in [0, 1].
    """
    if labels.ndim == 1:
        return brier_score_loss(labels, probabilities, labels=range(probabilities.shape[1]))
    columns = zip(labels.T, probabilities.T, strict=True)
    return float(np.mean([brier_score_loss(label, column) for label, column in columns]))


def roc_auc(probabilities: ndarray, labels: ndarray, task: Task) -> float:
    """Area under the ROC curve; more than two classes: one class against the rest, macro mean."""
    if task.is_binary:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    indicators = labels if task.multi_label else np.eye(len(task.labels), dtype=int)[labels]
    present = np.flatnonzero(indicators.any(axis=0))
    return float(roc_auc_score(indicators[:, present], probabilities[:, present], average="macro"))


# --- All quality metrics of one model ---


def quality_metrics(logits: ndarray, labels: ndarray, task: Task) -> dict[str, Any]:
    """The quality columns of a result row, of `logits` [rows, labels].

    `accuracy` of a multi-label task is the fraction of rows with every label correct. `f1`,
    `precision` and `recall` are those of the second of two classes; with the suffix `.<label>`,
    those of each class or label that occurs. `never_predicted` is present only if there is such a
    label.
    UserError if a logit is not finite.
    """
    check_logits(logits, "the model", FORMAT_ADVICE)
    decisions = decide(logits, task.multi_label)
    scores = probabilities(logits, task.multi_label)
    metrics: dict[str, Any] = {
        "accuracy": float(accuracy_score(labels, decisions)),
        "macro_f1": macro_f1(labels, decisions),
        "roc_auc": roc_auc(scores, labels, task),
        "mcc": matthews_correlation(labels, decisions),
        "ece": expected_calibration_error(scores, labels),
        "brier": brier_score(scores, labels),
    }
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, decisions, labels=range(len(task.labels)), average=None, zero_division=0
    )
    for name, values in {"precision": precision, "recall": recall, "f1": f1}.items():
        if task.is_binary:
            metrics[name] = float(values[1])
        for label_id in occurring(labels):
            metrics[f"{name}.{task.labels[label_id]}"] = float(values[label_id])
    metrics["confusion"] = confusion_counts(labels, decisions, task)
    missing = never_predicted(decisions, task)
    if missing:
        metrics["never_predicted"] = missing
    return metrics


def slice_metrics(test: pd.DataFrame, labels: ndarray, decisions: ndarray) -> dict[str, float]:
    """Rows, accuracy and macro-F1 of each value of the columns `group` and `rows` of `test`.

    The keys are such as `macro_f1[group=female]`. Labels that neither occur nor are predicted in a
    slice are excluded from its mean.
    """
    metrics = {}
    for column in ("group", "rows"):
        if column not in test:
            continue
        for value, rows in test.groupby(column).indices.items():
            suffix = f"[{column}={value}]"
            f1 = f1_score(labels[rows], decisions[rows], average="macro", zero_division=np.nan)
            metrics[f"rows{suffix}"] = float(len(rows))
            metrics[f"accuracy{suffix}"] = float(accuracy_score(labels[rows], decisions[rows]))
            metrics[f"macro_f1{suffix}"] = float(f1)
    return metrics


# --- Bootstrap over test rows ---


def count_patterns(num_labels: int, *columns: ndarray) -> tuple[ndarray, list[ndarray]]:
    """Counts [patterns] of the distinct joint rows of `columns`, and each column's patterns.

    A column contains class ids [rows], which become one-hot, or 0/1 [rows, labels]; its patterns
    are booleans [patterns, labels].
    """
    one_hot = np.eye(num_labels, dtype=bool)
    indicators = []
    for column in columns:
        if column.ndim == 1:
            indicators.append(one_hot[column])
        else:
            indicators.append(column.astype(bool))
    distinct, counts = np.unique(np.hstack(indicators), axis=0, return_counts=True)
    return counts, np.split(distinct, len(columns), axis=1)


def resample(counts: ndarray, draws: int, seed: int) -> ndarray:
    """Pattern counts [draws, patterns] of rows drawn with replacement; integers as floats."""
    rows = counts.sum()
    generator = np.random.default_rng(seed)
    return generator.multinomial(rows, counts / rows, size=draws).astype(float)


def f1_of_counts(true_positives: ndarray, errors: ndarray) -> ndarray:
    """2 TP / (2 TP + FP + FN), with `errors` = FP + FN; 0 if the denominator is 0."""
    return 2 * true_positives / np.maximum(2 * true_positives + errors, 1)


def macro_f1_of_counts(counts: ndarray, labels: ndarray, decisions: ndarray) -> ndarray:
    """Macro-F1 [...] of pattern counts [..., patterns].

    `labels` and `decisions` are booleans [patterns, labels]. A label that neither occurs nor is
    predicted counts as F1 = 0.
    """
    true_positives = counts @ (labels & decisions)
    errors = counts @ (labels ^ decisions)
    return f1_of_counts(true_positives, errors).mean(axis=-1)


def accuracy_of_counts(counts: ndarray, labels: ndarray, decisions: ndarray) -> ndarray:
    """Accuracy [...] of pattern counts [..., patterns]: every label of a row must be correct."""
    return counts @ (labels == decisions).all(axis=1) / counts.sum(axis=-1)


def percentile_interval(values: ndarray) -> tuple[float, float]:
    """Efron & Tibshirani (1993), section 13.3: 2.5th and 97.5th percentile of `values` [draws]."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap(
    labels: ndarray, decisions: ndarray, num_labels: int, seed: int, draws: int = BOOTSTRAP_DRAWS
) -> dict[str, float]:
    """95 % bootstrap intervals of macro-F1 and accuracy over test rows, as fractions."""
    present = occurring(labels)
    counts, (labels, decisions) = count_patterns(num_labels, labels, decisions)
    drawn = resample(counts, draws, seed)
    drawn_f1 = macro_f1_of_counts(drawn, labels[:, present], decisions[:, present])
    f1_low, f1_high = percentile_interval(drawn_f1)
    accuracy_low, accuracy_high = percentile_interval(accuracy_of_counts(drawn, labels, decisions))
    return {
        "macro_f1_low": f1_low,
        "macro_f1_high": f1_high,
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
    }


def paired_bootstrap(
    labels: ndarray,
    decisions: ndarray,
    baseline_decisions: ndarray,
    num_labels: int,
    seed: int,
    draws: int = BOOTSTRAP_DRAWS,
) -> dict[str, float]:
    """Macro-F1 minus the baseline's, and its 95 % interval; both models share every draw."""
    present = occurring(labels)
    counts, patterns = count_patterns(num_labels, labels, decisions, baseline_decisions)
    labels, decisions, baseline = [pattern[:, present] for pattern in patterns]
    drawn = resample(counts, draws, seed)
    drawn_f1 = macro_f1_of_counts(drawn, labels, decisions)
    drawn_baseline_f1 = macro_f1_of_counts(drawn, labels, baseline)
    low, high = percentile_interval(drawn_f1 - drawn_baseline_f1)
    f1 = macro_f1_of_counts(counts, labels, decisions)
    baseline_f1 = macro_f1_of_counts(counts, labels, baseline)
    return {
        "delta_macro_f1": float(f1 - baseline_f1),
        "delta_macro_f1_low": low,
        "delta_macro_f1_high": high,
    }


# --- Tests and intervals ---


def mcnemar(correct: ndarray, baseline_correct: ndarray) -> float:
    """McNemar's test: the two-sided mid-p value of two models being correct equally often.

    Both are masks [rows]; 1 if the models are correct on the same rows. Fagerland, Lydersen &
    Laake (2013).
    """
    only_model = int((correct & ~baseline_correct).sum())
    only_baseline = int((baseline_correct & ~correct).sum())
    discordant = only_model + only_baseline
    if discordant == 0:
        return 1.0
    fewer = min(only_model, only_baseline)
    point = binom.pmf(fewer, discordant, 0.5)
    if only_model == only_baseline:
        return float(1 - point / 2)
    return float(2 * binom.cdf(fewer, discordant, 0.5) - point)


def confidence_intervals(
    labels: ndarray, decisions: ndarray, teacher_decisions: ndarray, task: Task, seed: int
) -> dict[str, float]:
    """95 % bootstrap intervals, and the difference from the teacher with its paired tests."""
    num_labels = len(task.labels)
    correct = is_correct(labels, decisions)
    teacher_correct = is_correct(labels, teacher_decisions)
    return {
        **bootstrap(labels, decisions, num_labels, seed),
        **paired_bootstrap(labels, decisions, teacher_decisions, num_labels, seed),
        "mcnemar_p": mcnemar(correct, teacher_correct),
    }


def interval_of_mean(
    values: list[float], test_share: float, bounds: tuple[float, float] = (-1.0, 1.0)
) -> tuple[float, float | None, float | None, float | None]:
    """Mean, sample standard deviation, and both ends of a 95 % interval over random splits.

    Nadeau & Bengio (2003): the corrected resampled t interval of `values` [splits], with
    `test_share` = test rows / training rows, cut to `bounds`, the range of the metric (by default
    that of a difference of fractions). Fewer than MIN_REPEATS values have no interval, one no
    deviation.
    """
    mean = float(np.mean(values))
    count = len(values)
    if count == 1:
        return mean, None, None, None
    deviation = float(np.std(values, ddof=1))
    if count < MIN_REPEATS:
        return mean, deviation, None, None
    half = float(t.ppf(0.975, count - 1) * deviation * np.sqrt(1 / count + test_share))
    lowest, highest = bounds
    return mean, deviation, max(mean - half, lowest), min(mean + half, highest)


# --- Decision thresholds ---


def threshold_candidates(scores: ndarray) -> ndarray:
    """0.5 and the midpoints of neighboring scores, all in (0, 1), the nearest to 0.5 first."""
    distinct = np.unique(scores)
    midpoints = (distinct[:-1] + distinct[1:]) / 2
    candidates = np.append(0.5, midpoints)
    # The midpoint of 1 and the float below it is rounded to 1, which has no finite logit.
    candidates = candidates[(candidates > 0) & (candidates < 1)]
    return candidates[np.argsort(np.abs(candidates - 0.5), kind="stable")]


def best_threshold(scores: ndarray, positives: ndarray, *, average_classes: bool) -> float:
    """The threshold whose decisions `scores > threshold` have the best F1 of `positives` [rows].

    `scores` [rows] are probabilities; `positives` is a mask. With `average_classes`, F1 is averaged
    over positives and negatives. Among equal thresholds, the nearest to 0.5 is chosen.
    """
    candidates = threshold_candidates(scores)
    order = np.argsort(scores)
    # For each candidate: the rows predicted negative, and the positives among them.
    predicted_negative = np.searchsorted(scores[order], candidates, side="right")
    false_negatives = np.append(0, np.cumsum(positives[order]))[predicted_negative]
    true_positives = positives.sum() - false_negatives
    true_negatives = predicted_negative - false_negatives
    errors = len(scores) - true_positives - true_negatives
    f1 = f1_of_counts(true_positives, errors)
    if average_classes:
        f1 = f1 + f1_of_counts(true_negatives, errors)
    # Rounded, because equal sums of fractions differ in the last bit.
    return float(candidates[f1.round(12).argmax()])


def tune_thresholds(probabilities: ndarray, labels: ndarray, multi_label: bool) -> list[float]:
    """The thresholds above which a label is predicted, given probabilities [rows, labels].

    Two classes: one threshold on the second class, of best macro-F1. Multi-label: one threshold
    for each label, of best F1.
    """
    scores = probabilities.astype(float)
    positives = labels.astype(bool)
    if not multi_label:
        assert scores.shape[1] == 2, scores.shape
        return [best_threshold(scores[:, 1], positives, average_classes=True)]
    thresholds = []
    for column, positive in zip(scores.T, positives.T, strict=True):
        thresholds.append(best_threshold(column, positive, average_classes=False))
    return thresholds
