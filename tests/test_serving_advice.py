"""Which format to ship, and the code that serves it."""

import json
import re

import pytest
from page_parser import ParsedPage, check_self_contained
from result_builders import result_row, write_run

from reporting import html, results, run_page
from reporting.confusions import confusion_list
from reporting.serving_advice import reason_to_ship_none, served_formats, shipping_advice


def served_row(stage, engine, megabytes, ms, texts_s, macro_f1=0.8):
    return result_row(
        stage,
        engine=engine,
        bytes=int(1e6 * megabytes),
        size_mb=megabytes,
        latency_ms_p50=ms,
        throughput=texts_s,
        macro_f1=macro_f1,
    )


ROWS = [
    served_row("torch-a", "torch", 9.0, 9.0, 100, 0.95),
    served_row("torch-b", "torch", 8.0, 8.0, 200, 0.94),
    served_row("small", "onnx", 1.0, 3.0, 400, 0.80),
    served_row("fast", "openvino", 2.0, 1.0, 500, 0.81),
    served_row("bulk", "openvino", 3.0, 2.0, 900, 0.82),
    served_row("best", "onnx", 4.0, 4.0, 300, 0.90),
]


def test_each_question_has_the_format_that_answers_it():
    assert [(step.question, step.stage) for step in shipping_advice(ROWS)] == [
        ("Must PyTorch load it?", "torch-b"),
        ("Is the size of the download what counts?", "small"),
        ("Does it answer one text at a time?", "fast"),
        ("Does it label many texts at once?", "bulk"),
        ("", "best"),
    ]


def test_a_question_that_changes_nothing_is_left_out():
    rows = [ROWS[2], served_row("all", "openvino", 2.0, 1.0, 900, 0.9)]
    assert [(step.question, step.stage) for step in shipping_advice(rows)] == [
        ("Is the size of the download what counts?", "small"),
        ("", "all"),
    ]
    (only,) = shipping_advice([ROWS[0]])
    assert (only.question, only.stage) == ("", "torch-a")
    assert shipping_advice([]) == []


def test_neighboring_questions_with_the_same_answer_are_one():
    rows = [ROWS[2], served_row("fast", "openvino", 2.0, 1.0, 900), ROWS[5]]
    assert [(step.question, step.stage) for step in shipping_advice(rows)] == [
        ("Is the size of the download what counts?", "small"),
        ("Does it answer one text at a time? Does it label many texts at once?", "fast"),
        ("", "best"),
    ]


def test_of_equally_good_formats_the_smallest_is_the_best():
    rows = [ROWS[5] | {"stage": "large", "bytes": 10**9}, ROWS[5], ROWS[2], ROWS[3], ROWS[4]]
    assert shipping_advice(rows)[-1].stage == "best"


def test_a_run_without_a_useful_format_says_so(tmp_path):
    linear = result_row("linear", macro_f1=0.96, size_mb=0.05)
    assert reason_to_ship_none(ROWS, linear) == (
        "the best of them has macro-F1 0.9500, and the linear baseline 0.9600 with 0.05 MB"
    )
    assert reason_to_ship_none(ROWS, linear | {"macro_f1": 0.95}) == ""
    constant = {"confusion": [[0, 9], [0, 9]], "f1.no": 0.0, "f1.yes": 0.6}
    expected = "each of them predicts the same for every test row"
    assert reason_to_ship_none([row | constant for row in ROWS], linear) == expected
    assert reason_to_ship_none([ROWS[0], ROWS[1] | constant], linear) != expected
    document = results.read_results(write_run(tmp_path))
    document["rows"][0]["macro_f1"] = 0.99
    page = ParsedPage(run_page.run_page(document, [], with_examples=False))
    assert "None yet: the best of them has macro-F1 0.8000" in page.text


def test_the_facts_are_those_of_the_row():
    (step,) = shipping_advice([ROWS[5] | {"delta_macro_f1_low": -0.02}])
    assert step.facts == (
        "4.00 MB, 4.00 ms per text, 300 texts/s in batches, macro-F1 0.9000 "
        "(no measurable difference)"
    )
    lost = {"delta_macro_f1": -0.031, "delta_macro_f1_low": -0.04, "delta_macro_f1_high": -0.01}
    (step,) = shipping_advice([ROWS[5] | lost | {"throughput": None}])
    assert step.facts.endswith("ms per text, macro-F1 0.9000 (-3.1 points vs. the teacher)")


@pytest.mark.parametrize(
    "files, engine",
    [
        ("config.json model.safetensors tokenizer.json", "torch"),
        ("config.json onnx/model_q4.onnx tokenizer.json", "onnx/model_q4.onnx"),
        ("openvino/openvino_model.bin openvino/openvino_model.xml", "openvino/openvino_model.xml"),
    ],
)
def test_the_code_of_a_format_loads_that_format(files, engine):
    row = result_row("x", files=files)
    document = {"config": {"output_dir": "my runs"}, "experiment": "it's"}
    (served,) = served_formats([row], document)
    calls = []
    code = served.code.replace("from inference import load", "")
    exec(code, {"load": lambda *args, **kwargs: calls.append((args, kwargs)) or list})
    assert calls == [(("my runs/compressed_models/it's",), {"engine": engine})]


def test_the_page_has_the_advice_and_the_code(tmp_path):
    document = results.read_results(write_run(tmp_path))
    page = run_page.run_page(document, [], with_examples=False, shipped=["student", "fp16"])
    check_self_contained(page)
    parsed = ParsedPage(page)
    codes = [piece for piece in parsed.pieces if piece.startswith("from inference import load")]
    assert len(codes) == 2 and '"compressed_models/run", engine="torch"' in codes[0]
    assert "fp16" in parsed.text.partition("Which format do I ship?")[2].partition("Code that")[0]
    without = run_page.run_page(document, [], with_examples=False, shipped=[])
    assert "Which format do I ship?" not in without


def test_no_text_of_a_run_can_become_a_script(tmp_path):
    document = results.read_results(write_run(tmp_path, "</script><script>alert(1)</script>"))
    page = run_page.run_page(document, [], with_examples=True)
    check_self_contained(page)
    assert page.count("<script>") == page.count("</script>") == 1


def test_many_classes_are_shown_as_confusions(tmp_path):
    labels = [f"class {number}" for number in range(21)]
    confusion = [[5 if true == predicted else 0 for predicted in range(21)] for true in range(21)]
    confusion[4][9] = 5
    confusion[9][4] = 1
    confusion[9][9] = 3
    assert confusion_list(labels, confusion)[1:] == [
        ["class 4", "class 9", "5", "50%"],
        ["class 9", "class 4", "1", "25%"],
    ]
    artifact = write_run(tmp_path)
    document = json.loads((artifact / "results_final.json").read_text()) | {"labels": labels}
    for row in document["rows"]:
        row["confusion"] = confusion
        row |= {f"f1.{label}": 0.5 for label in labels}
    parsed = ParsedPage(run_page.run_page(document, [], with_examples=False))
    assert parsed.named_tables["Confusions of teacher"] == confusion_list(labels, confusion)
    assert "Confusion matrix of teacher" not in parsed.named_tables
    assert len(parsed.named_tables["F1 by label"]) == 22
    assert ("details", {}) in parsed.tags


@pytest.mark.parametrize(
    "epochs, ticks",
    [(1, ["1"]), (3, ["1", "2", "3"]), (25, ["3", "6", "9", "12", "15", "18", "21", "24"])],
)
def test_the_axis_of_epochs_has_whole_numbers(epochs, ticks):
    from reporting import plots

    history = []
    for epoch in range(1, epochs + 1):
        history.append({"kept": epoch == 1, "epoch": float(epoch), "loss": 1 / epoch})
    svg = plots.plot_curves({"teacher": history}, "loss", "training loss", "loss")
    texts = re.findall(r">([^<>\s][^<>]*)</text>", svg)
    assert texts[: len(ticks) + 1] == [*ticks, "epoch"]


def test_a_point_shows_its_numbers_under_the_mouse():
    svg = html.trade_off_plots({"fp16": result_row("fp16", size_mb=2.5, macro_f1=0.75)})[0]
    assert "<title>fp16: 2.50 MB, macro-F1 0.7500</title>" in svg


def test_two_repeats_are_shown_without_intervals(tmp_path):
    from experiments.experiment import mean_rows

    document = results.read_results(write_run(tmp_path))
    repeats = []
    for name in ("fold 1", "fold 2"):
        repeats += [row | {"repeat": name} for row in document["rows"]]
    document |= {"rows": repeats + mean_rows(repeats, 0.25), "shipped": "fold 1"}
    parsed = ParsedPage(run_page.run_page(document, [], with_examples=False))
    assert "There are no confidence intervals: they need three repeats." in parsed.text
    assert "too few repeats for an interval" in parsed.text
    run_page.check_complete("DIR", document["rows"])
