"""Metrics, intervals, paired tests and thresholds.

The expected values are computed by hand, by slow literal implementations, or by simulation.
"""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom, ks_2samp
from sklearn.metrics import accuracy_score, f1_score

from metrics import (
    accuracy_of_counts,
    bootstrap,
    brier_score,
    count_patterns,
    expected_calibration_error,
    interval_of_mean,
    macro_f1_of_counts,
    mcnemar,
    paired_bootstrap,
    percentile_interval,
    quality_metrics,
    resample,
    tune_thresholds,
)
from task import Task

Cells = dict[tuple[int, ...], float]  # (label, decision of each model) -> probability

ROWS = 860
DATASETS = 2000
DRAWS = 1000

ONE_MODEL: Cells = {(1, 1): 0.175, (1, 0): 0.09, (0, 1): 0.06, (0, 0): 0.675}  # F1 0.7 and 0.9


def two_models(both_wrong: float, one_wrong: float) -> Cells:
    """30 % positives; both models err equally often, in both classes.

    `both_wrong` is the probability that both err, `one_wrong` that only the first (or second) does.
    """
    errors = {
        (1, 1): both_wrong,
        (1, 0): one_wrong,
        (0, 1): one_wrong,
        (0, 0): 1 - both_wrong - 2 * one_wrong,
    }
    cells = {}
    for label, rate in ((1, 0.3), (0, 0.7)):
        for (first_error, second_error), probability in errors.items():
            cells[label, label ^ first_error, label ^ second_error] = rate * probability
    return cells


def true_macro_f1(cells: Cells, model: int = 1) -> float:
    """Macro-F1 of infinitely many rows.

    F1 of class c is 2 P(label = decision = c) / (P(label = c) + P(decision = c)).
    """
    numerator = np.zeros(2)
    denominator = np.zeros(2)
    for cell, probability in cells.items():
        label = cell[0]
        decision = cell[model]
        if label == decision:
            numerator[label] += 2 * probability
        denominator[label] += probability
        denominator[decision] += probability
    return (numerator / denominator).mean()


def simulated_datasets(cells: Cells, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `count` datasets of ROWS independent rows: labels [rows], then each model's decisions.

    Each dataset is an array [1 + models, rows].
    """
    rng = np.random.default_rng(seed)
    for counts in rng.multinomial(ROWS, list(cells.values()), size=count):
        yield np.repeat(list(cells), counts, axis=0).T


def sample_predictions(kind: str, rows: int = 60) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of labels, labels, and decisions of which about a quarter are wrong.

    The last of 4 classes has 3 rows.
    """
    rng = np.random.default_rng(7)
    num_labels = {"2 classes": 2, "4 classes": 4, "multi-label": 3}[kind]
    if kind == "multi-label":
        labels = rng.integers(0, 2, (rows, 3))
        wrong_labels = 1 - labels
    elif kind == "4 classes":
        labels = rng.integers(0, 3, rows)
        labels[:3] = 3
        wrong_labels = (labels + 1) % 4
    else:
        labels = rng.integers(0, 2, rows)
        wrong_labels = 1 - labels
    is_wrong = rng.random(labels.shape) < 0.25
    return num_labels, labels, np.where(is_wrong, wrong_labels, labels)


KINDS = ("2 classes", "4 classes", "multi-label")


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_pattern_counts_have_the_scores_of_their_rows(kind):
    num_labels, labels, decisions = sample_predictions(kind)
    counts, (label_patterns, decision_patterns) = count_patterns(num_labels, labels, decisions)
    drawn = resample(counts, 30, seed=0)
    assert counts.sum() == len(labels)
    assert set(drawn.sum(axis=1)) == {len(labels)}
    macro_f1 = macro_f1_of_counts(drawn, label_patterns, decision_patterns)
    accuracy = accuracy_of_counts(drawn, label_patterns, decision_patterns)
    for i, draw in enumerate(drawn.astype(int)):
        row_labels = np.repeat(label_patterns, draw, axis=0)
        row_decisions = np.repeat(decision_patterns, draw, axis=0)
        if kind != "multi-label":
            row_labels = row_labels.argmax(axis=1)
            row_decisions = row_decisions.argmax(axis=1)
        expected = f1_score(
            row_labels, row_decisions, labels=range(num_labels), average="macro", zero_division=0
        )
        assert macro_f1[i] == pytest.approx(expected)
        assert accuracy[i] == pytest.approx(accuracy_score(row_labels, row_decisions))


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_patterns_has_the_distribution_of_drawing_rows(kind):
    num_labels, labels, decisions = sample_predictions(kind)
    rng = np.random.default_rng(1)
    of_rows = []
    for _ in range(400):
        rows = rng.integers(0, len(labels), len(labels))
        f1 = f1_score(
            labels[rows],
            decisions[rows],
            labels=range(num_labels),
            average="macro",
            zero_division=0,
        )
        of_rows.append(f1)
    counts, patterns = count_patterns(num_labels, labels, decisions)
    of_patterns = macro_f1_of_counts(resample(counts, 2000, seed=2), *patterns)
    assert ks_2samp(of_rows, of_patterns).pvalue > 0.01


def test_a_class_that_neither_occurs_nor_is_predicted_counts_as_zero():
    counts, patterns = count_patterns(3, np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert macro_f1_of_counts(counts, *patterns) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_intervals_contain_the_measured_value_and_depend_on_the_seed():
    num_labels, labels, decisions = sample_predictions("4 classes")
    interval = bootstrap(labels, decisions, num_labels, seed=3)
    macro_f1 = f1_score(labels, decisions, average="macro")
    accuracy = accuracy_score(labels, decisions)
    assert interval["macro_f1_low"] < macro_f1 < interval["macro_f1_high"]
    assert interval["accuracy_low"] < accuracy < interval["accuracy_high"]
    assert interval == bootstrap(labels, decisions, num_labels, seed=3)
    assert interval != bootstrap(labels, decisions, num_labels, seed=4)


def test_percentiles_by_hand():
    assert percentile_interval(np.arange(1001)) == (25, 975)


def coverage(seed: int) -> tuple[float, float]:
    """Fractions of simulated datasets whose intervals contain the true macro-F1 and accuracy."""
    macro_f1 = true_macro_f1(ONE_MODEL)
    accuracy = ONE_MODEL[1, 1] + ONE_MODEL[0, 0]
    f1_hits = 0
    accuracy_hits = 0
    for i, (labels, decisions) in enumerate(simulated_datasets(ONE_MODEL, DATASETS, seed)):
        interval = bootstrap(labels, decisions, 2, seed=i, draws=DRAWS)
        f1_hits += interval["macro_f1_low"] <= macro_f1 <= interval["macro_f1_high"]
        accuracy_hits += interval["accuracy_low"] <= accuracy <= interval["accuracy_high"]
    return f1_hits / DATASETS, accuracy_hits / DATASETS


def test_95_percent_intervals_contain_the_truth_in_95_percent_of_datasets():
    assert true_macro_f1(ONE_MODEL) == pytest.approx(0.8, abs=1e-12)
    assert coverage(seed=0) == pytest.approx((0.95, 0.95), abs=0.02)


def false_alarms(seed: int) -> tuple[float, float]:
    """Fractions of datasets in which two equally good models differ significantly.

    By McNemar's p-value below 5 %, and by a paired interval that excludes 0.
    """
    cells = two_models(both_wrong=0.08, one_wrong=0.12)
    mcnemar_alarms = 0
    interval_alarms = 0
    for i, (labels, decisions, others) in enumerate(simulated_datasets(cells, DATASETS, seed)):
        interval = paired_bootstrap(labels, decisions, others, 2, seed=i, draws=DRAWS)
        mcnemar_alarms += mcnemar(labels == decisions, labels == others) < 0.05
        interval_alarms += not (
            interval["delta_macro_f1_low"] <= 0 <= interval["delta_macro_f1_high"]
        )
    return mcnemar_alarms / DATASETS, interval_alarms / DATASETS


def test_equally_good_models_differ_significantly_in_5_percent_of_datasets():
    cells = two_models(both_wrong=0.08, one_wrong=0.12)
    first = true_macro_f1(cells, model=1)
    assert first == pytest.approx(true_macro_f1(cells, model=2), abs=1e-12)
    assert false_alarms(seed=0) == pytest.approx((0.05, 0.05), abs=0.01)


def test_pairing_narrows_the_interval_of_models_with_common_errors():
    cells = two_models(both_wrong=0.17, one_wrong=0.03)
    labels, decisions, others = next(simulated_datasets(cells, 1, seed=0))
    paired = paired_bootstrap(labels, decisions, others, 2, seed=0)
    unpaired = []
    for seed, model_decisions in enumerate((decisions, others)):
        counts, patterns = count_patterns(2, labels, model_decisions)
        unpaired.append(macro_f1_of_counts(resample(counts, 2000, seed), *patterns))
    low, high = percentile_interval(unpaired[0] - unpaired[1])
    assert high - low > 1.8 * (paired["delta_macro_f1_high"] - paired["delta_macro_f1_low"])


def test_the_difference_is_that_of_the_data_and_positive_if_the_first_model_is_better():
    labels = np.array([0, 0, 1, 1] * 50)
    decisions = np.array([0, 0, 1, 1] * 50)
    baseline = np.array([0, 1, 1, 1] * 50)
    result = paired_bootstrap(labels, decisions, baseline, 2, seed=0)
    assert result["delta_macro_f1"] == pytest.approx(1 - (2 / 3 + 4 / 5) / 2)
    assert 0 < result["delta_macro_f1_low"] < result["delta_macro_f1"]
    assert result["delta_macro_f1"] < result["delta_macro_f1_high"]
    assert set(paired_bootstrap(labels, baseline, baseline, 2, seed=0).values()) == {0}


def correct_masks(only_first: int, only_second: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether two models are correct; on 4 rows both are, on 3 rows neither is."""
    cells = [[True, False]] * only_first
    cells += [[False, True]] * only_second
    cells += [[True, True]] * 4
    cells += [[False, False]] * 3
    first, second = np.array(cells).T
    return first, second


@pytest.mark.parametrize(("only_first", "only_second"), [(1, 5), (5, 1), (0, 6), (3, 11)])
def test_the_mid_p_value_counts_half_of_the_observed_point(only_first, only_second):
    fewer = min(only_first, only_second)
    discordant = only_first + only_second
    by_hand = 2 * (binom.cdf(fewer - 1, discordant, 0.5) + 0.5 * binom.pmf(fewer, discordant, 0.5))
    assert mcnemar(*correct_masks(only_first, only_second)) == pytest.approx(by_hand)


def test_the_mid_p_values_of_the_paper_and_of_models_that_never_differ():
    table_1 = 2 * (1 + 8 / 2) / 2**8  # printed as 0.039
    assert mcnemar(*correct_masks(1, 7)) == pytest.approx(table_1)
    supplement = 1 - 0.5 * 6 / 2**4  # 1 - point / 2
    assert mcnemar(*correct_masks(2, 2)) == pytest.approx(supplement)
    assert mcnemar(*correct_masks(0, 0)) == 1.0


def test_the_calibration_error_of_classes_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.3, 0.7]])
    error = expected_calibration_error(probabilities, np.array([0, 0, 1]), bins=5)
    by_hand = 2 / 3 * abs(0.9 - 1 / 2) + 1 / 3 * abs(0.7 - 1)  # of bins (0.8, 1] and (0.6, 0.8]
    assert error == pytest.approx(by_hand)


def test_the_calibration_error_of_labels_by_hand():
    probabilities = np.array([[0.1, 0.3], [0.3, 0.4]])
    labels = np.array([[0, 0], [1, 1]])
    first_label = (abs(0.1 - 0) + abs(0.3 - 1)) / 2
    second_label = abs(0.35 - 1 / 2)  # (0.2, 0.4] contains 0.3 and 0.4
    error = expected_calibration_error(probabilities, labels, bins=5)
    assert error == pytest.approx((first_label + second_label) / 2)


def test_the_calibration_error_has_fifteen_bins():
    # An edge of 15 bins, 14/15, is between 0.92 and 0.95; 10 and 20 bins have none there.
    probabilities = np.array([[0.05, 0.95], [0.08, 0.92]])
    error = expected_calibration_error(probabilities, np.array([0, 1]))
    assert error == pytest.approx((0.95 + 0.08) / 2)


def test_the_brier_score_of_two_classes_by_hand():
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]])
    by_hand = (0.2**2 + 0.6**2) / 2
    assert brier_score(probabilities, np.array([1, 1])) == pytest.approx(by_hand)


def test_the_brier_score_of_three_classes_by_hand():
    probabilities = np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])
    by_hand = (0.8**2 + 0.3**2 + 0.5**2 + 0.6**2 + 0.6**2 + 0.0**2) / 2
    assert brier_score(probabilities, np.array([0, 1])) == pytest.approx(by_hand)


def test_the_brier_score_of_labels_by_hand_with_a_label_that_never_occurs():
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]])
    labels = np.array([[0, 1], [0, 0]])
    by_hand = (0.2**2 + 0.2**2 + 0.6**2 + 0.4**2) / 4
    assert brier_score(probabilities, labels) == pytest.approx(by_hand)


def test_the_interval_of_a_mean_is_widened_for_overlapping_training_sets():
    mean, deviation, low, high = interval_of_mean([0.80, 0.84, 0.82], test_share=0.25)
    half = 4.302653 * 0.02 * (1 / 3 + 0.25) ** 0.5  # t of 2 degrees of freedom, printed table
    assert (mean, deviation) == pytest.approx((0.82, 0.02))
    assert (low, high) == pytest.approx((0.82 - half, 0.82 + half), abs=1e-7)
    assert interval_of_mean([0.8], test_share=0.25) == (0.8, None, None, None)


def test_the_interval_of_a_mean_is_cut_to_what_is_possible():
    values = [0.6, 0.9, 1.0]
    mean, deviation, low, high = interval_of_mean(values, test_share=0.25, bounds=(0, 1))
    half = 4.302653 * deviation * (1 / 3 + 0.25) ** 0.5
    assert (low, high) == pytest.approx((mean - half, 1)) and mean + half > 1
    assert interval_of_mean([-0.9, 0.0, 0.9], 0.25)[2:] == (-1, 1)


def test_two_values_have_a_deviation_but_no_interval():
    mean, deviation, low, high = interval_of_mean([0.8, 0.9], test_share=0.25)
    assert (mean, deviation) == pytest.approx((0.85, 0.05 * 2**0.5))
    assert (low, high) == (None, None)


def exact_f1(positives: list[bool], decisions: list[bool]) -> Fraction:
    """F1 by counting; 0 if there are neither positives nor positive decisions."""
    total = sum(positives) + sum(decisions)
    if total == 0:
        return Fraction(0)
    pairs = zip(positives, decisions, strict=True)
    true_positives = sum(positive and decision for positive, decision in pairs)
    return Fraction(2 * true_positives, total)


def quality_of_threshold(
    threshold: float, scores: list[float], positives: list[bool], *, average_classes: bool
) -> Fraction:
    """F1 of the positives, plus F1 of the negatives with `average_classes`."""
    decisions = [score > threshold for score in scores]
    quality = exact_f1(positives, decisions)
    if average_classes:
        negatives = [not positive for positive in positives]
        rejections = [not decision for decision in decisions]
        quality += exact_f1(negatives, rejections)
    return quality


def exhaustive_threshold(
    scores: np.ndarray, positives: np.ndarray, *, average_classes: bool
) -> float:
    """The best of all candidates, evaluated one by one; of equal ones the nearest to 0.5."""
    distinct = sorted(set(scores.tolist()))
    candidates = [0.5]
    for lower, upper in zip(distinct[:-1], distinct[1:], strict=True):
        candidates.append((lower + upper) / 2)
    ranks = {}
    for threshold in candidates:
        quality = quality_of_threshold(
            threshold, scores.tolist(), positives.tolist(), average_classes=average_classes
        )
        ranks[threshold] = (-quality, abs(threshold - 0.5))
    return min(candidates, key=ranks.get)


def test_thresholds_are_the_best_of_all_candidates():
    rng = np.random.default_rng(0)
    for _ in range(400):
        rows = rng.integers(1, 13)
        scores = rng.integers(0, 21, (rows, 2)) / 20  # coarse: many rows have the same probability
        labels = (rng.random(scores.shape) < 0.2 + 0.6 * scores).astype(int)
        positives = labels.astype(bool)
        expected = [
            exhaustive_threshold(scores[:, 0], positives[:, 0], average_classes=False),
            exhaustive_threshold(scores[:, 1], positives[:, 1], average_classes=False),
        ]
        assert tune_thresholds(scores, labels, True) == expected
        two_classes = np.stack([1 - scores[:, 0], scores[:, 0]], axis=1)
        expected = exhaustive_threshold(scores[:, 0], positives[:, 0], average_classes=True)
        assert tune_thresholds(two_classes, labels[:, 0], False) == [expected]


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_chosen():
    scores = np.array(
        [
            [0.9, 0.8, 0.75, 0.7, 0.6],
            [0.45, 0.4, 0.35, 0.3, 0.1],
            [0.9, 0.2, 0.1, 0.1, 0.1],
        ]
    )
    # F1 of the first two labels is 2/3 if the first row, or the first four, are positive.
    labels = np.array([[1, 0, 0, 1, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 0]])
    assert tune_thresholds(scores.T, labels.T, True) == pytest.approx([0.65, 0.425, 0.5])


def test_equally_good_thresholds_are_equal_in_floating_point():
    second = np.array([0.3, 0.35, 0.45, 0.55, 0.6, 0.65, 0.7])
    probabilities = np.stack([1 - second, second], axis=1)
    # Above 0.4, the F1 values are 1/3 and 1/2; above 0.675, they are 0 and 5/6, which is a bit more
    # in floating point.
    labels = np.array([0, 0, 1, 0, 0, 0, 0])
    assert tune_thresholds(probabilities, labels, False) == pytest.approx([0.4])


def test_a_threshold_has_a_finite_logit():
    below_one = 1 - 2.0**-53  # its midpoint with 1 is rounded to 1, whose logit is infinite
    probabilities = np.array([[0, below_one], [0, below_one], [0, 1]])
    assert tune_thresholds(probabilities, np.array([0, 0, 1]), False) == [0.5]


def test_means_over_labels_are_over_those_that_occur():
    """Class c has no row; it is predicted once, in place of b, which costs b a half."""
    task = Task(("a", "b", "c"), multi_label=False)
    labels = np.array([0, 0, 1, 1])
    logits = np.eye(3)[[0, 0, 1, 2]] * 4
    row = quality_metrics(logits, labels, task)
    assert row["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert row["roc_auc"] == (1 + 3 / 4) / 2  # b: one of two rows is tied with the others
    assert "f1.c" not in row and row["f1.b"] == pytest.approx(2 / 3)
    flags = np.eye(3, dtype=int)[labels]
    several = Task(("a", "b", "c"), multi_label=True)
    row = quality_metrics(logits - 1, flags, several)
    assert row["macro_f1"] == pytest.approx((1 + 2 / 3) / 2) and row["roc_auc"] == 7 / 8
    assert row["mcc"] == pytest.approx((1 + 1 / np.sqrt(3)) / 2)
    for truth, decisions in ((labels, labels), (flags, flags)):
        interval = bootstrap(truth, decisions, 3, seed=0)
        assert interval["macro_f1_high"] == 1
        assert set(paired_bootstrap(truth, decisions, decisions, 3, seed=0).values()) == {0}
