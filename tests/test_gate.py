"""The quality gate: a form that collapses is stopped, and rescued by leaving the layer at fault
whole."""

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from test_quantization import MAX_LENGTH, replace_config, save_tokenizer, sentences
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from compression_config import Options
from engines.engine import load_engine, predict_logits
from engines.fake_quantization import fake_quantize_weight
from engines.sensitivity import QualityGate, layer_sensitivities
from metrics import macro_f1
from reporting.results import read_results
from task import Task

OUTLIER = "bert.encoder.layer.1.output.dense"


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    """A model and its own decisions as a labelled file. One neuron of the last feed-forward
    block is always at 3000 and counts for nothing, so that in fp32 it does no harm; a grid of
    256 steps up to 3000 loses all other neurons."""
    folder = tmp_path_factory.mktemp("fragile")
    torch.manual_seed(3)
    config = replace_config("bert", num_labels=2, hidden_dropout_prob=0.0)
    config.id2label, config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    model = AutoModelForSequenceClassification.from_config(config).eval()
    block = model.bert.encoder.layer[1]
    with torch.no_grad():
        block.output.dense.weight.mul_(12)
        block.intermediate.dense.weight.mul_(4)
        block.intermediate.dense.bias[5] = 3000
        block.output.dense.weight[:, 5] = 0
    model.save_pretrained(folder / "model")
    save_tokenizer("bert", folder / "model")
    texts = list(dict.fromkeys(sentences(420, seed=5)))
    logits = predict_logits(load_engine(folder / "model", "torch", MAX_LENGTH), texts)
    with torch.no_grad():  # as many of one label as of the other
        model.classifier.bias[1] -= float(pd.Series(logits[:, 1] - logits[:, 0]).median())
    model.save_pretrained(folder / "model")
    logits = predict_logits(load_engine(folder / "model", "torch", MAX_LENGTH), texts)
    labels = [("no", "yes")[decided] for decided in logits.argmax(1)]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(folder / "own.csv", index=False)
    return folder


def gated(fragile, *more: str) -> list[str]:
    return [
        "--dataset_path",
        str(fragile / "own.csv"),
        "--teacher_path",
        str(fragile / "model"),
        "--teacher_epochs",
        "0",
        "--quant_method",
        "dynamic",
        "--max_f1_drop",
        "0.03",
        "--max_length",
        str(MAX_LENGTH),
        "--output_dir",
        str(fragile),
        *more,
    ]


def command(fragile, *more: str) -> list[str]:
    return gated(fragile, "--pipeline", "quant_only", "--export", "onnx", *more)


def test_a_form_that_collapses_is_not_shipped_and_the_results_tell(fragile, run_main, capsys):
    assert run_main(command(fragile, "--experiment", "stopped")) == 3
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("main.py: ")]
    rows = {
        row["stage"]: row for row in read_results(fragile / "compressed_models" / "stopped")["rows"]
    }
    stopped = {name for name, row in rows.items() if row.get("shipped") is False}
    assert {"dynamic", "dynamic-onnx", "onnx-int8"} <= stopped and "onnx" not in stopped
    assert len(said) == len(stopped)
    line = next(line for line in said if "onnx-int8 is not shipped" in line)
    drop = rows["teacher"]["validation_macro_f1"] - rows["onnx-int8"]["validation_macro_f1"]
    assert drop > 0.03 and f"loses {100 * drop:.1f} points" in line and "--quant_auto" in line
    kept = fragile / "compressed_models" / "stopped"
    assert (
        not (kept / "model.safetensors").exists()
        and not (kept / "onnx" / "model_quantized.onnx").exists()
    )
    assert (kept / "onnx" / "model.onnx").exists()


def test_the_gate_measures_on_validation_alone(fragile, run_main):
    run_main(command(fragile, "--experiment", "stopped"))
    rows = read_results(fragile / "compressed_models" / "stopped")["rows"]
    row = next(row for row in rows if row["stage"] == "onnx-int8")
    kept = fragile / "models" / "stopped"
    scores = {}
    for split in ("validation", "test"):
        rows = pd.read_parquet(kept / "splits" / f"{split}.parquet")
        served = load_engine(kept / "export", "onnx/model_quantized.onnx", MAX_LENGTH)
        scores[split] = macro_f1(
            rows["label"].to_numpy(), predict_logits(served, rows["text"].tolist()).argmax(1)
        )
    assert (
        row["validation_macro_f1"]
        == pytest.approx(scores["validation"])
        != pytest.approx(scores["test"])
    )
    assert row["macro_f1"] == pytest.approx(scores["test"])


def test_quant_auto_leaves_the_layer_at_fault_whole_and_ships(fragile, run_main):
    assert run_main(command(fragile, "--quant_auto", "--experiment", "rescued")) == 0
    rows = {
        row["stage"]: row for row in read_results(fragile / "compressed_models" / "rescued")["rows"]
    }
    for name in ("dynamic", "dynamic-onnx", "onnx-int8"):
        assert rows[name]["shipped"] and rows[name]["validation_drop"] <= 0.03
        assert OUTLIER in rows[name]["layers_left_whole"].split(", ")
        assert rows[name]["bytes"] < rows["teacher"]["bytes"]
    kept = fragile / "compressed_models" / "rescued"
    assert (kept / "model.safetensors").exists() and (
        kept / "onnx" / "model_quantized.onnx"
    ).exists()


def test_a_pipeline_that_the_gate_stops_does_not_stop_the_next(fragile, run_main, capsys):
    assert run_main(gated(fragile, "--run_ablation", "quant_only", "baseline")) == 3
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if line.startswith("main.py: ")]
    assert said[0].startswith("main.py: quant_only: dynamic is not shipped: it loses ")
    assert "dynamic (kept back)" in printed.out and printed.out.splitlines()[-1].startswith(
        "baseline"
    )
    (kept,) = (fragile / "compressed_models").glob("baseline_own_??????")
    assert (kept / "model.safetensors").exists()


def test_the_layer_at_fault_is_the_most_sensitive_one(fragile):
    found = layer_sensitivities(fragile / "model", sentences(20, seed=9), MAX_LENGTH, 8)
    assert max(found, key=found.get) == OUTLIER
    assert {"bert.embeddings.word_embeddings", "classifier"} <= set(found) and min(
        found.values()
    ) >= 0


def test_each_layer_is_rounded_alone(fragile):
    texts = sentences(20, seed=9)
    found = layer_sensitivities(fragile / "model", texts, MAX_LENGTH, 4)
    model = AutoModelForSequenceClassification.from_pretrained(fragile / "model").eval()
    inputs = AutoTokenizer.from_pretrained(fragile / "model")(
        texts, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        whole = model(**inputs).logits
        model.classifier.weight.data = fake_quantize_weight(model.classifier.weight.data, 4)
        changed = model(**inputs).logits
    assert found["classifier"] == pytest.approx(float((changed - whole).square().mean()), rel=1e-3)


def test_layers_are_left_in_doubling_numbers_until_the_score_is_enough(
    fragile, tmp_path, monkeypatch
):
    rows = Dataset.from_dict({"text": sentences(12, seed=1), "label": [0, 1] * 6})
    task = Task(("no", "yes"), False)
    options = Options(max_f1_drop=0.1, max_length=MAX_LENGTH)
    gate = QualityGate(fragile / "model", DatasetDict(train=rows, validation=rows), task, options)
    gate.least, gate.rankings = 0.9, {8: list("abcdefghij")}
    for enough, expected in ((0, 0), (1, 1), (3, 4), (5, 8), (9, 10), (99, 10)):
        written = []
        monkeypatch.setattr(
            gate,
            "score",
            lambda *_, enough=enough, written=written: float(len(written[-1]) >= enough),
        )
        assert (
            gate.fit(
                lambda whole, written=written: written.append(list(whole)), tmp_path, "torch", 8
            )
            == list("abcdefghij")[:expected]
        )
        assert [len(whole) for whole in written] == [
            n for n in (0, 1, 2, 4, 8, 10) if n <= expected
        ]
