"""The model card: the hub can read it, it shows the results, its snippets run, and no name breaks
it."""

import ast
import json
import os
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from builders import sentence
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from measuring import quick_measuring

import export
from engines import latency
from engines.classifier import load
from engines.engine import load_engine, predict_logits
from reporting import model_card, snippets
from reporting.markdown import code_block, escape_markdown
from runtime.artifacts import damaged_file, read_record, source_hash

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = 'a|b`<script>x</script>\n---\n# *t*: [l](http://x) "q" \u202eabc ```'
FORMATS = {  # package that a snippet imports -> the format that it loads
    "torch": "torch",
    "onnxruntime": "onnx/model_quantized.onnx",
    "openvino": "openvino/openvino_model.xml",
}
RUN_SNIPPETS = """
import contextlib, io, json, sys
answers = []
for code in json.load(sys.stdin):
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    answers.append([printed.getvalue(), names["logits"].tolist() if "logits" in names else None])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def artifact(in_measuring_process, tmp_path_factory) -> Path:
    """A run on a file and labels with hostile names that ships a format for each engine."""
    from main import main

    output = tmp_path_factory.mktemp("card")
    rng = random.Random(0)
    rows = [(f"{sentence(rng, i % 2)} {i}", ("plain", HOSTILE)[i % 2]) for i in range(160)]
    file = output / "od`d |name: #1.csv"
    pd.DataFrame(rows, columns=["Comments", "HateSpeech"]).to_csv(file, index=False)
    argv = ["--dataset_path", str(file), "--output_dir", str(output), "--experiment", "run"]
    argv += ["--pipeline", "kd_quant", "--quant_method", "dynamic", "--export", "openvino"]
    argv += ["--teacher_path", "scratch:2x64", "--student_path", "teacher:1"]
    argv += ["--teacher_epochs", "3", "--epochs", "2", "--max_length", "32", "--device", "cpu"]
    quick_measure = partial(latency.measure, kinds=("latency_ms_p50",))
    with quick_measuring(in_measuring_process), pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "GRAPHS", {"openvino": export.GRAPHS["openvino"]})
        patch.setattr(latency, "measure", quick_measure)
        assert main(argv) == 0
    return output / "compressed_models" / "run"


@pytest.fixture(scope="module")
def document(artifact) -> dict:
    """The results of that run."""
    return json.loads((artifact / "results_final.json").read_text())


def text_of(artifact: Path) -> str:
    return (artifact / "README.md").read_text(encoding="utf-8")


def python_blocks(artifact: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text_of(artifact), re.S | re.M)


def rows_by_stage(document: dict) -> dict[str, dict]:
    return {row["stage"]: row for row in document["rows"]}


class UniqueKeyLoader(yaml.SafeLoader):
    """Raises if a mapping has a key twice."""


def construct_unique_mapping(loader: UniqueKeyLoader, node: yaml.MappingNode) -> dict:
    keys = [key.value for key, _ in node.value]
    assert len(set(keys)) == len(keys), keys
    return loader.construct_mapping(node, deep=True)


UniqueKeyLoader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct_unique_mapping
)


def test_the_hub_reads_the_metadata_that_was_meant(artifact, document):
    card = ModelCard.load(artifact / "README.md")
    text = text_of(artifact)
    data = yaml.load(REGEX_YAML_BLOCK.search(text)[2], UniqueKeyLoader)
    assert card.data.to_dict() == data and str(card) == text
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    assert data["tags"] == [
        "model-compression",
        "knowledge-distillation",
        "quantization",
        "onnx",
        "openvino",
    ]
    unknown = {"license", "base_model", "language", "datasets"}
    assert not unknown & set(data)  # the card makes no claim about them
    name, results = model_index_to_eval_results(data["model-index"])
    assert results == card.data.eval_results
    assert eval_results_to_model_index(name, results) == data["model-index"]
    assert {result.dataset_name for result in results} == {"od`d |name: #1.csv"}
    rows = rows_by_stage(document)
    expected = set()
    for stage in ("dynamic", "dynamic-onnx", "openvino"):
        expected.add((f"macro-F1, {stage}", rows[stage]["macro_f1"]))
        expected.add((f"accuracy, {stage}", rows[stage]["accuracy"]))
    assert {(result.metric_name, result.metric_value) for result in results} == expected


def test_base_models_are_names_on_the_hub_only(tmp_path, monkeypatch):
    def base_models(pipeline: str, teacher: str, student: str) -> list[str]:
        options = {"pipeline": pipeline, "teacher_path": teacher, "student_path": student}
        return model_card.base_models(options)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    names = ["owner/teacher", "plain-student"]
    assert base_models("kd_only", *names) == names
    assert base_models("quant_only", *names) == ["owner/teacher"]
    assert base_models("kd_only", "owner/same", "owner/same") == ["owner/same"]
    assert base_models("kd_only", "scratch:4x256", "teacher:0,2") == []
    assert base_models("kd_only", "models", str(tmp_path)) == []


def test_the_card_shows_the_numbers_of_the_results(artifact, document):
    text = text_of(artifact)
    rows = rows_by_stage(document)
    cells = []
    for line in text.splitlines():
        if line.startswith("| `"):
            cells.append([cell.strip() for cell in line.strip("|").split(" | ")])
    stages = ["linear", "teacher", "dynamic", "dynamic-onnx", "openvino"]
    names = [f"`{stage}`" for stage in stages]
    assert [line[0] for line in cells] == names + names  # results, then speed and memory
    patterns = {
        "latency_ms_p50": "{:.2f}",
        "latency_ms_p95": "{:.2f}",
        "throughput": "{:,.0f}",
        "tokenize_ms": "{:.2f}",
        "load_s": "{:.1f}",
        "rss_mb": "{:.0f}",
    }
    for name, *speeds in cells[len(names) :]:
        values = [rows[name.strip("`")][metric] for metric in patterns]
        expected = []
        for value, pattern in zip(values, patterns.values(), strict=True):
            expected.append("" if value is None else pattern.format(value))
        assert speeds == expected
    cells = cells[: len(names)]
    for name, _, size, smaller, ms, faster, quality, difference, accuracy, agreement in cells:
        row = rows[name.strip("`")]
        assert [size, smaller] == [f"{row['size_mb']:.2f}", f"{row['compression_ratio']:.2f}x"]
        assert [ms, faster] == [f"{row['latency_ms_p50']:.2f}", f"{row['speedup_torch']:.2f}x"]
        interval = f"[{row['macro_f1_low']:.4f}, {row['macro_f1_high']:.4f}]"
        assert quality == f"{row['macro_f1']:.4f} {interval}"
        assert agreement == f"{row['agreement']:.4f}"
        assert accuracy.startswith(f"{row['accuracy']:.4f} [")
        points = [100 * row[f"delta_macro_f1{end}"] for end in ("", "_low", "_high")]
        expected = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points)
        assert difference == ("" if row is rows["teacher"] else expected)
    f1_lines = dict(re.findall(r"^\| (plain|a\\\|b).*? \| ([01]\.\d{4} \|.*) \|$", text, re.M))
    for start, label in (("plain", "plain"), ("a\\|b", HOSTILE)):
        expected = [f"{rows[stage][f'f1.{label}']:.4f}" for stage in stages]
        assert f1_lines[start].split(" | ") == expected
    smallest = min((rows[stage] for stage in stages[2:]), key=lambda row: row["bytes"])
    (summary,) = [part for part in text.split("\n\n") if part.startswith("A text classifier")]
    assert f"{smallest['size_mb']:.2f} MB" in summary
    assert f"macro-F1 is {smallest['macro_f1']:.4f}" in summary
    assert document["label_rows"] == {
        "train": {HOSTILE: 56, "plain": 56},
        "validation": {HOSTILE: 8, "plain": 8},
        "test": {HOSTILE: 16, "plain": 16},
    }
    assert "| plain | 56 | 8 | 16 | " in text and "| all rows | 112 | 16 | 32 |  |" in text
    test = pd.read_parquet(Path(rows["teacher"]["directory"]).parent / "splits" / "test.parquet")
    for number, label in enumerate(document["labels"]):
        example = test["text"][test["label"] == number].iloc[0]
        assert f"| 16 | {escape_markdown(example)} |" in text, label
    assert f"{rows['teacher']['parameters']:,} parameters" in text
    assert document["command"] in text and f"torch {document['versions']['torch']}" in text


def test_snippets_run_in_a_fresh_process_and_answer_as_the_classifier_does(
    artifact, document, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    codes = [code for code in python_blocks(artifact) if "optimum" not in code]
    packages = [*FORMATS, "inference"]
    for code, package in zip(codes, packages, strict=True):
        assert f"import {package}" in code or f"from {package}" in code
    assert "and `torchao`, because" in text_of(artifact)
    process = subprocess.run(
        [sys.executable, "-c", RUN_SNIPPETS],
        cwd=artifact,
        input=json.dumps(codes),
        text=True,
        check=False,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    *answers, (of_inference, _) = json.loads(process.stdout.splitlines()[-1])
    texts = snippets.EXAMPLE_TEXTS
    for format_name, (printed, logits) in zip(FORMATS.values(), answers, strict=True):
        expected = load(artifact, format_name, threads=1)(texts)
        assert ast.literal_eval(printed) == [answer["label"] for answer in expected]
        engine = load_engine(artifact, format_name, 32, threads=1)
        np.testing.assert_allclose(logits, predict_logits(engine, texts), atol=1e-5)
    assert of_inference.count("'plain': 0.") == 2


@pytest.mark.parametrize("name", ["torch", "onnx", "openvino"])
def test_a_snippet_prints_every_label_that_applies(capsys, name):
    logits = np.array([[1.0, -1.0, 2.0], [-1.0, -2.0, -3.0]])
    labels = ["ad", "rude", "sad"]
    names = dict(enumerate(labels))
    if name != "torch":
        names = {str(index): label for index, label in enumerate(labels)}
    values = dict.fromkeys(("graph", "package", "truncation_side"), "x")
    values["max_length"] = 32
    for multi_label in (False, True):
        code = snippets.render_snippet(name, multi_label=multi_label, **values)
        (decision,) = [line for line in code.splitlines() if line.startswith("print(")]
        exec(decision, {"logits": logits, "names": names})
    assert capsys.readouterr().out == "['sad', 'ad']\n[['ad', 'sad'], []]\n"


@pytest.mark.parametrize(
    "value", ["[PAD]", "it's", 'a "pad"', "back\\slash", "\u202e\n{{ 7 * 7 }}"]
)
def test_inserted_strings_are_python_literals(value):
    values = dict.fromkeys(("package", "truncation_side"), "x")
    code = snippets.render_snippet("onnx", multi_label=False, max_length=32, graph=value, **values)
    (line,) = [line for line in code.splitlines() if line.startswith("session = ")]
    literal = line.removeprefix("session = onnxruntime.InferenceSession(").removesuffix(")")
    assert ast.literal_eval(literal) == value


def test_no_name_breaks_the_page(artifact):
    text = REGEX_YAML_BLOCK.sub("", text_of(artifact))
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.S | re.M)
    titles = [line for line in prose.splitlines() if line.startswith("#")]
    assert titles == [
        "# run",
        "## Data and labels",
        "## Teacher and student",
        "## Results",
        "## Use",
        "## Limits",
        "## How it was made",
    ]
    assert "```" not in prose and "\u202e" not in text
    assert not re.search(r"(?<!\\)[<\[](script|l)", prose)
    label_lines = [line for line in prose.splitlines() if line.startswith("| a")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in label_lines]
    # a label and all rows by split with examples, and the F1 of the label: its own bar separates
    # no cells
    assert widths == [6, 6, 7]
    assert (
        escape_markdown("a\x85b\u2028c \x1b[31m\udce9 www.x.y")
        == "a b c \ufffd\\[31m\ufffd www\\.x.y"
    )
    assert code_block("bash", "a ````\n``` b") == "`````bash\na ````\n``` b\n`````"


def test_names_in_options_notes_and_machine_are_escaped(artifact, document, tmp_path):
    rows = rows_by_stage(document)
    config = document["config"] | dict.fromkeys(("teacher_path", "student_path"), HOSTILE)
    config |= {"text_column": HOSTILE, "label_columns": [HOSTILE], "unlabeled_path": HOSTILE}
    about = document | {"experiment": HOSTILE, "machine": {"cpu": HOSTILE, "cores": 2}}
    baselines = [rows["linear"], rows["teacher"]]
    model_card.write_card(tmp_path, baselines, [], [HOSTILE, "{{ 7 * 7 }}"], config, about, {})
    text = REGEX_YAML_BLOCK.sub("", text_of(tmp_path))
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.S | re.M)
    assert len([line for line in prose.splitlines() if line.startswith("#")]) == 7
    assert "```" not in prose and "\u202e" not in text and "\n---" not in text
    assert not re.search(r"(?<!\\)[<\[](script|l)", prose)
    assert "\\{\\{ 7 \\* 7 \\}\\}" in prose and "49" not in prose
    assert prose.count(escape_markdown(HOSTILE)) >= 8


def test_an_edited_card_changes_neither_the_model_nor_its_record(artifact):
    page = artifact / "README.md"
    record = read_record(artifact)
    source = source_hash(str(artifact))
    original = page.read_bytes()
    try:
        page.write_text("Now mine.")
        assert load(artifact, "onnx", threads=1)(["a text"])
        assert damaged_file(artifact, record) is None
        assert source_hash(str(artifact)) == source
    finally:
        page.write_bytes(original)
    assert not {"README.md", "results_final.json", "results_final.csv"} & set(record["files"])


def test_the_size_of_a_format_includes_its_files_and_no_card(artifact, document):
    for name in ("dynamic", "dynamic-onnx", "openvino"):
        row = rows_by_stage(document)[name]
        files = row["files"].split()
        assert not {"README.md", "stage.json", "results_final.json"} & set(files)
        directory = Path(row["directory"])
        assert row["bytes"] == sum((directory / file).stat().st_size for file in files)


def test_a_card_without_formats_says_so_and_lists_no_results(artifact, document, tmp_path):
    rows = rows_by_stage(document)
    baselines = [rows["linear"], rows["teacher"]]
    model_card.write_card(tmp_path, baselines, [], [], document["config"], document, {})
    card = ModelCard.load(tmp_path / "README.md")
    assert "each lost more than the run's `--max_f1_drop` allows" in card.text
    assert "```python" not in card.text
    data = card.data.to_dict()
    assert "model-index" not in data and "library_name" not in data
