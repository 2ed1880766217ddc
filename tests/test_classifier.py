"""A finished model as a classifier: it decides as its engine does, the fastest format serves, and
changed or unsafe files are rejected."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from served_models import (
    CLASSES,
    FLAGS,
    FORMAT_NAMES,
    MAX_TOKENS,
    TEXTS,
    build_multi_label_model,
    build_two_class_model,
)
from tiny_models import WORDS

import task
from engines import autoselect, classifier
from engines.classifier import load, token_batches
from engines.engine import Engine, load_engine, predict_logits
from runtime.artifacts import write_record
from runtime.errors import UserError
from task import decide

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Two classes, one format per engine."""
    return build_two_class_model(tmp_path_factory.mktemp("model"), every_format=True)


@pytest.fixture(scope="module")
def multi_label_model(tmp_path_factory) -> Path:
    """Three labels of which any number may apply."""
    return build_multi_label_model(tmp_path_factory.mktemp("multi"))


@pytest.fixture
def model_copy(model, tmp_path) -> Path:
    """A copy of the two-class model that a test may change."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def short_timings_and_empty_cache(tmp_path, monkeypatch) -> None:
    """A separate cache of choices and short comparisons."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(autoselect, "PAIR_BUDGET_S", 0.0)
    monkeypatch.setattr(autoselect, "SPIN_S", 0.0)


@pytest.mark.parametrize("format_name", FORMAT_NAMES)
def test_every_format_decides_as_its_engine_does(model, format_name):
    logits = predict_logits(load_engine(model, format_name, MAX_TOKENS, threads=1), TEXTS)
    answers = load(model, format_name, threads=1)(TEXTS)
    labels = [answer["label"] for answer in answers]
    assert labels == [CLASSES[i] for i in decide(logits, False)]
    assert set(labels) == set(CLASSES)
    scores = np.array([list(answer["scores"].values()) for answer in answers])
    assert np.abs(scores - task.probabilities(logits, False)).max() < 1e-5
    assert list(answers[0]["scores"]) == list(CLASSES)


def test_a_multi_label_model_returns_lists_that_may_be_empty(multi_label_model):
    logits = predict_logits(load_engine(multi_label_model, "onnx", MAX_TOKENS, threads=1), TEXTS)
    answers = load(multi_label_model, "onnx", threads=1)(TEXTS)
    names = np.array(FLAGS)
    assert [answer["label"] for answer in answers] == [list(names[row > 0]) for row in logits]
    assert {len(answer["label"]) for answer in answers} >= {1, 2}
    for answer in answers:
        for name in names:
            assert (answer["scores"][name] > 0.5) == (name in answer["label"])


def test_texts_that_are_not_a_list_of_strings_are_a_type_error_and_no_texts_give_no_answers(model):
    predict = load(model, "onnx", threads=1)
    assert predict([]) == []
    for wrong in ("a text", [None], [1.0]):
        with pytest.raises(TypeError, match="a list of strings"):
            predict(wrong)


def test_texts_longer_than_the_models_limit_are_truncated(model):
    predict = load(model, "onnx", threads=1)
    (long,) = predict([" ".join([WORDS[0]] * MAX_TOKENS)])
    (longer,) = predict([" ".join([WORDS[0]] * 40 * MAX_TOKENS)])
    assert long == longer


def test_batches_contain_every_row_once_within_the_budget():
    rng = random.Random(0)
    lengths = [rng.randint(1, 600) for _ in range(500)]
    batches = token_batches(lengths, 32)
    assert sorted(row for rows in batches for row in rows) == list(range(500))
    padded = [len(rows) * max(lengths[row] for row in rows) for rows in batches]
    assert max(padded) <= classifier.BATCH_TOKENS and max(map(len, batches)) == 32
    assert token_batches([9000, 1], 32) == [[0], [1]]


def test_scores_are_in_the_order_of_the_texts(model):
    predict = load(model, "onnx", threads=1)
    together = predict.score(TEXTS, batch=4).probabilities
    separately = [predict.score([text]).probabilities[0] for text in TEXTS]
    assert np.abs(together - np.array(separately)).max() < 1e-4


def test_a_file_that_changed_since_the_model_was_made_is_rejected(model_copy):
    with (model_copy / "onnx" / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"onnx/model.onnx was changed since the model was made"):
        load(model_copy, "onnx", threads=1)
    with pytest.raises(UserError, match=r"onnx/model.onnx was changed since the model was made"):
        load(model_copy)
    assert load(model_copy, "openvino", threads=1)(["a"])
    (model_copy / "added_tokens.json").write_text("{}")
    with pytest.raises(UserError, match=r"added_tokens.json was changed"):
        load(model_copy, "openvino", threads=1)


def test_a_model_without_a_record_is_served(model_copy):
    (model_copy / "stage.json").unlink()
    before = load(model_copy, "onnx", threads=1)
    (model_copy / "config.json").write_text((model_copy / "config.json").read_text() + " ")
    assert before.fingerprint != load(model_copy, "onnx", threads=1).fingerprint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "linear.joblib"])
def test_a_directory_with_only_a_pickle_is_rejected(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch broken'\ntR.")
    reason = "a pickle, and loading a pickle runs the code in it"
    if name == "linear.joblib":
        reason = "a pickle of an older version; run main.py again"
    with pytest.raises(UserError, match=f"has only {name}, {reason}"):
        load(tmp_path)


def test_a_pickle_beside_graphs_is_never_opened(model_copy):
    weights = model_copy / "model-00001-of-00002.safetensors"
    (model_copy / "model.safetensors").rename(weights)
    torch.save(load_file(weights), model_copy / "pytorch_model.bin")
    (model_copy / "stage.json").unlink()
    with pytest.raises(UserError, match="--engine is torch, but it failed to load"):
        load(model_copy, "torch", threads=1)
    assert load(model_copy, threads=1).format_name != "torch"


def test_the_fastest_choice_is_cached_and_measured_again_after_a_file_changed(
    model_copy, monkeypatch
):
    compared = []

    def compare_pair(first, second):
        compared.append(second)
        return first, 1.0

    first = load(model_copy)
    monkeypatch.setattr(autoselect, "compare_pair", compare_pair)
    again = load(model_copy)
    assert (again.format_name, again.threads) == (first.format_name, first.threads)
    assert compared == [] and first.format_name in FORMAT_NAMES
    (model_copy / "stage.json").unlink()
    load(model_copy)
    assert len(compared) == len(FORMAT_NAMES) * len({1, autoselect.available_cores()}) - 1


def test_the_faster_of_two_wins():
    def candidate(name: str, work: int) -> autoselect.LoadedCandidate:
        def forward(texts):
            for _ in range(work * len(texts)):
                sum(range(1000))

        return autoselect.LoadedCandidate(name, 1, Engine(list, list, forward))

    slow = candidate("slow", 20)
    quick = candidate("quick", 1)
    assert autoselect.compare_pair(slow, quick)[0] == quick
    assert autoselect.compare_pair(quick, slow)[0] == quick


def test_half_of_the_timed_texts_are_in_batches_of_one():
    """5 texts of 1 s each and a batch of 32 texts of 10 s: 32 / 5 * 5 s + 10 s."""
    batches = autoselect.timing_workload()
    assert [len(texts) for texts in batches] == [1, 1, 1, 1, 1, 32]
    assert autoselect.workload_seconds(np.array([1, 1, 1, 1, 1, 10])) == pytest.approx(42)


def test_a_cache_that_cannot_be_written_or_read_is_not_an_error(
    multi_label_model, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(multi_label_model, "onnx")(["a"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autoselect.choices_path().parent.mkdir()
    autoselect.choices_path().write_text("[broken")
    assert load(multi_label_model, "onnx")(["a"])
    assert json.loads(autoselect.choices_path().read_text())


def test_a_format_that_does_not_load_is_skipped_unless_it_is_requested(model_copy, caplog):
    (model_copy / "onnx" / "model.onnx").write_bytes(b"no graph")
    write_record(model_copy, stage="artifact", fingerprint="0", forms={})
    assert load(model_copy, threads=1).format_name != "onnx/model.onnx"
    assert any("onnx/model.onnx is skipped" in record.getMessage() for record in caplog.records)
    for engine in ("onnx", "onnx/model.onnx"):
        with pytest.raises(UserError, match="--engine is onnx/model.onnx, but it failed to load"):
            load(model_copy, engine)


@pytest.mark.parametrize(("engine", "absent"), [("onnx", "openvino"), ("openvino", "onnxruntime")])
def test_one_engine_is_enough(model, engine, absent):
    script = f"""
import sys
sys.modules |= dict.fromkeys(({absent!r}, "torch", "transformers"))
from inference import load
predict = load({str(model)!r})
print(predict.format_name, len(predict(["a", "b"])))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"{engine}/") and done.stdout.endswith(" 2\n"), done.stderr


@pytest.mark.parametrize(
    "entries",
    [
        {"id2label": {"0": "a"}},
        {"id2label": {"0": "a", "1": "a"}},
        {"id2label": {}},
        {"problem_type": "regression"},
    ],
)
def test_a_config_that_names_no_classes_is_rejected(model_copy, entries):
    config = json.loads((model_copy / "config.json").read_text()) | entries
    (model_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="must name two labels or more in id2label"):
        load(model_copy)


def test_a_model_with_other_labels_than_logits_is_rejected(model_copy):
    config = json.loads((model_copy / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b", "2": "c"}
    (model_copy / "config.json").write_text(json.dumps(config))
    (model_copy / "stage.json").unlink()
    with pytest.raises(UserError, match="gives 2 logits for 3 labels"):
        load(model_copy, "onnx", threads=1)
