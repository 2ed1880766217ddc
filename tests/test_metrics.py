"""Intervals, paired tests, calibration and thresholds: by hand, against slow literal versions,
and by simulation."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom, ks_2samp
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score

import metrics
from metrics import (
    bootstrap,
    brier_score,
    count_patterns,
    expected_calibration_error,
    interval_of_mean,
    mcnemar,
    paired_bootstrap,
    percentile_interval,
    resample,
    tune_thresholds,
)

ROWS, DATA_SETS, DRAWS = 860, 2000, 1000
PREDICTIONS = {
    (1, 1): 0.175,
    (1, 0): 0.09,
    (0, 1): 0.06,
    (0, 0): 0.675,
}  # (label, decision): F1 0.7 and 0.9


def two_models(both_wrong: float, one_wrong: float) -> dict[tuple[int, int, int], float]:
    """Probability of (label, decision, other decision): 30 % positives, errors alike in both
    classes and models."""
    wrong = {
        (1, 1): both_wrong,
        (1, 0): one_wrong,
        (0, 1): one_wrong,
        (0, 0): 1 - both_wrong - 2 * one_wrong,
    }
    return {
        (label, label ^ first, label ^ second): share * chance
        for label, share in ((1, 0.3), (0, 0.7))
        for (first, second), chance in wrong.items()
    }


def true_macro_f1(cells: dict[tuple[int, ...], float], model: int = 1) -> float:
    """Macro-F1 of infinitely many rows: 2 P(label = decision = c) / (P(label = c) + P(decision =
    c)), averaged."""
    agreed, claimed = np.zeros(2), np.zeros(2)
    for cell, chance in cells.items():
        agreed[cell[0]] += 2 * chance * (cell[0] == cell[model])
        claimed[cell[0]] += chance
        claimed[cell[model]] += chance
    return (agreed / claimed).mean()


def drawn_data_sets(cells: dict[tuple[int, ...], float], count: int, seed: int):
    """`count` data sets of ROWS independent rows: labels [rows], decisions [rows] of each model."""
    for counts in np.random.default_rng(seed).multinomial(ROWS, list(cells.values()), size=count):
        yield np.repeat(list(cells), counts, axis=0).T


def predictions(kind: str, rows: int = 60) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of labels, labels and decisions wrong on about a quarter; the last of 4 classes
    holds 3 rows."""
    rng = np.random.default_rng(7)
    shape, count = (
        ((rows, 3), 3) if kind == "multi-label" else (rows, 4 if kind == "4 classes" else 2)
    )
    labels = rng.integers(0, 3 if count == 4 else 2, shape)
    if count == 4:
        labels[:3] = 3
    wrong = rng.random(shape) < 0.25
    return (
        count,
        labels,
        np.where(wrong, (labels + 1) % (2 if kind == "multi-label" else count), labels),
    )


@pytest.mark.parametrize("kind", ["2 classes", "4 classes", "multi-label"])
def test_a_draw_of_pattern_counts_scores_as_its_rows_do(kind):
    count, labels, decisions = predictions(kind)
    counts, (truth, decided) = count_patterns(count, labels, decisions)
    drawn = resample(counts, 30, seed=0)
    scores = (
        metrics.macro_f1_of_counts(drawn, truth, decided),
        metrics.accuracy_of_counts(drawn, truth, decided),
    )
    assert counts.sum() == len(labels) and set(drawn.sum(axis=1)) == {len(labels)}
    for draw, macro_f1, accuracy in zip(drawn.astype(int), *scores, strict=True):
        rows, decided_rows = np.repeat(truth, draw, axis=0), np.repeat(decided, draw, axis=0)
        if kind != "multi-label":
            rows, decided_rows = rows.argmax(axis=1), decided_rows.argmax(axis=1)
        by_class = f1_score(
            rows, decided_rows, labels=range(count), average="macro", zero_division=0
        )
        assert (macro_f1, accuracy) == pytest.approx((by_class, accuracy_score(rows, decided_rows)))


@pytest.mark.parametrize("kind", ["2 classes", "4 classes", "multi-label"])
def test_drawing_patterns_is_distributed_as_drawing_rows(kind):
    count, labels, decisions = predictions(kind)
    rng = np.random.default_rng(1)
    row_ids = [rng.integers(0, len(labels), len(labels)) for _ in range(400)]
    literal = [
        f1_score(labels[ids], decisions[ids], labels=range(count), average="macro", zero_division=0)
        for ids in row_ids
    ]
    counts, columns = count_patterns(count, labels, decisions)
    assert (
        ks_2samp(
            literal, metrics.macro_f1_of_counts(resample(counts, 2000, seed=2), *columns)
        ).pvalue
        > 0.01
    )


def test_a_class_nobody_predicts_and_no_row_holds_counts_as_zero():
    counts, columns = count_patterns(3, np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert metrics.macro_f1_of_counts(counts, *columns) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_intervals_hold_the_measured_value_and_follow_the_seed():
    count, labels, decisions = predictions("4 classes")
    found = bootstrap(labels, decisions, count, seed=3)
    assert (
        found["macro_f1_low"]
        < f1_score(labels, decisions, average="macro")
        < found["macro_f1_high"]
    )
    assert found["accuracy_low"] < accuracy_score(labels, decisions) < found["accuracy_high"]
    assert (
        found
        == bootstrap(labels, decisions, count, seed=3)
        != bootstrap(labels, decisions, count, seed=4)
    )


def test_percentiles_by_hand():
    assert percentile_interval(np.arange(1001)) == (25, 975)


def coverage(seed: int) -> tuple[float, float]:
    """Share of simulated data sets whose interval holds the true macro-F1, and the true
    accuracy."""
    truth, right = true_macro_f1(PREDICTIONS), PREDICTIONS[1, 1] + PREDICTIONS[0, 0]
    held = []
    for i, (labels, decisions) in enumerate(drawn_data_sets(PREDICTIONS, DATA_SETS, seed)):
        found = bootstrap(labels, decisions, 2, seed=i, draws=DRAWS)
        held.append(
            [
                found["macro_f1_low"] <= truth <= found["macro_f1_high"],
                found["accuracy_low"] <= right <= found["accuracy_high"],
            ]
        )
    return tuple(np.mean(held, axis=0))


def test_95_percent_intervals_hold_the_truth_in_95_percent_of_data_sets():
    assert true_macro_f1(PREDICTIONS) == pytest.approx(0.8, abs=1e-12)
    assert coverage(seed=0) == pytest.approx((0.95, 0.95), abs=0.02)


def false_alarms(seed: int) -> tuple[float, float]:
    """Shares of data sets where McNemar's p is below 5 %, and where the paired interval excludes
    0, without cause."""
    cells = two_models(both_wrong=0.08, one_wrong=0.12)
    alarms = []
    for i, (labels, decisions, others) in enumerate(drawn_data_sets(cells, DATA_SETS, seed)):
        found = paired_bootstrap(labels, decisions, others, 2, seed=i, draws=DRAWS)
        excluded = not found["delta_macro_f1_low"] <= 0 <= found["delta_macro_f1_high"]
        alarms.append([mcnemar(labels == decisions, labels == others) < 0.05, excluded])
    return tuple(np.mean(alarms, axis=0))


def test_equal_models_are_told_apart_in_5_percent_of_data_sets():
    cells = two_models(both_wrong=0.08, one_wrong=0.12)
    assert true_macro_f1(cells, model=1) == pytest.approx(true_macro_f1(cells, model=2), abs=1e-12)
    assert false_alarms(seed=0) == pytest.approx((0.05, 0.05), abs=0.01)


def test_pairing_narrows_the_interval_of_models_that_err_together():
    labels, decisions, others = next(
        drawn_data_sets(two_models(both_wrong=0.17, one_wrong=0.03), 1, seed=0)
    )
    paired = paired_bootstrap(labels, decisions, others, 2, seed=0)
    alone = []
    for seed, decided in enumerate((decisions, others)):
        counts, columns = count_patterns(2, labels, decided)
        alone.append(metrics.macro_f1_of_counts(resample(counts, 2000, seed), *columns))
    low, high = percentile_interval(alone[0] - alone[1])
    assert high - low > 1.8 * (paired["delta_macro_f1_high"] - paired["delta_macro_f1_low"])


def test_the_difference_is_that_of_the_data_and_favours_the_first():
    labels = np.array([0, 0, 1, 1] * 50)
    decisions, others = np.array([0, 0, 1, 1] * 50), np.array([0, 1, 1, 1] * 50)
    found = paired_bootstrap(labels, decisions, others, 2, seed=0)
    assert found["delta_macro_f1"] == pytest.approx(1 - (2 / 3 + 4 / 5) / 2)
    assert 0 < found["delta_macro_f1_low"] < found["delta_macro_f1"] < found["delta_macro_f1_high"]
    assert set(paired_bootstrap(labels, others, others, 2, seed=0).values()) == {0}


def rights(only_first: int, only_second: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether two models are right, with 4 rows right in both and 3 in neither."""
    cells = (
        [[True, False]] * only_first
        + [[False, True]] * only_second
        + [[True, True]] * 4
        + [[False, False]] * 3
    )
    return tuple(np.array(cells).T)


@pytest.mark.parametrize(("only_first", "only_second"), [(1, 5), (5, 1), (0, 6), (3, 11)])
def test_mid_p_counts_half_of_the_point_observed(only_first, only_second):
    fewer, discordant = min(only_first, only_second), only_first + only_second
    by_hand = 2 * (binom.cdf(fewer - 1, discordant, 0.5) + 0.5 * binom.pmf(fewer, discordant, 0.5))
    assert mcnemar(*rights(only_first, only_second)) == pytest.approx(by_hand)


def test_mid_p_of_the_papers_example_and_of_models_that_differ_nowhere():
    assert mcnemar(*rights(1, 7)) == pytest.approx(2 * (1 + 8 / 2) / 2**8)  # their table 1: 0.039
    assert mcnemar(*rights(2, 2)) == pytest.approx(
        1 - 0.5 * 6 / 2**4
    )  # their supplement: 1 - point / 2
    assert mcnemar(*rights(0, 0)) == 1.0


def test_calibration_error_of_classes_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.3, 0.7]])
    by_hand = 2 / 3 * abs(0.9 - 1 / 2) + 1 / 3 * abs(0.7 - 1)  # of bins (0.8, 1] and (0.6, 0.8]
    assert expected_calibration_error(
        probabilities, np.array([0, 0, 1]), False, bins=5
    ) == pytest.approx(by_hand)


def test_calibration_error_of_labels_by_hand():
    probabilities, labels = np.array([[0.1, 0.3], [0.3, 0.4]]), np.array([[0, 0], [1, 1]])
    first, second = (
        (abs(0.1 - 0) + abs(0.3 - 1)) / 2,
        abs(0.35 - 1 / 2),
    )  # (0.2, 0.4] holds 0.3 and 0.4
    by_hand = (first + second) / 2
    assert expected_calibration_error(probabilities, labels, True, bins=5) == pytest.approx(by_hand)


def test_calibration_bins_are_fifteen():
    probabilities = np.array(
        [[0.05, 0.95], [0.08, 0.92]]
    )  # apart at 14/15; together in 10 or 20 bins
    assert expected_calibration_error(probabilities, np.array([0, 1]), False) == pytest.approx(
        (0.95 + 0.08) / 2
    )


def test_brier_of_two_classes_labels_and_three_classes_by_hand():
    two, three = np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])
    assert brier_score(two, np.array([1, 1]), False) == pytest.approx((0.2**2 + 0.6**2) / 2)
    assert brier_score(two, np.array([[0, 1], [0, 0]]), True) == pytest.approx(
        (0.2**2 + 0.2**2 + 0.6**2 + 0.4**2) / 4
    )
    by_hand = (0.8**2 + 0.3**2 + 0.5**2 + 0.6**2 + 0.6**2 + 0.0**2) / 2
    assert brier_score(three, np.array([0, 1]), False) == pytest.approx(by_hand)
    for probabilities, labels in ((two, [1, 0]), (three, [2, 0])):
        reference = brier_score_loss(labels, probabilities, labels=range(probabilities.shape[1]))
        assert brier_score(probabilities, np.array(labels), False) == pytest.approx(reference)


def test_interval_of_a_mean_widens_by_the_overlap_of_training_rows():
    mean, deviation, low, high = interval_of_mean([0.80, 0.84, 0.82], test_share=0.25)
    half = 4.302653 * 0.02 * (1 / 3 + 0.25) ** 0.5  # t of 2 degrees of freedom from a printed table
    assert (mean, deviation) == pytest.approx((0.82, 0.02))
    assert (low, high) == pytest.approx((0.82 - half, 0.82 + half), abs=1e-7)
    assert interval_of_mean([0.8], test_share=0.25) == (0.8, None, None, None)


def exact_f1(yes: list[bool], decided: list[bool]) -> Fraction:
    """F1 of `yes` by counting."""
    hits = sum(a and b for a, b in zip(yes, decided, strict=True))
    total = sum(yes) + sum(decided)
    return Fraction(2 * hits, total) if total else Fraction(0)


def brute_force(scores: list[float], yes: list[bool], both_classes: bool) -> float:
    """The best of all candidates, tried one by one."""
    distinct = sorted(set(scores))
    candidates = [0.5] + [(a + b) / 2 for a, b in zip(distinct, distinct[1:], strict=False)]

    def quality(threshold: float) -> Fraction:
        decided = [score > threshold for score in scores]
        rejected = exact_f1([not one for one in yes], [not one for one in decided])
        return exact_f1(yes, decided) + (rejected if both_classes else 0)

    return min(candidates, key=lambda threshold: (-quality(threshold), abs(threshold - 0.5)))


def test_thresholds_are_the_best_of_all_candidates():
    rng = np.random.default_rng(0)
    for _ in range(400):
        scores = (
            rng.integers(0, 21, (rng.integers(1, 13), 2)) / 20
        )  # coarse: many rows share a probability
        labels = (rng.random(scores.shape) < 0.2 + 0.6 * scores).astype(int)
        columns = [
            (column.tolist(), yes.astype(bool).tolist())
            for column, yes in zip(scores.T, labels.T, strict=True)
        ]
        assert tune_thresholds(scores, labels, True) == [
            brute_force(*column, False) for column in columns
        ]
        two_classes = np.stack([1 - scores[:, 0], scores[:, 0]], axis=1)
        assert tune_thresholds(two_classes, labels[:, 0], False) == [brute_force(*columns[0], True)]


def test_among_equal_thresholds_the_nearest_to_one_half_wins():
    scores = np.array(
        [[0.9, 0.8, 0.75, 0.7, 0.6], [0.45, 0.4, 0.35, 0.3, 0.1], [0.9, 0.2, 0.1, 0.1, 0.1]]
    ).T
    labels = np.array(
        [[1, 0, 0, 1, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 0]]
    ).T  # F1 2/3 by the first one or four rows
    assert tune_thresholds(scores, labels, True) == pytest.approx([0.65, 0.425, 0.5])


def test_equal_thresholds_stay_equal_in_floating_point():
    second = np.array([0.3, 0.35, 0.45, 0.55, 0.6, 0.65, 0.7])
    labels = np.array(
        [0, 0, 1, 0, 0, 0, 0]
    )  # above 0.4: F1 1/3 and 1/2; above 0.675: 0 and 5/6, a bit more in floats
    assert tune_thresholds(np.stack([1 - second, second], axis=1), labels, False) == pytest.approx(
        [0.4]
    )


def test_a_threshold_has_a_logit():
    below_one = 1 - 2.0**-53  # midway to 1 rounds to 1, whose logit is infinite
    probabilities = np.array([[0, below_one], [0, below_one], [0, 1]])
    assert tune_thresholds(probabilities, np.array([0, 0, 1]), False) == [0.5]
