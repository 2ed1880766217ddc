"""The card's code for optimum-onnx and transformers.js, in environments that have them.

optimum-onnx needs another version of transformers than ours, and transformers.js needs Node.js.
Environment variables name where they are installed:

    CARD_OPTIMUM_ONNX   Python of an environment with optimum-onnx[onnxruntime]==0.1.0
    CARD_JAVASCRIPT     directory with node_modules/@huggingface/transformers (4.3.2)
"""

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from encoders.scratch import scratch_model
from encoders.start import save_model
from engines import graphs
from engines.classifier import load
from reporting import snippets
from task import Task

pytestmark = pytest.mark.slow

GRAPHS = ("onnx/model.onnx", "onnx/model_quantized.onnx")
LABELS = ("ad", "rude", "sad")
TEXTS = [f"good people see the river {i}" for i in range(30)] + snippets.EXAMPLE_TEXTS


def place(variable: str) -> str:
    """Where a package is installed; the test is skipped if this is not known."""
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set: it names where the packages are installed")
    return os.environ[variable]


@pytest.fixture(scope="module", params=[False, True], ids=["one label", "many labels"])
def artifact(request, tmp_path_factory) -> Path:
    """A model with an ONNX graph in full precision and in int8."""
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    task = Task(LABELS, request.param)
    model, tokenizer = scratch_model("scratch:2x64", task, TEXTS, 64)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(50)  # the texts get different labels
    save_model(model, tokenizer, directory)
    source = directory / "onnx" / "model.onnx"
    source.parent.mkdir()
    graphs.write_onnx(directory, source)
    calibration = graphs.Calibration(directory, TEXTS[:8], 64)
    graphs.quantize_onnx_dynamic(source, directory / GRAPHS[1], calibration, ())
    return directory


def is_multi_label(artifact: Path) -> bool:
    config = json.loads((artifact / "config.json").read_text())
    return config["problem_type"] == "multi_label_classification"


def code_of(snippet: dict[str, str]) -> str:
    """A snippet without its fence."""
    return "\n".join(snippet["code"].splitlines()[1:-1])


def row_of(file: str) -> dict:
    return {"stage": file, "files": f"config.json {file}", "bytes": 1, "latency_ms_p50": 1.0}


@pytest.mark.parametrize("file", GRAPHS)
def test_optimum_answers_as_the_classifier_does(artifact, file):
    python = place("CARD_OPTIMUM_ONNX")
    snippet = snippets.optimum_snippet([row_of(file)], multi_label=is_multi_label(artifact))
    code = code_of(snippet) + "\nimport json\nprint(json.dumps(answers))\n"
    done = subprocess.run(
        [python, "-c", code],
        cwd=artifact,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    labels, answers = done.stdout.splitlines()[-2:]
    expected = load(artifact, file, threads=1)(snippets.EXAMPLE_TEXTS)
    found = ast.literal_eval(labels)
    for answer, label, scores in zip(expected, found, json.loads(answers), strict=True):
        named = {one["label"]: one["score"] for one in scores}
        assert named == pytest.approx(answer["scores"], abs=1e-3)
        assert sorted(label) == sorted(answer["label"])


@pytest.mark.parametrize("file", GRAPHS)
def test_transformers_js_answers_as_the_classifier_does(artifact, file, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    modules = Path(place("CARD_JAVASCRIPT")) / "node_modules"
    directory = tmp_path / "model"
    shutil.copytree(artifact, directory)
    (directory / "node_modules").symlink_to(modules)
    (snippet,) = snippets.javascript_snippets([row_of(file)], multi_label=is_multi_label(artifact))
    (directory / "use.mjs").write_text(code_of(snippet))
    done = subprocess.run(["node", "use.mjs"], cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [one["label"] for one in load(artifact, file, threads=1)(snippets.EXAMPLE_TEXTS)]
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(map(sorted, found)) == list(map(sorted, expected))
