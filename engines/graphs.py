"""Graphs of ONNX Runtime and OpenVINO, any batch size and length: a checkpoint in fp32, and that in fewer bits.

Node names keep the module's path (`/model/bert/encoder/layer.0/...`), by which the weights are found again later.
Layers named in `whole` stay as they are.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from engines.engine import INT4_GROUP_SIZE, read_tokenizer
from engines.parameter_counts import module_path
from runtime import cpu

OPSET = 17

EXAMPLE_TEXTS = [
    "a",
    "a b c d e f g h",
]  # of different lengths, so that the traced batch holds padding

QUANTIZED_OPS = ("MatMul", "Gather", "Gemm")

ONNX_INT4_GROUP_SIZE = 128  # weights of ONNX that share a scale, which takes four bytes

CALIBRATION_BATCH = 8

CALIBRATION_MERGE_BATCHES = 64  # whose extremes ONNX Runtime holds before it merges them

Writer = Callable[
    [Path, Path, "Calibration", Sequence[str]], None
]  # (fp32 graph, out, texts, whole layers)


class Calibration:
    """Token ids of the texts that activations' ranges are measured on, made batch by batch."""

    def __init__(self, model_dir: Path, texts: list[str], max_length: int):
        self.tokenize, self.collate = read_tokenizer(model_dir, max_length)
        self.texts = sorted(texts, key=len)

    def batched(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """`input_ids` and `attention_mask` of `size` texts of similar length at a time."""
        for start in range(0, len(self.texts), size):
            yield self.collate(self.tokenize(self.texts[start : start + size]))


def write_onnx(model_dir: Path | str, path: Path | str) -> None:
    """Export `model_dir` to `path`; the graph takes `input_ids` and `attention_mask`, both int64 [rows, tokens], and
    gives `logits`, float32 [rows, labels]."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )
    batch = AutoTokenizer.from_pretrained(model_dir)(
        EXAMPLE_TEXTS, padding=True, return_tensors="pt"
    )
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "length"} for name in names} | {"logits": {0: "batch"}}
    with suppress_output():
        torch.onnx.export(
            _logits_only(model, names).eval(),
            tuple(batch[name] for name in names),
            str(path),
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    _fold_identities(str(path))


def onnx_fp32(
    source: Path, target: Path, calibration: Calibration, whole: Sequence[str] = ()
) -> None:
    """The graph as it is."""
    shutil.copy2(source, target)


def openvino_fp32(
    source: Path, target: Path, calibration: Calibration | None, whole: Sequence[str] = ()
) -> None:
    """The graph for OpenVINO (.xml, and .bin beside it)."""
    import openvino

    with suppress_output():
        _save_openvino(openvino.convert_model(source), target, compress_to_fp16=False)


def write_graphs(model_dir: Path) -> None:
    """Add the fp32 graphs of both engines to a checkpoint's directory."""
    onnx, openvino = (
        model_dir / "onnx" / "model.onnx",
        model_dir / "openvino" / "openvino_model.xml",
    )
    for path in (onnx, openvino):
        path.parent.mkdir()
    write_onnx(model_dir, onnx)
    openvino_fp32(onnx, openvino, None)


def onnx_dynamic(
    source: Path, target: Path, calibration: Calibration, whole: Sequence[str] = ()
) -> None:
    """Int8 weights, of products per channel, embeddings and head too; activations are quantized as they come."""
    from onnxruntime.quantization import quantize_dynamic

    with suppress_output():
        quantize_dynamic(
            source,
            target,
            list(QUANTIZED_OPS),
            per_channel=True,
            reduce_range=not has_vnni(),
            nodes_to_exclude=_onnx_nodes(source, whole),
        )


def onnx_static(
    source: Path, target: Path, calibration: Calibration, whole: Sequence[str] = ()
) -> None:
    """Int8 weights, of products per channel, embeddings and head too; ranges of activations are the extremes seen.

    Outputs of products stay in float: their few large values would stretch the scale of all others.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    with suppress_output(), tempfile.TemporaryDirectory() as folder:
        quantize_static(
            source,
            target,
            calibration_cache_path=_write_ranges(source, calibration, Path(folder)),
            op_types_to_quantize=list(QUANTIZED_OPS),
            per_channel=True,
            reduce_range=not has_vnni(),
            activation_type=QuantType.QUInt8,
            nodes_to_exclude=_onnx_nodes(source, whole),
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )


def _write_ranges(source: Path, calibration: Calibration, folder: Path) -> Path:
    """The extremes of all activations on the texts, in a file: one at a time, measuring and quantizing take half the
    memory that they take together. External data leaves the calibrator without a copy of the weights."""
    from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

    ranges = folder / "ranges.json"
    calibrator = create_calibrator(
        source, QUANTIZED_OPS, str(folder / "augmented.onnx"), use_external_data_format=True
    )
    batches = calibration.batched(CALIBRATION_BATCH)
    while part := list(islice(batches, CALIBRATION_MERGE_BATCHES)):
        calibrator.collect_data(SimpleNamespace(get_next=partial(next, iter(part), None)))
    save_tensors_data(calibrator.compute_data(), ranges)
    return ranges


def onnx_int4(
    source: Path, target: Path, calibration: Calibration, whole: Sequence[str] = ()
) -> None:
    """Weights of products and embeddings in 4 bits, symmetric, head and pooler too, a scale for each 128; computed with
    int8 activations."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )
    from onnxruntime.quantization.onnx_model import ONNXModel

    axes, named = (("MatMul", 0), ("Gather", 1)), _onnx_nodes(source, whole)
    with suppress_output():
        model = ONNXModel(onnx.load(source))
        model.replace_gemm_with_matmul()
        model.clean_initializers()
        scheme = DefaultWeightOnlyQuantConfig(
            ONNX_INT4_GROUP_SIZE,
            is_symmetric=True,
            accuracy_level=4,
            op_types_to_quantize=("MatMul", "Gather"),
            quant_axes=axes,
        )
        quantizer = MatMulNBitsQuantizer(
            model.model,
            algo_config=scheme,
            nodes_to_exclude=[*named, *(f"{name}_MatMul" for name in named)],
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target))


def openvino_int8(
    source: Path, target: Path, calibration: Calibration, whole: Sequence[str] = ()
) -> None:
    """NNCF's post-training quantization for transformers: int8 weights and activations, embeddings and head too; the
    activations' ranges are measured on the texts, one by one, so that padding has no say. Without SmoothQuant, which
    holds a second copy of the weights, and moved the logits of small students more than it saved."""
    import nncf
    import openvino

    texts = nncf.Dataset(list(calibration.batched(1)))
    not_smoothed = nncf.AdvancedSmoothQuantParameters(matmul=-1)
    with suppress_output():
        model = nncf.quantize(
            openvino.convert_model(source),
            texts,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration.texts),
            ignored_scope=_ignored(source, whole),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=not_smoothed
            ),
        )
        _save_openvino(model, target)


def openvino_int4(
    source: Path, target: Path, calibration: Calibration, whole: Sequence[str] = ()
) -> None:
    """Weights in 4 bits, symmetric, embeddings and head too; a scale for each 64, or a smaller divisor of the layer's
    width; 8 bits where that has none."""
    import nncf
    import openvino

    narrow = nncf.AdvancedCompressionParameters(
        group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
    )
    with suppress_output():
        model = nncf.compress_weights(
            openvino.convert_model(source),
            mode=nncf.CompressWeightsMode.INT4_SYM,
            all_layers=True,
            ratio=1.0,
            group_size=INT4_GROUP_SIZE,
            advanced_parameters=narrow,
            backup_mode=nncf.BackupMode.INT8_SYM,
            ignored_scope=_ignored(source, whole),
        )
        _save_openvino(model, target)


def _save_openvino(model: Any, target: Path, **how: Any) -> None:
    """Without blanks, a sixth of the description, which counts in a small model."""
    import openvino

    openvino.save_model(model, target, **how)
    target.write_text(re.sub(r">\s+<", "><", target.read_text(encoding="utf-8")), encoding="utf-8")


def has_vnni() -> bool:
    """Whether this CPU multiplies int8 without saturating in between; taken as no where it does not say."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(cpu.instruction_sets())


def _onnx_nodes(source: Path, modules: Sequence[str]) -> list[str]:
    """Names of the nodes that hold the weights of `modules`."""
    import onnx

    nodes = onnx.load(source, load_external_data=False).graph.node if modules else []
    return [
        node.name
        for node in nodes
        if node.op_type in QUANTIZED_OPS and module_path(node.name) in modules
    ]


def _ignored(source: Path, modules: Sequence[str]) -> Any:
    """The same for NNCF, which sees a Gemm as a product without biases and a sum."""
    import nncf

    names = [
        name for node in _onnx_nodes(source, modules) for name in (node, f"{node}/WithoutBiases")
    ]
    return nncf.IgnoredScope(names=names, validate=False)


def _fold_identities(path: str) -> None:
    """Read shared weights directly: quantizers pass over a weight that reaches its product through an Identity."""
    import onnx

    model = onnx.load(path)
    source = {tensor.name: tensor.name for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        node.input[:] = [source.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.input[0] in source:
            source[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _logits_only(model: Any, names: list[str]) -> Any:
    """`model` as a module of positional inputs, because the exporter takes the inputs' order from them."""
    import torch

    class LogitsOnly(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(names, inputs, strict=True))).logits

    return LogitsOnly()


@contextmanager
def suppress_output() -> Iterator[None]:
    """Drop the warnings, log lines below ERROR and tables that exporters and quantizers emit by the dozen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
