"""Rounding in the loop: the grids by hand, the gradient, what is written, and that exported
forms share the grid."""

import pandas as pd
import pytest
import torch
from test_quantization import CONFIGS, MAX_LENGTH, TEXTS, replace_config, save_tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification

from compression_config import UserError
from engines.engine import load_engine, predict_logits
from engines.fake_quantization import (
    fake_quantize_activations,
    fake_quantize_weight,
    group_size,
    quantizable_layers,
    quantize_input_hook,
)
from engines.graphs import Calibration, onnx_dynamic, openvino_int4, write_onnx
from quantization import convert_to_plain_, fake_quantize_
from runtime.command_line import parse_options


def test_the_grid_of_8_bits_by_hand():
    weight = torch.tensor([[1.27, 0.004, -0.006, 0.0], [0.5, -1.0, 0.25, 0.004]])
    expected = [[1.27, 0.0, -0.01, 0.0], [64 / 127, -1.0, 32 / 127, 1 / 127]]
    assert torch.allclose(fake_quantize_weight(weight, 8), torch.tensor(expected))


def test_the_grid_of_4_bits_by_hand():
    weight = torch.zeros(1, 128)
    weight[0, :5] = torch.tensor(
        [4.0, 1.2, -1.3, -3.9, 0.2]
    )  # the largest is +4: steps of 0.5, from -3.5 to 4
    weight[0, 64:68] = torch.tensor(
        [-8.0, 7.9, 2.4, -0.6]
    )  # the largest is -8: steps of 1, from -8 to 7
    rounded = fake_quantize_weight(weight, 4)[0]
    assert rounded[:5].tolist() == [4.0, 1.0, -1.5, -3.5, 0.0]
    assert rounded[64:68].tolist() == [-8.0, 7.0, 2.0, -1.0]
    assert (rounded == 0).sum() == 128 - 8


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [32, 64, 96, 128, 130])
def test_a_weight_on_the_grid_stays_what_it_is(bits, width):
    once = fake_quantize_weight(
        torch.randn(7, width, generator=torch.Generator().manual_seed(width)), bits
    )
    assert torch.allclose(fake_quantize_weight(once, bits), once, atol=1e-6)
    assert len(once[0, : group_size(width) or width].unique()) <= (
        16 if bits == 4 and group_size(width) else 256
    )
    assert not fake_quantize_weight(torch.zeros(2, width), bits).any()


def test_widths_without_a_block_have_8_bits():
    assert [group_size(width) for width in (768, 96, 48, 130)] == [64, 32, 0, 0]
    weight = torch.randn(3, 48)
    assert torch.equal(fake_quantize_weight(weight, 4), fake_quantize_weight(weight, 8))


def test_activations_by_hand():
    assert fake_quantize_activations(torch.tensor([0.4, 255.0, 1.6])).tolist() == [0.0, 255.0, 2.0]
    assert fake_quantize_activations(torch.tensor([-51.0, 204.0, 0.4, -0.6])).tolist() == [
        -51.0,
        204.0,
        0.0,
        -1.0,
    ]
    assert quantize_input_hook(None, (torch.tensor([0.4, 255.0]),))[0].tolist() == [0.0, 255.0]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_gradient_passes_the_rounding_as_if_it_were_not_there(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 3))
    inputs = torch.randn(5, 64, requires_grad=True)
    fake_quantize_(model, bits)
    out = model(inputs)
    seen = fake_quantize_activations(inputs.detach()) if bits == 8 else inputs.detach()
    weight = fake_quantize_weight(model[0].weight.detach(), bits)
    assert torch.allclose(out, seen @ weight.T + model[0].bias, atol=1e-5)
    assert not torch.allclose(out, inputs @ model[0].weight.T + model[0].bias, atol=1e-3)
    out.sum().backward()
    assert torch.allclose(model[0].weight.grad, seen.sum(0).expand(3, -1), atol=1e-5)
    assert torch.allclose(inputs.grad, weight.sum(0).expand(5, -1), atol=1e-5)


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_config(replace_config(request.param)).eval()


@torch.no_grad()
def test_what_is_converted_is_plain_and_decides_as_it_did_in_training(model):
    names, batch = list(model.state_dict()), {"input_ids": torch.randint(4, 60, (6, 12))}
    before = model(**batch).logits
    fake_quantize_(model, 4)
    assert list(model.state_dict()) == names
    trained = model(**batch).logits
    assert not torch.allclose(before, trained, atol=1e-3)
    convert_to_plain_(model, 4)
    assert torch.allclose(model(**batch).logits, trained, atol=1e-5)
    assert list(model.state_dict()) == names
    assert {type(layer) for layer in quantizable_layers(model).values()} == {
        nn.Linear,
        nn.Embedding,
    }
    assert all(
        torch.allclose(fake_quantize_weight(layer.weight, 4), layer.weight, atol=1e-6)
        for layer in quantizable_layers(model).values()
    )


@pytest.mark.parametrize(
    "bits, write, name",
    [(4, openvino_int4, "openvino/model.xml"), (8, onnx_dynamic, "onnx/model.onnx")],
)
def test_an_export_of_those_bits_changes_no_weight(bits, write, name, tmp_path, monkeypatch):
    """On the grid, what is left of the difference is the rounding of activations; off it, the
    weights' comes on top."""
    monkeypatch.setattr("graphs.has_vnni", lambda: True)
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_config(replace_config("bert")).eval()
    apart = {}
    for kept in ("off", "on"):
        folder = tmp_path / kept
        if kept == "on":
            convert_to_plain_(swapped(model, bits), bits)
        model.save_pretrained(folder)
        save_tokenizer("bert", folder)
        (folder / name).parent.mkdir()
        write_onnx(folder, tmp_path / "fp32.onnx")
        write(tmp_path / "fp32.onnx", folder / name, Calibration(folder, TEXTS, MAX_LENGTH))
        ours, theirs = (
            predict_logits(load_engine(folder, form, MAX_LENGTH), TEXTS) for form in ("torch", name)
        )
        apart[kept] = abs(ours - theirs).mean()
    assert apart["on"] < 0.02 and apart["on"] < apart["off"] * (0.5 if bits == 4 else 1.0)


def swapped(model, bits):
    fake_quantize_(model, bits)
    return model


def test_a_run_makes_a_pruned_student_ready_for_8_bits(tiny_csv, tmp_path, run_main, monkeypatch):
    seen = []
    trained = quantization.train_
    monkeypatch.setattr(
        quantization,
        "train_",
        lambda model, *given, **named: (
            seen.append((type(model.classifier).__name__, named["lr"])),
            trained(model, *given, **named),
        ),
    )
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
        "1",
        "--export",
        "onnx",
        "--output_dir",
        str(tmp_path),
        "--experiment",
        "ready",
        "--tune_threshold",
        "--lr",
        "5e-4",
    ]
    assert run_main(argv) == 0 and seen == [("FakeQuantizedLinear", pytest.approx(5e-5))]
    rows = pd.read_csv(tmp_path / "compressed_models" / "ready" / "results_final.csv").set_index(
        "stage"
    )
    assert rows.parent[["qat", "tuned", "onnx-int8"]].tolist() == ["pruned", "qat", "tuned"]
    before, after = (
        quantizable_layers(
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "models/ready" / name)
        )
        for name in ("prune", "qat")
    )
    for name, layer in after.items():
        old, new = before[name].weight, layer.weight
        assert not torch.equal(old, new) and torch.allclose(
            fake_quantize_weight(new, 8), new, atol=1e-6
        ), name
        assert not new[old == 0].any(), name
    assert rows.sparsity["onnx-int8"] >= rows.sparsity["qat"] >= rows.sparsity["pruned"] > 0.39
    assert run_main(argv) == 0 and seen == [("FakeQuantizedLinear", pytest.approx(5e-5))]


def test_a_narrowed_teacher_is_trained_again_under_rounding():
    argv = ["--pipeline", "quant_only", "--quant_method", "dynamic", "--ffn_width", "0.5"]
    assert parse_options([*argv, "--qat", "int8"]).ffn_width == 0.5
    with pytest.raises(UserError, match="trains nothing afterwards"):
        parse_options(argv)


@pytest.mark.parametrize(
    "more", ["", "--pipeline kd_only", "--pipeline quant_only --quant_method fp16"]
)
def test_rounding_for_nothing_is_refused(more, tiny_csv, run_main, capsys):
    assert run_main(["--dataset_path", str(tiny_csv), "--qat", "int8", *more.split()]) == 2
    assert (
        "error: --qat is given, but nothing is stored in integers; give --export, or"
        in capsys.readouterr().err
    )
