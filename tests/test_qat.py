"""Quantization-aware training: grids computed by hand, gradients, and exports on the same grid."""

import pandas as pd
import pytest
import torch
from tiny_models import CONFIGS, MAX_LENGTH, TEXTS, logits_on_disk, replace_config, save_tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification

import quantization
from engines import graphs
from engines.fake_quantization import (
    convert_qat_,
    fake_quantize_activations,
    fake_quantize_input_hook,
    fake_quantize_weight,
    int4_group_size,
    prepare_qat_,
    quantizable_layers,
)
from runtime.command_line import parse_options
from runtime.errors import UserError


def is_on_grid(weight: torch.Tensor, bits: int) -> bool:
    return torch.allclose(fake_quantize_weight(weight, bits), weight, atol=1e-6)


def test_the_8_bit_grid_is_that_computed_by_hand():
    weight = torch.tensor([[1.27, 0.004, -0.006, 0.0], [0.5, -1.0, 0.25, 0.004]])
    expected = [[1.27, 0.0, -0.01, 0.0], [64 / 127, -1.0, 32 / 127, 1 / 127]]
    assert torch.allclose(fake_quantize_weight(weight, 8), torch.tensor(expected))


def test_the_4_bit_grid_is_that_computed_by_hand():
    weight = torch.zeros(1, 128)
    # The extreme of the first group is +4: steps of 0.5, from -3.5 to 4.
    weight[0, :5] = torch.tensor([4.0, 1.2, -1.3, -3.9, 0.2])
    # The extreme of the second group is -8: steps of 1, from -8 to 7.
    weight[0, 64:68] = torch.tensor([-8.0, 7.9, 2.4, -0.6])
    rounded = fake_quantize_weight(weight, 4)[0]
    assert rounded[:5].tolist() == [4.0, 1.0, -1.5, -3.5, 0.0]
    assert rounded[64:68].tolist() == [-8.0, 7.0, 2.0, -1.0]
    assert (rounded == 0).sum() == 128 - 8


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [32, 64, 96, 128, 130])
def test_a_weight_on_the_grid_is_not_changed(bits, width):
    generator = torch.Generator().manual_seed(width)
    weight = fake_quantize_weight(torch.randn(7, width, generator=generator), bits)
    assert is_on_grid(weight, bits)
    assert not fake_quantize_weight(torch.zeros(2, width), bits).any()


@pytest.mark.parametrize("width", [32, 64, 96, 128])
def test_a_group_of_4_bit_weights_has_at_most_16_values(width):
    generator = torch.Generator().manual_seed(width)
    weight = fake_quantize_weight(torch.randn(7, width, generator=generator), 4)
    assert len(weight[0, : int4_group_size(width)].unique()) <= 16


def test_widths_that_no_group_size_divides_have_8_bits():
    assert [int4_group_size(width) for width in (768, 96, 48, 130)] == [64, 32, None, None]
    weight = torch.randn(3, 48)
    assert torch.equal(fake_quantize_weight(weight, 4), fake_quantize_weight(weight, 8))
    row = fake_quantize_weight(torch.randn(1, 2000), 8)
    assert 16 < len(row.unique()) <= 256


def test_fake_quantized_activations_are_those_computed_by_hand():
    positive = torch.tensor([0.4, 255.0, 1.6])
    assert fake_quantize_activations(positive).tolist() == [0.0, 255.0, 2.0]
    mixed = torch.tensor([-51.0, 204.0, 0.4, -0.6])
    assert fake_quantize_activations(mixed).tolist() == [-51.0, 204.0, 0.0, -1.0]
    (hooked,) = fake_quantize_input_hook(None, (torch.tensor([0.4, 255.0]),))
    assert hooked.tolist() == [0.0, 255.0]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_gradient_is_that_of_the_identity(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 3))
    inputs = torch.randn(5, 64, requires_grad=True)
    prepare_qat_(model, bits)
    outputs = model(inputs)
    linear_inputs = inputs.detach()
    if bits == 8:
        linear_inputs = fake_quantize_activations(linear_inputs)
    weight = fake_quantize_weight(model[0].weight.detach(), bits)
    assert torch.allclose(outputs, linear_inputs @ weight.T + model[0].bias, atol=1e-5)
    unquantized = inputs @ model[0].weight.T + model[0].bias
    assert not torch.allclose(outputs, unquantized, atol=1e-3)
    outputs.sum().backward()
    assert torch.allclose(model[0].weight.grad, linear_inputs.sum(0).expand(3, -1), atol=1e-5)
    assert torch.allclose(inputs.grad, weight.sum(0).expand(5, -1), atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_a_converted_model_is_plain_and_gives_the_logits_of_training(family):
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(replace_config(family)).eval()
    names = list(model.state_dict())
    batch = {"input_ids": torch.randint(4, 60, (6, 12))}
    before = model(**batch).logits
    prepare_qat_(model, 4)
    assert list(model.state_dict()) == names
    in_training = model(**batch).logits
    assert not torch.allclose(before, in_training, atol=1e-3)
    convert_qat_(model, 4)
    assert torch.allclose(model(**batch).logits, in_training, atol=1e-5)
    assert list(model.state_dict()) == names
    layers = quantizable_layers(model).values()
    assert {type(layer) for layer in layers} == {nn.Linear, nn.Embedding}
    assert all(is_on_grid(layer.weight, 4) for layer in layers)


def export_difference(model, writer: graphs.Writer, format_name: str, folder) -> float:
    """Mean |difference| of the logits between a checkpoint and its quantized export."""
    model.save_pretrained(folder)
    save_tokenizer("bert", folder)
    source = folder / "fp32.onnx"
    graphs.write_onnx(folder, source)
    target = folder / format_name
    target.parent.mkdir()
    writer(source, target, graphs.Calibration(folder, TEXTS, MAX_LENGTH))
    expected = logits_on_disk(folder, "torch", threads=None)
    return abs(logits_on_disk(folder, format_name, threads=None) - expected).mean()


@pytest.mark.parametrize(
    "bits, writer, format_name, max_ratio",
    [
        (4, graphs.quantize_openvino_int4, "openvino/model.xml", 0.5),
        (8, graphs.quantize_onnx_dynamic, "onnx/model.onnx", 1.0),
    ],
)
def test_an_export_of_the_same_bits_does_not_change_the_weights(
    bits, writer, format_name, max_ratio, tmp_path, monkeypatch
):
    """With weights on the grid, only the rounding of the activations changes the logits."""
    monkeypatch.setattr(graphs, "has_vnni", lambda: True)
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_config(replace_config("bert")).eval()
    off_grid = export_difference(model, writer, format_name, tmp_path / "off")
    prepare_qat_(model, bits)
    convert_qat_(model, bits)
    on_grid = export_difference(model, writer, format_name, tmp_path / "on")
    assert on_grid < 0.02 and on_grid < off_grid * max_ratio


@pytest.fixture
def recorded_trainings(monkeypatch) -> list[tuple[str, float]]:
    """(type of the classifier, learning rate) of every quantization-aware training."""
    trainings = []
    train_ = quantization.train_

    def record_and_train_(model, tokenizer, splits, work_dir, settings, **arguments):
        trainings.append((type(model.classifier).__name__, settings.learning_rate))
        return train_(model, tokenizer, splits, work_dir, settings, **arguments)

    monkeypatch.setattr(quantization, "train_", record_and_train_)
    return trainings


def test_a_run_trains_a_pruned_student_for_8_bits(tiny_csv, tmp_path, run_main, recorded_trainings):
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--teacher_path",
        "scratch:2x64",
        "--student_path",
        "teacher:1",
        "--pipeline",
        "kd_prune",
        "--teacher_epochs",
        "2",
        "--epochs",
        "1",
        "--fine_tune_epochs",
        "1",
        "--qat",
        "int8",
        "--qat_epochs",
        "2",
        "--batch",
        "8",  # enough steps to move pruned weights off zero if nothing keeps them at zero
        "--export",
        "onnx",
        "--output_dir",
        str(tmp_path),
        "--experiment",
        "qat",
        "--tune_threshold",
        "--lr",
        "5e-4",
    ]
    assert run_main(argv) == 0
    expected_trainings = [("FakeQuantizedLinear", pytest.approx(5e-5))]
    assert recorded_trainings == expected_trainings
    results = pd.read_csv(tmp_path / "compressed_models" / "qat" / "results_final.csv")
    rows = results.set_index("stage")
    assert rows.parent[["qat", "tuned", "onnx-int8"]].tolist() == ["pruned", "qat", "tuned"]
    assert rows.sparsity["onnx-int8"] >= rows.sparsity["qat"] >= rows.sparsity["pruned"] > 0.39
    stages = tmp_path / "models" / "qat"
    pruned = AutoModelForSequenceClassification.from_pretrained(stages / "prune")
    trained = AutoModelForSequenceClassification.from_pretrained(stages / "qat")
    pruned_layers = quantizable_layers(pruned)
    for name, layer in quantizable_layers(trained).items():
        before = pruned_layers[name].weight
        assert not torch.equal(before, layer.weight), name
        assert is_on_grid(layer.weight, 8), name
        assert not layer.weight[before == 0].any(), name
    assert run_main(argv) == 0
    assert recorded_trainings == expected_trainings  # the second run reuses the stage


def test_qat_recovers_the_loss_of_structured_pruning():
    argv = ["--pipeline", "quant_only", "--quant_method", "dynamic", "--ffn_width", "0.5"]
    assert parse_options([*argv, "--qat", "int8"]).ffn_width == 0.5
    with pytest.raises(UserError, match="no training afterwards to recover the loss"):
        parse_options(argv)


@pytest.mark.parametrize(
    "more", ["", "--pipeline kd_only", "--pipeline quant_only --quant_method fp16"]
)
def test_qat_without_an_integer_format_is_rejected(more, tiny_csv, run_main, capsys):
    assert run_main(["--dataset_path", str(tiny_csv), "--qat", "int8", *more.split()]) == 2
    assert (
        "error: --qat is given, but nothing is stored in integers; give --export, or"
        in capsys.readouterr().err
    )
