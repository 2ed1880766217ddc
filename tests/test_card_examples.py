"""The examples of the card: one text of each label, short, and none with `--no_examples`."""

from datasets import Dataset

from experiments.experiment import label_examples
from reporting import model_card, snippets
from task import Task

ABOUT = {
    "labels": ["good", "bad|", "never"],
    "split_rows": {"train": 3, "test": 4},
    "label_rows": {
        "train": {"good": 1, "bad|": 2, "never": 0},
        "test": {"good": 3, "bad|": 1, "never": 0},
    },
}


def test_the_example_of_a_label_is_the_first_test_text_that_has_it():
    texts = ["a", "b", "c", "d"]
    single = Dataset.from_dict({"text": texts, "label": [1, 0, 1, 0]})
    examples = label_examples(single, Task(("good", "bad|", "never"), False))
    assert examples == {"good": "b", "bad|": "a"}
    flags = [[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]]
    multiple = Dataset.from_dict({"text": texts, "label": flags})
    assert label_examples(multiple, Task(("good", "bad|", "never"), True)) == {
        "good": "c",
        "bad|": "b",
    }


def test_the_table_has_counts_and_escaped_short_examples():
    table = model_card.label_table(ABOUT, {"good": "<b>|", "bad|": "x" * 121}).splitlines()
    assert table == [
        "| label | train rows | test rows | example from the test rows |",
        "| --- | --: | --: | --: |",
        "| good | 1 | 3 | \\<b\\>\\| |",
        f"| bad\\| | 2 | 1 | {'x' * 120} \\[...\\] |",
        "| never | 0 | 0 |  |",
        "| all rows | 3 | 4 |  |",
    ]


def test_without_examples_the_table_has_counts_only():
    table = model_card.label_table(ABOUT, {}).splitlines()
    assert table[0] == "| label | train rows | test rows |"
    assert table[2:4] == ["| good | 1 | 3 |", "| bad\\| | 2 | 1 |"]


def graph_row(file: str, **metrics: float) -> dict:
    return {"stage": file, "files": f"config.json {file}", "bytes": 1} | metrics


def test_transformers_js_gets_a_graph_that_it_knows():
    rows = [
        graph_row("onnx/model_static.onnx", latency_ms_p50=1.0),
        graph_row("openvino/openvino_model.xml", latency_ms_p50=1.0),
    ]
    assert snippets.javascript_snippets(rows, multi_label=False) == []
    rows += [
        graph_row("onnx/model_q4.onnx", latency_ms_p50=3.0),
        graph_row("onnx/model_quantized.onnx", latency_ms_p50=2.0),
    ]
    (snippet,) = snippets.javascript_snippets(rows, multi_label=False)
    assert '{ dtype: "q8" }' in snippet["code"]
    assert "`onnx/model_quantized.onnx`" in snippet["requirements"]


def test_an_optimum_snippet_names_folder_and_file():
    rows = [graph_row("onnx/model_q4.onnx", latency_ms_p50=1.0)]
    code = snippets.optimum_snippet(rows, multi_label=False)["code"]
    assert 'subfolder="onnx", file_name="model_q4.onnx"' in code
    compile(code.removeprefix("```python\n").removesuffix("```"), "snippet", "exec")


def test_optimum_snippets_print_every_label_that_applies(capsys):
    answers = [
        [{"label": "ad", "score": 0.9}, {"label": "sad", "score": 0.6}],
        [{"label": "ad", "score": 0.4}],
    ]
    for multi_label in (False, True):
        rows = [graph_row("onnx/model.onnx", latency_ms_p50=1.0)]
        code = snippets.optimum_snippet(rows, multi_label=multi_label)["code"]
        (decision,) = [line for line in code.splitlines() if line.startswith("print(")]
        exec(decision, {"answers": answers})
    assert capsys.readouterr().out == "['ad', 'ad']\n[['ad', 'sad'], []]\n"
