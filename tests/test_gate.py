"""The quality gate rejects a format that loses too much, and repairs it by skipping layers."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_models import MAX_LENGTH, logits_on_disk, replace_config, save_tokenizer, sentences
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from engines.fake_quantization import fake_quantize_weight
from engines.sensitivity import QualityGate, layer_sensitivities
from metrics import macro_f1
from reporting.results import read_results

SENSITIVE_LAYER = "bert.encoder.layer.1.output.dense"


@pytest.fixture(scope="module")
def folder_with_outlier_model(tmp_path_factory) -> Path:
    """A directory with a model that int8 destroys (`model`) and a labeled file (`labeled.csv`).

    One neuron of the last feed-forward block is always at 3000 and has no effect, so fp32 is not
    affected; a quantization grid of 256 steps up to 3000 loses all other neurons. The labels are
    the model's own decisions.
    """
    folder = tmp_path_factory.mktemp("outlier")
    torch.manual_seed(3)
    config = replace_config("bert", num_labels=2, hidden_dropout_prob=0.0)
    config.id2label = {0: "no", 1: "yes"}
    config.label2id = {"no": 0, "yes": 1}
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
    logits = logits_on_disk(folder / "model", "torch", texts, threads=None)
    with torch.no_grad():  # balances the labels
        model.classifier.bias[1] -= float(pd.Series(logits[:, 1] - logits[:, 0]).median())
    model.save_pretrained(folder / "model")
    logits = logits_on_disk(folder / "model", "torch", texts, threads=None)
    labels = [config.id2label[decision] for decision in logits.argmax(1)]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(folder / "labeled.csv", index=False)
    return folder


def gated_run(folder: Path, *arguments: str) -> list[str]:
    return [
        "--dataset_path",
        str(folder / "labeled.csv"),
        "--teacher_path",
        str(folder / "model"),
        "--teacher_epochs",
        "0",
        "--quant_method",
        "dynamic",
        "--max_f1_drop",
        "0.03",
        "--max_length",
        str(MAX_LENGTH),
        "--output_dir",
        str(folder),
        *arguments,
    ]


def quantize_and_export(folder: Path, *arguments: str) -> list[str]:
    return gated_run(folder, "--pipeline", "quant_only", "--export", "onnx", *arguments)


def results_by_row(directory: Path) -> dict[str, dict]:
    return {row["stage"]: row for row in read_results(directory)["rows"]}


def messages(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("main.py: ")]


def test_a_format_that_loses_too_much_is_rejected_and_reported(
    folder_with_outlier_model, run_main, capsys
):
    folder = folder_with_outlier_model
    assert run_main(quantize_and_export(folder, "--experiment", "rejected")) == 3
    lines = messages(capsys.readouterr().err)
    compressed = folder / "compressed_models" / "rejected"
    rows = results_by_row(compressed)
    rejected = {name for name, row in rows.items() if row.get("shipped") is False}
    assert {"dynamic", "dynamic-onnx", "onnx-int8"} <= rejected and "onnx" not in rejected
    assert len(lines) == len(rejected)
    line = next(line for line in lines if "onnx-int8 is rejected" in line)
    drop = rows["teacher"]["validation_macro_f1"] - rows["onnx-int8"]["validation_macro_f1"]
    assert drop > 0.03 and f"loses {100 * drop:.1f} points" in line and "--quant_auto" in line
    assert not (compressed / "model.safetensors").exists()
    assert not (compressed / "onnx" / "model_quantized.onnx").exists()
    assert (compressed / "onnx" / "model.onnx").exists()


def test_the_gate_reads_the_validation_split_only(folder_with_outlier_model, run_main):
    folder = folder_with_outlier_model
    run_main(quantize_and_export(folder, "--experiment", "rejected"))
    row = results_by_row(folder / "compressed_models" / "rejected")["onnx-int8"]
    run_directory = folder / "models" / "rejected"
    scores = {}
    for split in ("validation", "test"):
        rows = pd.read_parquet(run_directory / "splits" / f"{split}.parquet")
        logits = logits_on_disk(
            run_directory / "export",
            "onnx/model_quantized.onnx",
            rows["text"].tolist(),
            threads=None,
        )
        scores[split] = macro_f1(rows["label"].to_numpy(), logits.argmax(1))
    assert row["validation_macro_f1"] == pytest.approx(scores["validation"])
    assert row["validation_macro_f1"] != pytest.approx(scores["test"])
    assert row["macro_f1"] == pytest.approx(scores["test"])


def test_quant_auto_keeps_the_sensitive_layer_in_full_precision_and_the_formats_are_accepted(
    folder_with_outlier_model, run_main
):
    folder = folder_with_outlier_model
    assert run_main(quantize_and_export(folder, "--quant_auto", "--experiment", "repaired")) == 0
    compressed = folder / "compressed_models" / "repaired"
    rows = results_by_row(compressed)
    for name in ("dynamic", "dynamic-onnx", "onnx-int8"):
        assert rows[name]["shipped"] and rows[name]["validation_drop"] <= 0.03
        assert SENSITIVE_LAYER in rows[name]["layers_left_whole"].split(", ")
        assert rows[name]["bytes"] < rows["teacher"]["bytes"]
    assert (compressed / "model.safetensors").exists()
    assert (compressed / "onnx" / "model_quantized.onnx").exists()


def test_a_pipeline_with_a_rejected_format_does_not_stop_the_next_pipeline(
    folder_with_outlier_model, run_main, capsys
):
    folder = folder_with_outlier_model
    assert run_main(gated_run(folder, "--run_ablation", "quant_only", "baseline")) == 3
    printed = capsys.readouterr()
    first_line = messages(printed.err)[0]
    assert first_line.startswith("main.py: quant_only: dynamic is rejected: it loses ")
    assert "dynamic (rejected)" in printed.out
    assert printed.out.splitlines()[-1].startswith("baseline")
    (compressed,) = (folder / "compressed_models").glob("baseline_labeled_??????")
    assert (compressed / "model.safetensors").exists()


def test_the_layer_with_the_outlier_is_the_most_sensitive(folder_with_outlier_model):
    sensitivities = layer_sensitivities(
        folder_with_outlier_model / "model", sentences(20, seed=9), MAX_LENGTH, 8
    )
    assert max(sensitivities, key=sensitivities.get) == SENSITIVE_LAYER
    assert {"bert.embeddings.word_embeddings", "classifier"} <= set(sensitivities)
    assert min(sensitivities.values()) >= 0


def test_the_sensitivity_of_a_layer_is_measured_with_all_other_layers_in_full_precision(
    folder_with_outlier_model,
):
    directory = folder_with_outlier_model / "model"
    texts = sentences(20, seed=9)
    sensitivities = layer_sensitivities(directory, texts, MAX_LENGTH, 4)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).logits
        model.classifier.weight.data = fake_quantize_weight(model.classifier.weight.data, 4)
        change = model(**inputs).logits - expected
    mean_square = float(change.square().mean())
    assert sensitivities["classifier"] == pytest.approx(mean_square, rel=1e-3)


class GateWithoutModel(QualityGate):
    """A gate that accepts a format with at least `enough` of ten layers in full precision."""

    def __init__(self, enough: int):
        self.enough = enough
        self.min_macro_f1 = 0.9
        self.written: list[list[str]] = []

    def write(self, skipped_layers: Sequence[str]) -> None:
        self.written.append(list(skipped_layers))

    def score(self, directory: Path, format_name: str) -> float:
        return 1.0 if len(self.written[-1]) >= self.enough else 0.0

    def ranking(self, bits: int) -> list[str]:
        return list("abcdefghij")


@pytest.mark.parametrize(
    "enough, numbers_written",
    [
        (0, [0]),
        (1, [0, 1]),
        (3, [0, 1, 2, 4]),
        (5, [0, 1, 2, 4, 8]),
        (9, [0, 1, 2, 4, 8, 10]),
        (99, [0, 1, 2, 4, 8, 10]),  # never accepted
    ],
)
def test_the_number_of_skipped_layers_doubles_until_the_score_is_accepted(
    enough, numbers_written, tmp_path
):
    gate = GateWithoutModel(enough)
    skipped_layers = gate.write_until_accepted(gate.write, tmp_path, "torch", 8)
    assert [len(layers) for layers in gate.written] == numbers_written
    assert skipped_layers == gate.written[-1] == list("abcdefghij")[: numbers_written[-1]]
