"""The quantized formats of tiny models of five families.

Each reloads, decides as its parent does, and has the size that its method promises.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from missing_packages import hide_package
from tiny_models import (
    CONFIGS,
    FAMILIES,
    HEADS,
    MAX_LENGTH,
    SPECIAL_TOKENS,
    TEXTS,
    TOLERANCE,
    WORDS,
    TinyModels,
    logits_on_disk,
    quantize_all,
    replace_config,
)
from transformers import AutoModelForSequenceClassification

from compression_config import Options
from encoders.families import encoder_linears
from engines.engine import (
    Engine,
    formats_in,
    load_engine,
    make_collate,
    predict_logits,
    serving_files,
)
from engines.graphs import write_graphs
from engines.parameter_counts import count_parameters
from quantization import QUANTIZERS, REQUIREMENTS, quantized_formats, unquantizable_linears
from runtime.errors import UserError, check_installed


def pairs(mapping: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """(key, item) for every item of every key."""
    result = []
    for key, items in mapping.items():
        for item in items:
            result.append((key, item))
    return result


METHODS_AND_ENGINES = pairs(QUANTIZERS)
METHODS_AND_PACKAGES = pairs(REQUIREMENTS)
MIN_AGREEMENT = {"fp16": 0.95, "dynamic": 0.9, "static": 0.9, "int4": 0.9}
NF4_CODE = [  # of Dettmers et al. (2023), to four digits
    -1.0,
    -0.6962,
    -0.5251,
    -0.3949,
    -0.2844,
    -0.1848,
    -0.0911,
    0.0,
    0.0796,
    0.1609,
    0.2461,
    0.3379,
    0.4407,
    0.5626,
    0.7230,
    1.0,
]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> TinyModels:
    return TinyModels(tmp_path_factory.mktemp("quantization"))


def encoder_weights(tiny_models: TinyModels, family: str) -> dict[str, torch.Tensor]:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_models.parent(family))
    return {name: linear.weight.detach() for name, linear in encoder_linears(model).items()}


def onnx_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Initializer -> values, and node -> inputs, of the only graph in a directory."""
    import onnx

    graph = onnx.load(next((path / "onnx").glob("*.onnx"))).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return arrays, {node.name: list(node.input) for node in graph.node}


@pytest.mark.parametrize("method, engine", METHODS_AND_ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_format_reloads_and_its_logits_agree_with_its_parents(
    tiny_models, family, method, engine
):
    expected = logits_on_disk(tiny_models.parent(family), "torch")
    logits = logits_on_disk(tiny_models.quantized(family, method), engine)
    assert logits.dtype == np.float32 and logits.shape == (40, 3)
    assert np.abs(logits - expected).mean() < TOLERANCE[method]
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= MIN_AGREEMENT[method]


@pytest.mark.parametrize("method, engine", METHODS_AND_ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_logical_weights(tiny_models, family, method, engine):
    parent = AutoModelForSequenceClassification.from_pretrained(tiny_models.parent(family))
    parameters = list(parent.parameters())
    counts = count_parameters(tiny_models.quantized(family, method), engine)
    assert counts.parameters == sum(parameter.numel() for parameter in parameters)
    assert counts.nonzeros <= sum(int(parameter.count_nonzero()) for parameter in parameters)
    assert 0.5 <= counts.sparsity < 0.6


def test_counts_of_a_checkpoint_and_its_graphs_are_those_computed_by_hand(tiny_models, tmp_path):
    layer = 4 * (64 * 64 + 64) + (64 * 128 + 128) + (128 * 64 + 64) + 2 * 2 * 64
    embeddings = (len(SPECIAL_TOKENS + WORDS) + 80 + 2) * 64 + 2 * 64
    parameters = embeddings + 2 * layer + (64 * 64 + 64) + (64 * 3 + 3)
    zeros = 2 * (4 * 64 * 64 + 2 * 64 * 128) // 2
    counts = count_parameters(tiny_models.parent("bert"), "torch")
    assert counts.parameters == parameters
    assert counts.sparsity == 0.5
    assert parameters - counts.nonzeros == zeros + 64  # and the embedding of [PAD]
    add_graphs(tiny_models.parent("bert"), tmp_path)
    assert count_parameters(tmp_path, "onnx") == counts
    # The weights of the five norms are all one, and OpenVINO removes products with ones.
    without_norms = replace(
        counts, parameters=parameters - 5 * 64, nonzeros=counts.nonzeros - 5 * 64
    )
    assert count_parameters(tmp_path, "openvino") == without_norms


def add_graphs(parent: Path, directory: Path) -> None:
    """Link a checkpoint into `directory` and write its fp32 graphs."""
    for path in serving_files(parent, "torch"):
        (directory / path.name).symlink_to(path)
    write_graphs(directory)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_graph_gives_the_checkpoints_logits_at_any_batch_and_length(
    tiny_models, family, tmp_path
):
    add_graphs(tiny_models.parent(family), tmp_path)
    assert formats_in(tmp_path) == [
        "torch",
        "onnx/model.onnx",
        "openvino/openvino_model.xml",
    ]
    engines = [load_engine(tmp_path, name, MAX_LENGTH, threads=1) for name in formats_in(tmp_path)]
    for texts in (["ba"], ["ba", "ba be bi"], [" ".join(WORDS[:70]), "ba", "?"], TEXTS[:17]):
        expected, *graph_logits = [engine.forward(engine.encode(texts)) for engine in engines]
        for logits in graph_logits:
            assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_fp16_halves_the_weights_and_computes_in_fp32(tiny_models, family):
    half = tiny_models.quantized(family, "fp16") / "model.safetensors"
    full = tiny_models.parent(family) / "model.safetensors"
    assert half.stat().st_size / full.stat().st_size == pytest.approx(0.5, abs=0.02)
    tensors = tiny_models.quantized_tensors(family, "fp16")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    parameters = tiny_models.quantized_model(family, "fp16").parameters()
    assert {parameter.dtype for parameter in parameters} == {torch.float32}


def test_fp16_computes_in_fp32_if_the_parents_config_says_float16(tiny_models, tmp_path):
    parent = Path(shutil.copytree(tiny_models.parent("bert"), tmp_path / "parent"))
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    quantize_all("fp16", parent, tmp_path / "fp16")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "fp16")
    assert model.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_of_an_int8_weight_is_at_most_half_a_step_of_its_channel(tiny_models, family):
    stored = tiny_models.quantized_tensors(family, "dynamic")
    for name, weight in encoder_weights(tiny_models, family).items():
        values = stored[f"{name}._weight_qdata"]
        scale = stored[f"{name}._weight_scale"]
        assert values.dtype == torch.int8 and scale.shape == (weight.shape[0], 1)
        assert torch.allclose(scale[:, 0], weight.abs().amax(1) / 127.5)
        assert ((weight - values * scale).abs() <= scale / 2 * 1.0001).all()
        assert (values[weight == 0] == 0).all()


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_onnx_weights_are_int8_per_channel_with_an_error_of_at_most_half_a_step(
    tiny_models, method
):
    arrays, inputs = onnx_tensors(tiny_models.quantized("bert", method))
    for name, weight in encoder_weights(tiny_models, "bert").items():
        scope = "/model/" + name.replace(".", "/").replace("/layer/", "/layer.")
        if f"{scope}/MatMul" in inputs:
            weight_input = inputs[f"{scope}/MatMul"][1]
        else:
            weight_input = inputs[f"{scope}/MatMul_quant"][1]
        base = weight_input.removesuffix("_DequantizeLinear_Output").removesuffix("_quantized")
        values = arrays[f"{base}_quantized"]
        scale = arrays[f"{base}_scale"]
        expected = weight.numpy().T  # a MatMul stores [in, out]
        assert values.dtype == np.int8 and scale.shape == (weight.shape[0],)
        assert not arrays[f"{base}_zero_point"].any()
        assert (np.abs(expected - values * scale) <= scale / 2 * 1.0001).all()
        assert (values[expected == 0] == 0).all()


def test_a_weight_shared_by_layers_is_quantized_once(tiny_models):
    quantized = tiny_models.quantized("albert", "dynamic")
    arrays, _ = onnx_tensors(quantized)
    matrices = [array for array in arrays.values() if array.ndim == 2]
    assert not any(matrix.dtype == np.float32 for matrix in matrices)
    parent = AutoModelForSequenceClassification.from_pretrained(tiny_models.parent("albert"))
    parameters = sum(parameter.numel() for parameter in parent.parameters())
    assert count_parameters(quantized, "onnx").parameters == parameters


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_a_quantized_graph_multiplies_integers(tiny_models, method, tmp_path):
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    (source,) = (tiny_models.quantized("bert", method) / "onnx").glob("*.onnx")
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    float_matrices = set()
    for tensor in graph.initializer:
        if tensor.data_type == tensor.FLOAT and len(tensor.dims) == 2:
            float_matrices.add(tensor.name)
    integer_products = 0
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            assert not float_matrices & set(node.input), node.name
        if node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul"):
            integer_products += 1
    assert integer_products >= 12


def test_two_runs_of_dynamic_quantization_write_the_same_bytes(tiny_models, tmp_path):
    first = tiny_models.quantized("bert", "dynamic")
    quantize_all("dynamic", tiny_models.parent("bert"), tmp_path)
    files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert Path("model.safetensors") in files
    for name in files:
        assert (tmp_path / name).read_bytes() == (first / name).read_bytes(), name


def test_int8_weights_are_still_int8_after_a_forward_pass(tiny_models):
    model = tiny_models.quantized_model("bert", "dynamic")
    with torch.inference_mode():
        model(input_ids=torch.tensor([[0, 5, 6, 2]]))
    assert {linear.weight.qdata.dtype for linear in encoder_linears(model).values()} == {torch.int8}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_of_an_nf4_weight_is_at_most_half_the_largest_gap_of_the_code(
    tiny_models, family
):
    from bitsandbytes.functional import dequantize_4bit

    half_gap = np.diff(NF4_CODE).max() / 2
    loaded = encoder_linears(tiny_models.quantized_model(family, "int4"))
    for name, weight in encoder_weights(tiny_models, family).items():
        packed = loaded[name].weight
        assert packed.dtype == torch.uint8 and packed.numel() == weight.numel() / 2
        assert packed.quant_state.nested
        blocks = weight.view(-1, 64)
        restored = dequantize_4bit(packed.data, packed.quant_state).view(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        slack = 0.01 * largest.max()  # the scales are themselves stored in 8 bits
        assert ((blocks - restored).abs() <= half_gap * largest + slack).all()
        assert (restored[blocks == 0] == 0).all()


@pytest.mark.parametrize("method", ["dynamic", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_stays_in_full_precision_and_every_encoder_linear_is_quantized(
    tiny_models, family, method
):
    before = tiny_models.parent_tensors(family)
    after = tiny_models.quantized_tensors(family, method)
    for name in HEADS[family]:
        assert torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
    full_precision = {name for name, tensor in after.items() if tensor.dtype == torch.float32}
    encoder = {f"{name}.weight" for name in encoder_weights(tiny_models, family)}
    assert full_precision.isdisjoint(encoder)


@pytest.mark.parametrize("method", QUANTIZERS)
def test_a_directory_contains_the_files_needed_for_serving_and_no_others(tiny_models, method):
    path = tiny_models.quantized("bert", method)
    needed = set()
    for engine in QUANTIZERS[method]:
        needed |= set(serving_files(path, engine))
    assert needed == {file for file in path.rglob("*") if file.is_file()}
    names = {file.name for file in needed}
    assert names >= {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_the_formats_of_a_method_have_a_row_each():
    assert quantized_formats(Options(quant_method="fp16")) == {"fp16": "torch"}
    assert quantized_formats(Options(quant_method="dynamic")) == {
        "dynamic": "torch",
        "dynamic-onnx": "onnx",
    }
    assert quantized_formats(Options(quant_method="static")) == {"static-onnx": "onnx"}
    assert quantized_formats(Options(quant_method="int4")) == {"int4": "torch"}


def test_nf4_keeps_linears_in_full_precision_if_their_width_is_not_a_multiple_of_a_block(tmp_path):
    config = replace_config("bert", intermediate_size=100)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    assert sorted(unquantizable_linears(tmp_path, width_multiple=64)) == [
        "bert.encoder.layer.0.output.dense",
        "bert.encoder.layer.1.output.dense",
        "bert.pooler.dense",
        "classifier",
    ]


def test_nf4_rejects_a_model_without_a_linear_of_a_suitable_width(tmp_path):
    config = replace_config("bert", hidden_size=40, intermediate_size=100)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--quant_method is int4, but .* multiple of 64"):
        quantize_all("int4", tmp_path, tmp_path / "out")


def text_lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def test_logits_are_in_the_order_of_the_texts():
    engine = Engine(list, text_lengths, lambda lengths: np.array([lengths]).T)
    assert predict_logits(engine, TEXTS, batch=7)[:, 0].tolist() == text_lengths(TEXTS)


def test_rows_are_padded_on_the_right_and_padding_is_masked():
    batch = make_collate(1)([[5, 6, 7], [8]])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_batch_size_does_not_change_the_logits_of_a_row(tiny_models):
    engine = load_engine(tiny_models.parent("roberta"), "torch", MAX_LENGTH)
    expected = predict_logits(engine, TEXTS, batch=1)
    assert np.abs(predict_logits(engine, TEXTS, batch=16) - expected).max() < 1e-5


@pytest.mark.parametrize("method, package", METHODS_AND_PACKAGES)
def test_a_missing_package_of_a_method_is_reported_in_one_line(monkeypatch, method, package):
    hide_package(monkeypatch, package)
    with pytest.raises(UserError) as refusal:
        check_installed("--quant_method", method, REQUIREMENTS[method])
    expected = f"--quant_method is {method}, but needs {package}: pip install {package}"
    assert str(refusal.value) == expected


def test_the_packages_of_every_method_are_installed():
    assert REQUIREMENTS.keys() == QUANTIZERS.keys()
    for method in QUANTIZERS:
        check_installed("--quant_method", method, REQUIREMENTS[method])
