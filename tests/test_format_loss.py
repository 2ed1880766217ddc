"""The difference of a format from its own full-precision parent, and the note if it is a
significant loss."""

from pathlib import Path

import numpy as np
import pytest
from page_parser import ParsedPage
from result_builders import result_row, write_run

from evaluation import difference_from_parent, write_predictions
from experiments.experiment import mean_rows
from metrics import paired_bootstrap
from reporting import results, run_page
from reporting.model_card import remarks_of
from task import Task

TASK = Task(("0", "1"), False)


def loss_row(stage: str, delta: float, low: float, high: float) -> dict:
    """A format that is smaller than its parent, with an interval of its difference from it."""
    return result_row(
        stage,
        parent="student",
        parent_delta_macro_f1=delta,
        parent_delta_macro_f1_low=low,
        parent_delta_macro_f1_high=high,
        bytes=900_000,
    )


def rows_with(row: dict) -> list[dict]:
    student = result_row("student", parent="teacher", bytes=1_500_000)
    return [result_row("linear"), result_row("teacher"), student, row]


@pytest.mark.parametrize(
    "stage, advice",
    [
        ("openvino-int4", "--qat int4, --quant_auto, or a format with 8 bits"),
        ("dynamic", "--qat int8, --quant_auto, or a format with more bits"),
    ],
)
def test_a_format_whose_interval_is_below_zero_gets_a_note(stage, advice):
    note = (
        f"{stage}: macro-F1 -2.1 points against its full-precision parent, student "
        f"[-3.0, -0.1]: a significant loss; consider {advice}"
    )
    assert results.warnings_of(rows_with(loss_row(stage, -0.021, -0.030, -0.0012))) == [note]
    assert "a significant loss" in remarks_of([], [note])[0]  # of the model card


def test_a_format_whose_interval_reaches_zero_gets_no_note():
    assert results.warnings_of(rows_with(loss_row("int4", -0.021, -0.045, 0.0))) == []
    assert results.warnings_of(rows_with(loss_row("int4", 0.021, 0.004, 0.045))) == []


def test_the_page_has_the_note(tmp_path):
    document = results.read_results(write_run(tmp_path))
    loss = loss_row("fp16", -0.1, -0.15, -0.05)
    document["rows"][-1] |= {name: loss[name] for name in loss if name.startswith("parent_")}
    parsed = ParsedPage(run_page.run_page(document, [], with_examples=False))
    assert "fp16: macro-F1 -10.0 points against its full-precision parent" in parsed.text


def write_decisions(path: Path, labels: np.ndarray, decisions: np.ndarray) -> Path:
    """Predictions whose largest logits are these decisions."""
    logits = np.eye(2)[decisions].astype(np.float32)
    write_predictions(path, list(range(len(labels))), labels, logits, multi_label=False)
    return path


def test_the_difference_is_that_of_the_same_rows_from_the_parent_not_the_teacher(tmp_path):
    """The parent makes no error; the format has one of each kind among 4 rows: macro-F1 1/2."""
    labels = np.array([0, 0, 1, 1])
    parent = write_decisions(tmp_path / "student.parquet", labels, labels)
    decisions = np.array([0, 1, 1, 0])
    path = write_decisions(tmp_path / "int4.parquet", labels, decisions)
    row = difference_from_parent(path, parent, TASK, seed=3)
    assert row["parent_delta_macro_f1"] == pytest.approx(-0.5)
    expected = paired_bootstrap(labels, decisions, labels, 2, seed=3)
    assert row == {f"parent_{name}": value for name, value in expected.items()}
    assert row["parent_delta_macro_f1_high"] <= 0 <= row["parent_delta_macro_f1_high"] + 0.5


def test_the_mean_of_repeats_has_the_interval_of_the_difference_from_the_parent():
    rows = []
    for repeat, delta in (("seed 1", -0.02), ("seed 2", -0.03), ("seed 3", -0.04)):
        row = loss_row("int4", delta, -1.0, 1.0)
        rows.append(row | {"repeat": repeat, "accuracy": 0.8, "macro_f1": 0.7})
    (mean,) = mean_rows(rows, 0.25)
    assert mean["parent_delta_macro_f1"] == pytest.approx(-0.03)
    # t(0.975, 2) = 4.3027 times the deviation 0.01 times sqrt(1/3 + 1/4)
    assert mean["parent_delta_macro_f1_high"] == pytest.approx(-0.03 + 0.0329, abs=1e-4)
