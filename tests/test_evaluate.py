"""`evaluate.py`: a finished model on a labeled file. Figures are compared with scikit-learn."""

import json

import numpy as np
import pandas as pd
import pytest
from builders import write_csv
from served_models import CLASSES, FLAGS, TEXTS, build_multi_label_model, build_two_class_model
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
)

import evaluate
from inference import load
from metrics import count_patterns
from reporting import file_quality
from reporting.file_quality import Predictions, matthews_of_counts, threshold_curve
from runtime.files import read_json, write_json
from task import Task


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_two_class_model(tmp_path_factory.mktemp("two") / "model", every_format=False)


@pytest.fixture(scope="module")
def multi_label_model(tmp_path_factory):
    return build_multi_label_model(tmp_path_factory.mktemp("many") / "model")


@pytest.fixture
def labels():
    """True classes of TEXTS, of which about half are what the model predicts."""
    return np.random.default_rng(0).integers(0, 2, len(TEXTS))


@pytest.fixture
def labeled_file(labels, tmp_path):
    rows = [(text, CLASSES[label]) for text, label in zip(TEXTS, labels, strict=True)]
    return write_csv(tmp_path / "labeled.csv", ["comment", "class"], rows)


@pytest.fixture
def flags():
    return np.random.default_rng(1).integers(0, 2, (len(TEXTS), len(FLAGS)))


@pytest.fixture
def flags_file(flags, tmp_path):
    """The labels in another order than the model's, and beside a column that is none."""
    rows = [(text, *row[::-1], 7) for text, row in zip(TEXTS, flags.tolist(), strict=True)]
    return write_csv(tmp_path / "flags.csv", ["comment", *FLAGS[::-1], "year"], rows)


def measured(model_dir, source, *options) -> dict:
    """The JSON of `evaluate.py` with the torch format on one thread."""
    output = source.parent / "figures.json"
    argv = ["--model", str(model_dir), "--input", str(source), "--output", str(output)]
    argv += ["--engine", "torch", "--threads", "1", "--overwrite", *options]
    assert evaluate.main(argv) == 0
    return read_json(output)


def values(document: dict) -> dict:
    return {name: metric["value"] for name, metric in document["metrics"].items()}


def column(document: dict, name: str) -> list:
    return [line[name] for line in document["per_label"]]


def test_the_figures_of_classes_are_those_of_scikit_learn(model, labeled_file, labels):
    document = measured(model, labeled_file)
    answers = load(model, "torch", threads=1)(TEXTS)
    predicted = [CLASSES.index(answer["label"]) for answer in answers]
    assert values(document) == pytest.approx(
        {
            "macro_f1": f1_score(labels, predicted, average="macro"),
            "accuracy": accuracy_score(labels, predicted),
            "mcc": matthews_corrcoef(labels, predicted),
        }
    )
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert column(document, name) == pytest.approx(list(score(labels, predicted, average=None)))
    assert column(document, "rows") == np.bincount(labels).tolist()
    assert column(document, "predicted") == np.bincount(predicted).tolist()
    assert document["confusion"] == confusion_matrix(labels, predicted).tolist()
    assert (document["rows"], document["labels"]) == (len(TEXTS), list(CLASSES))
    for metric in document["metrics"].values():
        assert metric["low"] < metric["value"] < metric["high"]


def test_the_figures_of_labels_are_those_of_scikit_learn(multi_label_model, flags_file, flags):
    document = measured(multi_label_model, flags_file)
    answers = load(multi_label_model, "torch", threads=1)(TEXTS)
    predicted = np.array([[label in answer["label"] for label in FLAGS] for answer in answers])
    correlations = [matthews_corrcoef(flags[:, i], predicted[:, i]) for i in range(len(FLAGS))]
    assert values(document) == pytest.approx(
        {
            "macro_f1": f1_score(flags, predicted, average="macro"),
            "accuracy": accuracy_score(flags, predicted),
            "mcc": np.mean(correlations),
        }
    )
    assert column(document, "recall") == pytest.approx(
        list(recall_score(flags, predicted, average=None))
    )
    assert column(document, "label") == list(FLAGS)
    assert column(document, "rows") == flags.sum(axis=0).tolist()


def test_the_curve_of_a_threshold_is_that_of_scikit_learn(model, labeled_file, labels):
    document = measured(model, labeled_file)
    scores = np.array([one["scores"]["foul"] for one in load(model, "torch", threads=1)(TEXTS)])
    ((label, curve),) = document["thresholds"].items()
    assert label == "foul" and [entry["threshold"] for entry in curve] == pytest.approx(
        np.arange(0.05, 1, 0.05)
    )
    for entry in curve:
        predicted = scores > entry["threshold"]
        expected = {
            "predicted": predicted.sum(),
            "precision": precision_score(labels, predicted, zero_division=0),
            "recall": recall_score(labels, predicted),
            "f1": f1_score(labels, predicted),
            "macro_f1": f1_score(labels, predicted, average="macro"),
        }
        assert {name: entry[name] for name in expected} == pytest.approx(expected)
    assert curve[9]["macro_f1"] == pytest.approx(document["metrics"]["macro_f1"]["value"])


def test_a_multi_label_model_has_a_curve_per_label(multi_label_model, flags_file, flags):
    document = measured(multi_label_model, flags_file)
    answers = load(multi_label_model, "torch", threads=1)(TEXTS)
    assert list(document["thresholds"]) == list(FLAGS)
    for index, label in enumerate(FLAGS):
        scores = np.array([answer["scores"][label] for answer in answers])
        entry = document["thresholds"][label][3]
        assert entry["threshold"] == 0.2
        assert entry["f1"] == pytest.approx(f1_score(flags[:, index], scores > 0.2))
        assert "macro_f1" not in entry


def test_the_curve_by_hand():
    scores = np.array([0.9, 0.5, 0.3, 0.2])
    curve = threshold_curve(scores, np.array([1, 0, 1, 0], dtype=bool), average_classes=True)
    assert curve[9] == {  # only 0.9 is above 0.5: one of two positives, and both negatives
        "threshold": 0.5,
        "predicted": 1,
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "macro_f1": pytest.approx((2 / 3 + 4 / 5) / 2),
    }


@pytest.mark.parametrize("kind", ["binary", "five classes", "multi-label"])
def test_the_correlation_of_drawn_patterns_is_that_of_their_rows(kind):
    rng = np.random.default_rng(4)
    num_labels = {"binary": 2, "five classes": 5, "multi-label": 3}[kind]
    multi_label = kind == "multi-label"
    shape = (60, 3) if multi_label else 60
    truth = rng.integers(0, 2 if multi_label else num_labels, shape)
    noise = rng.integers(0, 2 if multi_label else num_labels, shape)
    decisions = np.where(rng.random(shape) < 0.6, truth, noise)
    counts, (labels, predicted) = count_patterns(num_labels, truth, decisions)
    drawn = rng.multinomial(60, counts / 60, size=20).astype(float)
    correlations = matthews_of_counts(drawn, labels, predicted, multi_label=multi_label)
    for draw, correlation in zip(drawn.astype(int), correlations, strict=True):
        rows = np.repeat(np.arange(len(counts)), draw)
        if multi_label:
            pairs = zip(labels[rows].T, predicted[rows].T, strict=True)
            expected = np.mean([matthews_corrcoef(one, other) for one, other in pairs])
        else:
            expected = matthews_corrcoef(labels[rows].argmax(1), predicted[rows].argmax(1))
        assert correlation == pytest.approx(expected)


def test_a_constant_column_has_no_correlation():
    labels = np.array([[True, False], [False, True]])
    decisions = np.array([[True, False], [True, False]])
    counts = np.array([3.0, 4.0])
    assert matthews_of_counts(counts, labels, decisions, multi_label=False) == 0
    assert matthews_of_counts(counts, labels, decisions, multi_label=True) == 0


def test_intervals_do_not_depend_on_the_size_of_a_block(monkeypatch, labels):
    decisions = np.where(np.arange(len(labels)) % 3 == 0, 1 - labels, labels)
    probabilities = np.eye(2)[decisions]
    predictions = Predictions(Task(CLASSES, False), labels, decisions, probabilities)
    at_once = file_quality.headline_metrics(predictions)
    monkeypatch.setattr(file_quality, "BLOCK_VALUES", 70)
    assert file_quality.headline_metrics(predictions) == at_once


def test_the_worst_errors_are_wrong_rows_in_order_of_confidence():
    task = Task(("a", "b"), False)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    labels = np.array([1, 1, 1, 0])
    predictions = Predictions(task, labels, probabilities.argmax(axis=1), probabilities)
    errors = file_quality.worst_errors(predictions)
    assert [error["row"] for error in errors] == [0, 3, 2]
    assert errors[1] == {
        "row": 3,
        "true": ["a"],
        "predicted": ["b"],
        "surprise": pytest.approx(0.7),
    }
    assert len(file_quality.worst_errors(predictions, limit=2)) == 2


def test_the_worst_errors_of_a_multi_label_model_count_wrong_labels_only():
    task = Task(("a", "b"), True)
    probabilities = np.array([[0.55, 0.51], [0.1, 0.95], [0.49, 0.2]])
    labels = np.array([[1, 1], [0, 0], [0, 1]])
    decisions = (probabilities > 0.5).astype(int)
    errors = file_quality.worst_errors(Predictions(task, labels, decisions, probabilities))
    assert [(error["row"], error["true"], error["predicted"]) for error in errors] == [
        (1, [], ["b"]),
        (2, ["b"], []),
    ]
    assert [error["surprise"] for error in errors] == pytest.approx([0.95, 0.8])


def test_errors_have_their_line_and_text_unless_examples_are_off(
    model, labeled_file, capsys, labels
):
    lines = pd.read_csv(labeled_file)
    document = measured(model, labeled_file)
    assert len(document["errors"]) == 10
    for error in document["errors"]:
        row = lines.iloc[error["number"] - 2]  # the header is line 1
        assert (error["unit"], error["text"], error["true"]) == (
            "line",
            row["comment"],
            [row["class"]],
        )
        assert error["predicted"] != error["true"]
    printed = capsys.readouterr().out
    assert all(f"\n    {error['text']}\n" in printed for error in document["errors"])
    quiet = measured(model, labeled_file, "--no_examples")
    printed = capsys.readouterr().out
    assert not any("text" in error for error in quiet["errors"])
    assert [error["number"] for error in quiet["errors"]] == [
        error["number"] for error in document["errors"]
    ]
    assert not any(f"\n    {text}\n" in printed for text in TEXTS)


def test_the_text_has_the_figures_of_the_json(model, labeled_file, capsys):
    document = measured(model, labeled_file)
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    for metric in document["metrics"].values():
        cells = [f"{metric['value']:.4f}", f"[{metric['low']:.4f},", f"{metric['high']:.4f}]"]
        assert cells in [line[1:] for line in lines]
    for line in document["per_label"]:
        cells = [f"{line[name]:.4f}" for name in ("precision", "recall", "f1")]
        assert [line["label"], str(line["rows"]), str(line["predicted"]), *cells] in lines
    for heading in ("Confusion matrix", "Threshold on the probability of foul", "Worst errors"):
        assert heading in printed


def test_many_classes_are_shown_as_a_list_of_confusions(capsys):
    from reporting.file_quality_text import confusion_text

    labels = [f"class {i}" for i in range(20)]
    confusion = np.diag(np.full(20, 9))
    confusion[3, 7] = 1
    confusion[5, 2] = 6
    document = {"labels": labels, "confusion": confusion.tolist(), "problem_type": "single"}
    lines = confusion_text(document).splitlines()
    assert [line.split("  ")[0] for line in lines[4:]] == ["class 5", "class 3"]
    assert lines[4].endswith("40%") and lines[5].endswith("10%")


def test_labels_without_rows_are_no_part_of_macro_f1_unless_they_are_predicted():
    task = Task(("a", "b", "c"), False)
    labels = np.array([0, 0, 1, 1])
    right = Predictions(task, labels, np.array([0, 0, 1, 0]), np.eye(3)[[0, 0, 1, 0]])
    quality = file_quality.file_quality(right)
    assert quality["metrics"]["macro_f1"]["value"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert quality["notes"][0] == "the file has no row of 'c': not part of macro-F1"
    wrong = Predictions(task, labels, np.array([0, 0, 1, 2]), np.eye(3)[[0, 0, 1, 2]])
    quality = file_quality.file_quality(wrong)
    assert quality["metrics"]["macro_f1"]["value"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert "they count as F1 = 0" in quality["notes"][0]
    assert quality["notes"][1] == "the file has only 4 rows: the intervals are rough"


def test_a_constant_model_is_the_first_note():
    task = Task(("a", "b"), False)
    decisions = np.ones(200, dtype=int)
    predictions = Predictions(task, np.arange(200) % 2, decisions, np.eye(2)[decisions])
    assert file_quality.quality_notes(predictions) == [
        "the model predicts 'b' for every row: a constant classifier"
    ]


def test_a_file_with_one_class_is_measured(model, tmp_path):
    rows = [(text, "foul") for text in TEXTS]
    document = measured(model, write_csv(tmp_path / "one.csv", ["comment", "class"], rows))
    recall = document["per_label"][1]["recall"]
    assert document["metrics"]["accuracy"]["value"] == pytest.approx(recall)


def test_rows_without_a_text_or_a_label_are_left_out_and_named(model, labels, tmp_path, caplog):
    rows = [(text, CLASSES[label]) for text, label in zip(TEXTS, labels, strict=True)]
    rows[3] = ("", "foul")
    rows[5] = (TEXTS[5], "")
    with caplog.at_level("WARNING"):
        document = measured(model, write_csv(tmp_path / "gaps.csv", ["comment", "class"], rows))
    assert (document["rows"], document["dropped_rows"]) == (len(TEXTS) - 2, 2)
    assert "2 rows without a text or a label are left out: lines 5, 7" in caplog.text


def test_columns_of_training_are_used_before_others(model, labels, tmp_path, monkeypatch):
    rows = []
    for text, label in zip(TEXTS, labels, strict=True):
        rows.append((text, text[::-1], CLASSES[label], CLASSES[1 - label]))
    source = write_csv(tmp_path / "four.csv", ["a", "b", "c", "d"], rows)
    record = read_json(model / "stage.json")
    write_json(model / "stage.json", record | {"text_column": "a", "label_columns": ["c"]})
    try:
        trained = values(measured(model, source))
    finally:
        write_json(model / "stage.json", record)
    named = values(measured(model, source, "--text_column", "a", "--label_columns", "c"))
    other = values(measured(model, source, "--text_column", "a", "--label_columns", "d"))
    assert trained == named
    assert other["accuracy"] == pytest.approx(1 - named["accuracy"])


def test_predictions_of_the_model_are_not_taken_for_labels(model, labels, tmp_path, capsys):
    rows = [(text, "foul") for text in TEXTS]
    source = write_csv(tmp_path / "scored.csv", ["comment", "predicted_label"], rows)
    argv = ["--model", str(model), "--input", str(source)]
    assert evaluate.main(argv) == 2
    assert "--label_columns is needed: the file has no candidate" in capsys.readouterr().err


def test_the_file_of_training_is_noticed(model, labeled_file, capsys):
    results = {"config": {"dataset_path": "elsewhere/labeled.csv"}, "rows": [{"stage": "x"}]}
    path = model / "results_final.json"
    path.write_text(json.dumps(results))
    try:
        document = measured(model, labeled_file)
    finally:
        path.unlink()
    assert document["notes"][-1].startswith(
        "the model was made from a file with this name, elsewhere/labeled.csv"
    )
    assert "note: the model was made from a file with this name" in capsys.readouterr().out


@pytest.mark.parametrize(
    "header, row, options, expected",
    [
        (
            ["comment", "class"],
            ["a text", "spam"],
            [],
            "--label_columns is class, but the model does not have its labels 'spam' (line 92)",
        ),
        (
            ["comment", "class"],
            ["a text", "spam"],
            ["--label_columns", "class"],
            "--label_columns is class, but the model does not have its labels 'spam' (line 92); "
            "those of the model are 'fair', 'foul'",
        ),
        (
            ["comment", "class"],
            ["a text", "foul"],
            ["--label_columns", "none"],
            "--label_columns is none, but the file has the columns comment, class",
        ),
        (
            ["comment", "class"],
            ["a text", "foul"],
            ["--label_columns", "comment", "class"],
            "--label_columns is comment class, but the model has one label per text",
        ),
        (
            ["comment", "class"],
            ["a text", "foul"],
            ["--label_columns", "class", "--text_column", "class"],
            "--label_columns includes class, but that is the text column",
        ),
        (
            ["comment", "class"],
            ["a text", "foul"],
            ["--batch", "0", "--threads", "x", "--output", "figures.csv"],
            "--batch is 0, but must be at least 1",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    model, labels, tmp_path, capsys, header, row, options, expected
):
    rows = [(text, CLASSES[label]) for text, label in zip(TEXTS, labels, strict=True)]
    source = write_csv(tmp_path / "labeled.csv", header, [*rows, row])
    assert evaluate.main(["--model", str(model), "--input", str(source), *options]) == 2
    printed = capsys.readouterr()
    first, *others = printed.err.splitlines()
    assert first.startswith(f"evaluate.py: error: {expected}") and printed.out == ""
    assert all(line.startswith("evaluate.py: error: --") for line in others)


def test_a_multi_label_file_without_a_label_or_with_another_is_refused(
    multi_label_model, flags_file, capsys
):
    argv = ["--model", str(multi_label_model), "--input", str(flags_file), "--label_columns"]
    assert evaluate.main([*argv, "ad", "rude", "year"]) == 2
    assert "must be the labels of the model ('ad', 'rude', 'sad'): 'year' unknown" in (
        capsys.readouterr().err
    )
    assert evaluate.main([*argv, "ad", "rude"]) == 2
    assert "'sad' missing" in capsys.readouterr().err
    pd.read_csv(flags_file).drop(columns="sad").to_csv(flags_file, index=False)
    assert evaluate.main(argv[:-1]) == 2
    assert "the file has no column for the labels 'sad'" in capsys.readouterr().err


def test_an_output_is_replaced_only_if_asked_for(model, labeled_file, tmp_path, capsys):
    output = tmp_path / "figures.json"
    output.write_text("mine")
    argv = ["--model", str(model), "--input", str(labeled_file), "--output", str(output)]
    assert evaluate.main(argv) == 2
    assert "that file exists; --overwrite replaces it" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_labels_and_texts_do_not_control_the_terminal(model, labels, tmp_path, capsys):
    rows = [(f"{text} \x1b[31m", CLASSES[label]) for text, label in zip(TEXTS, labels, strict=True)]
    measured(model, write_csv(tmp_path / "red.csv", ["comment", "class"], rows))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\\x1b[31m" in printed
