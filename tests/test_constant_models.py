"""A model that predicts the same for every test row is named before anything else."""

import json

import pytest
from page_parser import ParsedPage
from result_builders import result_row, write_run

from reporting import results, run_page
from reporting.constant_models import constant_prediction

ADVICE = (
    "for every test row: a constant classifier is of no use, however small and fast; more epochs, "
    "another --teacher_lr or --lr, or --class_weights balanced may help"
)


def row(stage: str, confusion: list, labels: tuple[str, ...] = ("no", "yes"), **metrics):
    f1 = {f"f1.{label}": 0.5 for label in labels}
    return result_row(stage, confusion=confusion, **f1, **metrics)


@pytest.mark.parametrize(
    "confusion, expected",
    [
        ([[0, 10], [0, 12]], "'yes'"),
        ([[10, 0], [12, 0]], "'no'"),
        ([[10, 0], [11, 1]], None),
        ([[0, 1], [12, 0]], None),  # always wrong, but not constant
    ],
)
def test_a_constant_prediction_is_one_column_of_the_confusion_matrix(confusion, expected):
    assert constant_prediction(row("fp16", confusion)) == expected


@pytest.mark.parametrize(
    "confusion, expected",
    [
        ([[[8, 0], [2, 0]], [[5, 0], [5, 0]]], "no label"),
        ([[[0, 8], [0, 2]], [[5, 0], [5, 0]]], "'no'"),
        ([[[0, 8], [0, 2]], [[0, 5], [0, 5]]], "'no' and 'yes'"),
        ([[[8, 0], [2, 0]], [[5, 0], [4, 1]]], None),
    ],
)
def test_a_constant_multi_label_prediction_is_constant_for_every_label(confusion, expected):
    assert constant_prediction(row("fp16", confusion)) == expected


def test_the_note_about_constant_models_comes_first():
    constant = [[0, 10], [0, 12]]
    rows = [
        row("linear", [[9, 1], [1, 11]], macro_f1=0.9),
        row("teacher", constant, unsteady=True),
        row("start", [[10, 0], [12, 0]]),  # not trained
        row("student", constant, bytes=3_000_000, size_mb=3.0),
        row("fp16", [[9, 1], [0, 12]]),
    ]
    first, *others = results.warnings_of(rows)
    assert first == f"teacher, student predict 'yes' {ADVICE}"
    assert len(others) == 2  # the student is larger, and the linear baseline is better


def test_a_constant_model_of_one_repeat_is_named_with_the_repeat():
    good = [[9, 1], [1, 11]]
    rows = []
    for name, confusion in (("seed 1", good), ("seed 2", [[10, 0], [12, 0]]), ("mean", good)):
        rows += [row(stage, good, repeat=name) for stage in ("linear", "teacher")]
        rows.append(row("student", confusion, repeat=name))
    assert results.warnings_of(rows)[:1] == [f"student (seed 2) predicts 'no' {ADVICE}"]


def test_the_page_shows_the_note_first(tmp_path):
    artifact = write_run(tmp_path)
    path = artifact / "results_final.json"
    document = json.loads(path.read_text())
    for one in document["rows"]:
        one |= {f"f1.{label}": 0.5 for label in document["labels"]}
    document["rows"][-1]["confusion"] = [[10, 0], [10, 0]]
    page = ParsedPage(run_page.run_page(document, [], with_examples=False))
    assert page.pieces[0] == f"fp16 predicts '<u>foul</u>' {ADVICE}"


def test_a_wide_interval_is_explained():
    rows = [result_row("linear"), result_row("teacher")]
    rows.append(result_row("fp16", delta_macro_f1_low=-0.09, delta_macro_f1_high=0.04))
    (note,) = [one for one in results.warnings_of(rows) if "few" in one]
    assert "between fp16 and the teacher is 13 points wide" in note
    rows[-1]["delta_macro_f1_high"] = 0.0
    assert not [one for one in results.warnings_of(rows) if "few" in one]
