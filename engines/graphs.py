"""Writers of ONNX and OpenVINO graphs: a checkpoint in fp32, and quantized versions of that graph.

All graphs accept any batch size and length. Node names contain the path of the module
(`/model/bert/encoder/layer.0/...`), which identifies the weights of a layer (`module_path`).

Every `Writer` reads an fp32 ONNX graph. Weights are quantized symmetrically, embeddings and the
classification head included; the modules in `skipped_modules` stay in full precision.

The export libraries are optional and slow to import, so each is imported by the functions that use
it.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from engines.engine import INT4_GROUP_SIZE, external_data_files, read_tokenizer
from engines.parameter_counts import module_path
from runtime import cpu
from runtime.errors import UserError
from runtime.finite import FORMAT_ADVICE

OPSET = 17

INPUT_NAMES = ["input_ids", "attention_mask"]

EXAMPLE_TEXTS = ["a", "a b c d e f g h"]  # two lengths, so that the traced batch contains padding

QUANTIZED_OPS = ("MatMul", "Gather", "Gemm")

ONNX_INT4_GROUP_SIZE = 128  # weights that share a scale of four bytes

# Of an ONNX graph whose weights are part of the file: a protobuf message cannot exceed 2 GiB.
MAX_GRAPH_BYTES = 1_900_000_000

NUMBERED_NAME = re.compile(r"([A-Za-z]+)(?:_\d+)+(?=/|$)")  # the start of a node's name

CALIBRATION_BATCH = 8  # texts

CALIBRATION_MERGE_BATCHES = 64  # batches whose activation ranges are in memory at once


class Calibration:
    """The texts on which activation ranges are measured; tokenized one batch at a time."""

    def __init__(self, model_dir: Path, texts: list[str], max_length: int):
        self.tokenize, self.collate = read_tokenizer(model_dir, max_length)
        self.texts = sorted(texts, key=len)

    def batched(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """`input_ids` and `attention_mask` of `size` texts of similar length at a time."""
        for start in range(0, len(self.texts), size):
            yield self.collate(self.tokenize(self.texts[start : start + size]))


# (fp32 ONNX graph, target path, calibration texts, modules kept in full precision)
Writer = Callable[[Path, Path, Calibration, Sequence[str]], None]


# ----------------------------------------------------------------------- full precision, from torch


def write_onnx(model_dir: Path | str, path: Path | str) -> None:
    """Export a checkpoint to an fp32 ONNX graph.

    Inputs: `input_ids` and `attention_mask`, int64 [rows, tokens]. Output: `logits`, float32
    [rows, labels].
    """
    import onnx
    import torch

    from encoders.saved_models import load_saved_model, load_saved_tokenizer

    model = load_saved_model(model_dir, dtype=torch.float32, attn_implementation="eager")
    tokenizer = load_saved_tokenizer(model_dir)
    batch = tokenizer(EXAMPLE_TEXTS, padding=True, return_tensors="pt")
    with suppress_output(), tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model.onnx"  # if it is large, there is one more file per weight
        torch.onnx.export(
            _positional_model(model).eval(),
            tuple(batch[name] for name in INPUT_NAMES),
            str(exported),
            input_names=INPUT_NAMES,
            output_names=["logits"],
            dynamic_axes={
                "input_ids": {0: "batch", 1: "length"},
                "attention_mask": {0: "batch", 1: "length"},
                "logits": {0: "batch"},
            },
            opset_version=OPSET,
            dynamo=False,  # the TorchScript exporter: its graphs quantize to smaller int8 files
        )
        del model
        graph = onnx.load(exported)
    _fold_identities_(graph)
    _save_onnx(graph, Path(path))


def _positional_model(model: Any) -> Any:
    """`model` with positional inputs; the exporter takes the order of the inputs from them."""
    import torch

    class PositionalModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    return PositionalModel()


def _fold_identities_(model: Any) -> None:
    """Replace `Identity(weight)` by the weight: quantizers do not look through an Identity.

    The exporter writes an Identity for a weight that is shared by several layers (ALBERT).
    """
    sources = {tensor.name: tensor.name for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        node.input[:] = [sources.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.input[0] in sources:
            sources[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _save_onnx(model: Any, path: Path) -> None:
    """Save a graph; the weights of a large one are in a second file, `<name>.onnx.data`.

    A file of that name that another graph has left is deleted.
    """
    import onnx

    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx appends to an existing file
    weight_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=weight_bytes > MAX_GRAPH_BYTES, location=data.name)


def write_graphs(model_dir: Path) -> None:
    """Add the fp32 graphs of both engines to the directory of a checkpoint."""
    onnx_path = model_dir / "onnx" / "model.onnx"
    openvino_path = model_dir / "openvino" / "openvino_model.xml"
    onnx_path.parent.mkdir()
    openvino_path.parent.mkdir()
    write_onnx(model_dir, onnx_path)
    _convert_to_openvino(onnx_path, openvino_path)


# ------------------------------------------------------------------------------------- ONNX writers


def copy_onnx(
    source: Path, target: Path, calibration: Calibration, skipped_modules: Sequence[str] = ()
) -> None:
    """The fp32 graph."""
    shutil.copy2(source, target)
    for path in external_data_files(source):
        shutil.copy2(path, target.with_name(path.name))


def quantize_onnx_dynamic(
    source: Path, target: Path, calibration: Calibration, skipped_modules: Sequence[str] = ()
) -> None:
    """Int8 weights, per channel in MatMuls; activations are quantized at run time."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with suppress_output(), tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "model.onnx"
        quantize_dynamic(
            source,
            quantized,
            list(QUANTIZED_OPS),
            per_channel=True,
            reduce_range=not has_vnni(),
            nodes_to_exclude=_weight_nodes(source, skipped_modules),
            use_external_data_format=True,
        )
        _save_onnx(onnx.load(quantized), target)


def quantize_onnx_static(
    source: Path, target: Path, calibration: Calibration, skipped_modules: Sequence[str] = ()
) -> None:
    """Int8 weights, per channel in MatMuls; activation ranges are fixed by calibration.

    The outputs of MatMuls stay in float: a few large values would dominate their scale.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    with suppress_output(), tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "model.onnx"
        quantize_static(
            source,
            quantized,
            calibration_cache_path=write_activation_ranges(source, calibration, Path(folder)),
            op_types_to_quantize=list(QUANTIZED_OPS),
            per_channel=True,
            reduce_range=not has_vnni(),
            activation_type=QuantType.QUInt8,
            nodes_to_exclude=_weight_nodes(source, skipped_modules),
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
            use_external_data_format=True,
        )
        _save_onnx(onnx.load(quantized), target)


class _BatchReader:
    """The interface through which ONNX Runtime's calibrator reads batches."""

    def __init__(self, batches: Sequence[dict[str, np.ndarray]]):
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def write_activation_ranges(source: Path, calibration: Calibration, folder: Path) -> Path:
    """Write the minimum and maximum of every activation on the calibration texts to a file.

    `quantize_static` could measure them itself. Separate steps need half the memory, and external
    data keeps a copy of the weights out of the calibrator. UserError if a range is not finite.
    """
    # Private API of onnxruntime (pinned): the calibrators and the format of their result.
    from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

    calibrator = create_calibrator(
        source, QUANTIZED_OPS, str(folder / "augmented.onnx"), use_external_data_format=True
    )
    batches = calibration.batched(CALIBRATION_BATCH)
    while part := list(islice(batches, CALIBRATION_MERGE_BATCHES)):
        calibrator.collect_data(_BatchReader(part))
    measured = calibrator.compute_data()
    for name, tensor in measured.items():
        if not np.isfinite(tensor.range_value).all():
            raise UserError(
                f"the activation {name} is not finite (nan or inf) on the calibration texts; "
                f"{FORMAT_ADVICE}"
            )
    ranges = folder / "ranges.json"
    save_tensors_data(measured, ranges)
    return ranges


def quantize_onnx_int4(
    source: Path, target: Path, calibration: Calibration, skipped_modules: Sequence[str] = ()
) -> None:
    """4-bit weights of MatMuls and embeddings, one scale per 128 weights; int8 activations."""
    import onnx

    # Private API of onnxruntime (pinned): the module of the MatMulNBits quantizer and ONNXModel.
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )
    from onnxruntime.quantization.onnx_model import ONNXModel

    skipped_nodes = []
    for name in _weight_nodes(source, skipped_modules):
        skipped_nodes += [name, f"{name}_MatMul"]  # the name after `replace_gemm_with_matmul`
    with suppress_output():
        model = ONNXModel(onnx.load(source))
        model.replace_gemm_with_matmul()
        model.clean_initializers()
        scheme = DefaultWeightOnlyQuantConfig(
            ONNX_INT4_GROUP_SIZE,
            is_symmetric=True,
            accuracy_level=4,
            op_types_to_quantize=("MatMul", "Gather"),
            quant_axes=(("MatMul", 0), ("Gather", 1)),
        )
        quantizer = MatMulNBitsQuantizer(
            model.model, algo_config=scheme, nodes_to_exclude=skipped_nodes
        )
        quantizer.process()
        # `process` says opset 21, but leaves operators that are invalid there (ReduceMean).
        quantizer.model.set_opset_import("", OPSET)
        _save_onnx(quantizer.model.model, target)


def has_vnni() -> bool:
    """Whether this CPU computes int8 MatMuls without saturation; False if its features are
    unknown."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(cpu.instruction_sets())


def _weight_nodes(source: Path, modules: Sequence[str]) -> list[str]:
    """The names of the ONNX nodes that use the weights of `modules`."""
    import onnx

    if not modules:
        return []
    names = []
    for node in onnx.load(source, load_external_data=False).graph.node:
        if node.op_type in QUANTIZED_OPS and module_path(node.name) in modules:
            names.append(node.name)
    return names


# --------------------------------------------------------------------------------- OpenVINO writers


def convert_to_openvino(
    source: Path, target: Path, calibration: Calibration, skipped_modules: Sequence[str] = ()
) -> None:
    """The fp32 graph as OpenVINO IR: an .xml file and a .bin file of the same name."""
    _convert_to_openvino(source, target)


def _convert_to_openvino(source: Path, target: Path) -> None:
    import openvino

    with suppress_output():
        _save_openvino(openvino.convert_model(source), target, compress_to_fp16=False)


def quantize_openvino_int8(
    source: Path, target: Path, calibration: Calibration, skipped_modules: Sequence[str] = ()
) -> None:
    """NNCF's post-training quantization for transformers: int8 weights and activations.

    Calibration reads one text at a time, so that padding does not affect the activation ranges.
    SmoothQuant is disabled: it needs a second copy of the weights and increased the error of small
    students.
    """
    import nncf
    import openvino

    # Advanced parameters of nncf (pinned): not covered by its compatibility promise.
    parameters = nncf.AdvancedQuantizationParameters(
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1)
    )
    with suppress_output():
        model = nncf.quantize(
            openvino.convert_model(source),
            nncf.Dataset(list(calibration.batched(1))),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration.texts),
            ignored_scope=_ignored_scope(source, skipped_modules),
            advanced_parameters=parameters,
        )
        _save_openvino(model, target)


def quantize_openvino_int4(
    source: Path, target: Path, calibration: Calibration, skipped_modules: Sequence[str] = ()
) -> None:
    """Weights of MatMuls and embeddings in 4 bits, one scale per 64.

    If 64 does not divide the width of a layer, a smaller group is used, or 8 bits if none fits.
    """
    import nncf
    import openvino

    # Advanced parameters of nncf (pinned): not covered by its compatibility promise.
    parameters = nncf.AdvancedCompressionParameters(
        group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
    )
    with suppress_output():
        model = nncf.compress_weights(
            openvino.convert_model(source),
            mode=nncf.CompressWeightsMode.INT4_SYM,
            all_layers=True,
            ratio=1.0,
            group_size=INT4_GROUP_SIZE,
            advanced_parameters=parameters,
            backup_mode=nncf.BackupMode.INT8_SYM,
            ignored_scope=_ignored_scope(source, skipped_modules),
        )
        _save_openvino(model, target)


def _ignored_scope(source: Path, modules: Sequence[str]) -> Any:
    """`modules` as NNCF's IgnoredScope; NNCF splits a Gemm into a product and a sum."""
    import nncf

    names = []
    for name in _weight_nodes(source, modules):
        names += [name, f"{name}/WithoutBiases"]
    return nncf.IgnoredScope(names=names, validate=False)


def _save_openvino(model: Any, target: Path, **options: Any) -> None:
    """Save without whitespace between XML tags, a sixth of the .xml file."""
    import openvino

    _number_nodes_(model)
    openvino.save_model(model, target, **options)
    xml = target.read_text(encoding="utf-8")
    target.write_text(re.sub(r">\s+<", "><", xml), encoding="utf-8")


def _number_nodes_(model: Any) -> None:
    """Number the nodes that OpenVINO named, such as `Constant_117499`, in the order of the graph.

    OpenVINO counts all nodes of a process, so that a graph would depend on the graphs made before.
    """
    new_names: dict[str, str] = {}
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        match = NUMBERED_NAME.match(name)
        if match:
            new_name = new_names.setdefault(match[0], f"{match[1]}_{len(new_names)}")
            node.set_friendly_name(new_name + name[match.end() :])


@contextmanager
def suppress_output() -> Iterator[None]:
    """Suppress warnings, log lines below ERROR and the tables that exporters print."""
    previous_level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous_level)
