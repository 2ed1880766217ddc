"""The model card: the hub can read it, its figures are the results', its snippets run, and no
name breaks it."""

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

import benchmark
import export
from engines.classifier import load
from engines.engine import load_engine, predict_logits
from reporting import model_card
from runtime.artifacts import is_intact, read_record, source_hash

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = 'a|b`<script>x</script>\n---\n# *t*: [l](http://x) "q" \u202eabc ```'
FORMS = {
    "torch": "torch",
    "onnxruntime": "onnx/model_quantized.onnx",
    "openvino": "openvino/openvino_model.xml",
}
SERVE = """
import contextlib, io, json, sys
answers = []
for code in json.load(sys.stdin):
    said, names = io.StringIO(), {}
    with contextlib.redirect_stdout(said):
        exec(code, names)
    answers.append([said.getvalue(), names["logits"].tolist() if "logits" in names else None])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def artifact(in_measuring_process, tmp_path_factory) -> Path:
    """A run on a file and labels with hostile names, that ships a form for each engine."""
    from main import main

    output, rng = tmp_path_factory.mktemp("card"), random.Random(0)
    rows = [(f"{sentence(rng, i % 2)} {i}", ("plain", HOSTILE)[i % 2]) for i in range(160)]
    file = output / "od`d |name: #1.csv"
    pd.DataFrame(rows, columns=["Comments", "HateSpeech"]).to_csv(file, index=False)
    argv = [
        "--pipeline",
        "kd_quant",
        "--quant_method",
        "dynamic",
        "--export",
        "openvino",
        "--dataset_path",
        str(file),
        "--teacher_path",
        "scratch:2x64",
        "--student_path",
        "teacher:1",
        "--teacher_epochs",
        "3",
        "--epochs",
        "2",
        "--max_length",
        "32",
        "--device",
        "cpu",
        "--output_dir",
        str(output),
        "--experiment",
        "run",
    ]
    with quick_measuring(in_measuring_process), pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "GRAPHS", {"openvino": export.GRAPHS["openvino"]})
        patch.setattr(benchmark, "measure", partial(benchmark.measure, timed=("latency_ms_p50",)))
        assert main(argv) == 0
    return output / "compressed_models" / "run"


@pytest.fixture(scope="module")
def document(artifact) -> dict:
    return json.loads((artifact / "results_final.json").read_text())


def text_of(artifact: Path) -> str:
    return (artifact / "README.md").read_text(encoding="utf-8")


def blocks(artifact: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text_of(artifact), re.S | re.M)


def rows_of(document: dict) -> dict[str, dict]:
    return {row["stage"]: row for row in document["rows"]}


class NoDuplicates(yaml.SafeLoader):
    """Raises where a mapping has a key twice."""


def mapping_once(loader: NoDuplicates, node: yaml.MappingNode) -> dict:
    keys = [key.value for key, _ in node.value]
    assert len(set(keys)) == len(keys), keys
    return loader.construct_mapping(node, deep=True)


NoDuplicates.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping_once)


def test_the_hub_reads_the_metadata_as_it_was_meant(artifact, document):
    read, text = ModelCard.load(artifact / "README.md"), text_of(artifact)
    data = yaml.load(REGEX_YAML_BLOCK.search(text)[2], NoDuplicates)
    assert read.data.to_dict() == data and str(read) == text
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    assert data["tags"] == [
        "model-compression",
        "knowledge-distillation",
        "quantization",
        "onnx",
        "openvino",
    ]
    assert not {"license", "base_model", "language", "datasets"} & set(
        data
    )  # what is not known is not claimed
    name, results = model_index_to_eval_results(data["model-index"])
    assert (
        results == read.data.eval_results
        and eval_results_to_model_index(name, results) == data["model-index"]
    )
    assert {result.dataset_name for result in results} == {"od`d |name: #1.csv"}
    rows = rows_of(document)
    assert {(result.metric_name, result.metric_value) for result in results} == {
        (f"{metric}, {form}", rows[form][column])
        for form in ("dynamic", "dynamic-onnx", "openvino")
        for metric, column in (("macro-F1", "macro_f1"), ("accuracy", "accuracy"))
    }


def test_base_models_are_names_of_the_hub_alone(tmp_path, monkeypatch):
    def base(pipeline: str, teacher: str, student: str) -> list[str]:
        return model_card.base_models(
            {"pipeline": pipeline, "teacher_path": teacher, "student_path": student}
        )

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert base("kd_only", "owner/teacher", "plain-student") == ["owner/teacher", "plain-student"]
    assert base("quant_only", "owner/teacher", "plain-student") == ["owner/teacher"]
    assert (
        base("kd_only", "scratch:4x256", "teacher:0,2")
        == base("kd_only", "models", str(tmp_path))
        == []
    )


def test_figures_are_those_of_the_results(artifact, document):
    text, rows = text_of(artifact), rows_of(document)
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    assert [line[0] for line in cells] == [
        "`linear`",
        "`teacher`",
        "`dynamic`",
        "`dynamic-onnx`",
        "`openvino`",
    ]
    for name, _, size, smaller, latency, faster, quality, against, right, agreement in cells:
        row = rows[name.strip("`")]
        assert [size, smaller] == [f"{row['size_mb']:.2f}", f"{row['compression_ratio']:.2f}x"]
        assert [latency, faster] == [f"{row['latency_ms_p50']:.2f}", f"{row['speedup_torch']:.2f}x"]
        low, high = row["macro_f1_low"], row["macro_f1_high"]
        assert [quality, agreement] == [
            f"{row['macro_f1']:.4f} [{low:.4f}, {high:.4f}]",
            f"{row['agreement']:.4f}",
        ]
        assert right.startswith(f"{row['accuracy']:.4f} [")
        points = [100 * row[f"delta_macro_f1{end}"] for end in ("", "_low", "_high")]
        assert against == (
            "" if row is rows["teacher"] else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points)
        )
    of_labels = dict(re.findall(r"^\| (plain|a\\\|b).*? \| ([01]\.\d{4} \|.*) \|$", text, re.M))
    for start, label in (("plain", "plain"), ("a\\|b", HOSTILE)):
        assert of_labels[start].split(" | ") == [
            f"{rows[line[0].strip('`')][f'f1.{label}']:.4f}" for line in cells
        ]
    smallest = min((rows[line[0].strip("`")] for line in cells[2:]), key=lambda row: row["bytes"])
    (sentence_,) = [line for line in text.splitlines() if line.startswith("A text classifier")]
    assert (
        f"{smallest['size_mb']:.2f} MB" in sentence_
        and f"macro-F1 {smallest['macro_f1']:.4f}" in sentence_
    )
    assert document["label_rows"] == {
        "train": {HOSTILE: 56, "plain": 56},
        "validation": {HOSTILE: 8, "plain": 8},
        "test": {HOSTILE: 16, "plain": 16},
    }
    assert "| plain | 56 | 8 | 16 |" in text and "| all rows | 112 | 16 | 32 |" in text
    assert f"{rows['teacher']['parameters']:,} parameters" in text
    assert document["command"] in text and f"torch {document['versions']['torch']}" in text


def test_its_snippets_run_in_a_fresh_process_and_answer_as_the_scorer_does(
    artifact, document, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    codes = blocks(artifact)
    assert [
        next(
            name
            for name in (*FORMS, "inference")
            if f"import {name}" in code or f"from {name}" in code
        )
        for code in codes
    ] == [*FORMS, "inference"]
    assert "and `torchao`, because" in text_of(artifact)
    done = subprocess.run(
        [sys.executable, "-c", SERVE],
        cwd=artifact,
        input=json.dumps(codes),
        text=True,
        check=False,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *answers, (ours, _) = json.loads(done.stdout.splitlines()[-1])
    for form, (said, logits) in zip(FORMS.values(), answers, strict=True):
        expected = load(artifact, form, threads=1)(model_card.EXAMPLE_TEXTS)
        assert ast.literal_eval(said) == [answer["label"] for answer in expected]
        seen = predict_logits(load_engine(artifact, form, 32, threads=1), model_card.EXAMPLE_TEXTS)
        np.testing.assert_allclose(logits, seen, atol=1e-5)
    assert ours.count("'plain': 0.") == 2


def test_a_snippet_names_every_label_that_holds(capsys):
    logits, names = (
        np.array([[1.0, -1.0, 2.0], [-1.0, -2.0, -3.0]]),
        {"0": "ad", "1": "rude", "2": "sad"},
    )
    for problem in model_card.DECIDE_LINES:
        exec(
            model_card.decision_line({"problem_type": problem}, "str(i)"),
            {"logits": logits, "names": names},
        )
    assert capsys.readouterr().out == "['sad', 'ad']\n[['ad', 'sad'], []]\n"


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
    assert (
        "```" not in prose
        and "\u202e" not in text
        and not re.search(r"(?<!\\)[<\[](script|l)", prose)
    )
    widths = [
        len(re.findall(r"(?<!\\)\|", line)) for line in prose.splitlines() if line.startswith("| a")
    ]
    assert widths == [
        5,
        5,
        7,
    ]  # rows of splits of a label and of all, F1 of it: the label's own bar parts no cell
    assert (
        model_card.escape_markdown("a\x85b\u2028c \x1b[31m\udce9 www.x.y")
        == "a b c \ufffd\\[31m\ufffd www\\.x.y"
    )
    assert model_card.code_block("bash", "a ````\n``` b") == "`````bash\na ````\n``` b\n`````"


def test_an_edited_card_is_still_a_card_and_the_model_the_same(artifact):
    page, record, source = artifact / "README.md", read_record(artifact), source_hash(str(artifact))
    kept = page.read_bytes()
    try:
        page.write_text("Now mine.")
        assert load(artifact, "onnx", threads=1)(["a text"])
        assert is_intact(artifact, record) and source_hash(str(artifact)) == source
    finally:
        page.write_bytes(kept)
    assert not {"README.md", "results_final.json", "results_final.csv"} & set(record["files"])


def test_a_row_weighs_what_serves_it_and_no_card(artifact, document):
    for name in ("dynamic", "dynamic-onnx", "openvino"):
        files = rows_of(document)[name]["files"].split()
        assert not {"README.md", "stage.json", "results_final.json"} & set(files)
        folder = Path(rows_of(document)[name]["directory"])
        assert rows_of(document)[name]["bytes"] == sum(
            (folder / file).stat().st_size for file in files
        )


def test_a_card_without_forms_says_so_and_lists_no_results(artifact, document, tmp_path):
    model_card.write_card(
        tmp_path,
        [rows_of(document)[name] for name in ("linear", "teacher")],
        [],
        [],
        document["config"],
        document,
    )
    read = ModelCard.load(tmp_path / "README.md")
    assert (
        "each lost more than the run's `--max_f1_drop` allows" in read.text
        and "```python" not in read.text
    )
    assert "model-index" not in read.data.to_dict() and "library_name" not in read.data.to_dict()
