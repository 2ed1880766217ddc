"""What a form on disk weighs: how many weights it holds, and how many of them are zero.

Weights are counted as the model has them, however they are packed; scales and zero points are no weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.engine import empty_model, engine_name, graph_path

QUANTIZATION_SUFFIXES = ("_scale", "_scales", "_zero_point")

UNPACKING_OPS = (
    "Convert",
    "Multiply",
    "Reshape",
)  # operations of OpenVINO between a packed weight and its use

WEIGHT_TYPES = ("f32", "f16", "i8", "i4")


@dataclass(frozen=True)
class ParameterCounts:
    """Logical weights of a form, however packed; `sparsity` is the share of zeros in the encoder's Linears."""

    parameters: int
    nonzeros: int
    sparsity: float


def count_parameters(model_dir: Path | str, form: str) -> ParameterCounts:
    """What the form on disk holds."""
    return COUNTERS[engine_name(form)](Path(model_dir), form)


def count_torch(model_dir: Path, form: str) -> ParameterCounts:
    """Counts of the loaded checkpoint, packed weights unpacked one at a time."""
    from transformers import AutoModelForSequenceClassification

    from encoders.families import encoder_linears

    model = AutoModelForSequenceClassification.from_pretrained(model_dir)
    sizes = {name: _torch_sizes(parameter) for name, parameter in model.named_parameters()}
    return _total(sizes, {f"{name}.weight" for name in encoder_linears(model)})


def count_onnx(model_dir: Path, form: str) -> ParameterCounts:
    """Counts of the graph's weights, found by the module paths in its node names."""
    import onnx

    from encoders.families import encoder_linears

    graph = onnx.load(graph_path(model_dir, form)).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses = _onnx_uses(graph, tensors)
    widths = {
        node.input[1]: onnx.helper.get_node_attr_value(node, "K")
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }
    linears = encoder_linears(empty_model(model_dir))
    return _total(
        {use: _onnx_sizes(use[1], tensors, widths) for use in uses},
        {use for use in uses if use[0] in linears and len(tensors[use[1]].dims) > 1},
    )


def count_openvino(model_dir: Path, form: str) -> ParameterCounts:
    """Counts of the graph's constants that are weights; those of Linears are found by the operations' names."""
    import openvino

    from encoders.families import encoder_linears

    operations = openvino.Core().read_model(graph_path(model_dir, form)).get_ordered_ops()
    weights = {
        op.friendly_name: op
        for op in operations
        if op.get_type_name() == "Constant" and _holds_weights(op)
    }
    linears = encoder_linears(empty_model(model_dir))
    products = [
        op
        for op in operations
        if op.get_type_name() == "MatMul" and module_path(op.friendly_name) in linears
    ]
    return _total(
        {name: _openvino_sizes(constant) for name, constant in weights.items()},
        {_openvino_weight(product) for product in products},
    )


def count_linear(model_dir: Path, form: str) -> ParameterCounts:
    """Counts of a scikit-learn pipeline: coefficients, intercepts and inverse document frequencies."""
    import joblib

    steps = [step for _, step in joblib.load(model_dir / "linear.joblib").steps]
    classifiers = getattr(steps[-1], "estimators_", [steps[-1]])
    arrays = {("coef", i): classifier.coef_ for i, classifier in enumerate(classifiers)}
    arrays |= {("intercept", i): classifier.intercept_ for i, classifier in enumerate(classifiers)}
    arrays |= {("idf", i): step.idf_ for i, step in enumerate(steps[:-1])}
    sizes = {key: (array.size, int(np.count_nonzero(array))) for key, array in arrays.items()}
    return _total(sizes, {key for key in sizes if key[0] == "coef"})


COUNTERS: dict[str, Callable[[Path, str], ParameterCounts]] = {
    "torch": count_torch,
    "onnx": count_onnx,
    "openvino": count_openvino,
    "linear": count_linear,
}


def _total(sizes: dict[Any, tuple[int, int]], encoder: set[Any]) -> ParameterCounts:
    """Sum (parameters, nonzeros) of all entries; sparsity over those named in `encoder`."""
    parameters, nonzeros = (sum(column) for column in zip(*sizes.values(), strict=True))
    held, kept = (sum(column) for column in zip(*(sizes[name] for name in encoder), strict=True))
    return ParameterCounts(parameters, nonzeros, 1 - kept / held)


def _torch_sizes(parameter: Any) -> tuple[int, int]:
    if hasattr(parameter, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        parameter = dequantize_4bit(parameter.data, parameter.quant_state)
    elif hasattr(parameter, "dequantize") and hasattr(parameter, "qdata"):
        parameter = parameter.dequantize()
    return parameter.numel(), int(parameter.count_nonzero())


def module_path(node_name: str) -> str:
    """The module that a graph's node comes from, by the name that the exporter gave the node:
    `/model/bert/encoder/layer.0/output/dense/MatMul_quant` -> `bert.encoder.layer.0.output.dense`."""
    path = ".".join(node_name.split("/")[2:-1])
    return re.sub(
        r"_\d+$", "", path
    )  # a module that is called twice (ALBERT's shared layer) has a numbered path


def _onnx_uses(graph: Any, tensors: dict[str, Any]) -> set[tuple[str, str]]:
    """The exporter stores equal weights once, so one initializer may serve many modules."""
    dequantized = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"
    }
    uses = (
        (module_path(node.name), dequantized.get(name, name))
        for node in graph.node
        for name in node.input
    )
    return {
        (module, name)
        for module, name in uses
        if module and name in tensors and _is_weight(tensors[name])
    }


def _is_weight(tensor: Any) -> bool:
    """Not a scale or zero point, and not one of the int64 shapes and indices."""
    is_quantization = tensor.name.endswith(QUANTIZATION_SUFFIXES)
    return bool(tensor.dims) and not is_quantization and tensor.data_type != tensor.INT64


def _onnx_sizes(name: str, tensors: dict[str, Any], widths: dict[str, int]) -> tuple[int, int]:
    """`widths` has the inputs of a product whose weights are packed in 4 bits, two in a byte, zero as 8."""
    from onnx.numpy_helper import to_array

    values = to_array(tensors[name])
    if name in widths:
        values, zero = _nibbles(values).reshape(len(values), -1)[:, : widths[name]], 8
    else:
        zero_point = tensors.get(name.removesuffix("_quantized") + "_zero_point")
        zero = (
            0 if zero_point is None else to_array(zero_point).flat[0]
        )  # symmetric: the same for all channels
    return values.size, int(np.count_nonzero(values != zero))


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """The 4-bit numbers of bytes, the lower half of a byte first."""
    return np.stack([packed & 15, packed >> 4], axis=-1)


def _holds_weights(constant: Any) -> bool:
    """Not a number, a shape, a scale, or the range of an activation."""
    kind, size = (
        constant.get_output_element_type(0).get_type_name(),
        np.prod(constant.get_output_shape(0)),
    )
    (user, *_) = constant.output(0).get_target_inputs()
    used_by = user.get_node().friendly_name
    is_scale = "fq_weights" in used_by and user.get_index() == 1
    is_range = "nncf" in used_by or "/fq_" in constant.friendly_name
    return kind in WEIGHT_TYPES and size > 1 and not is_scale and not is_range


def _openvino_weight(product: Any) -> str:
    """Name of the constant that a product's weight is unpacked from."""
    for source in product.input_values():
        node = source.get_node()
        while node.get_type_name() in UNPACKING_OPS:
            node = node.input_value(0).get_node()
        if node.get_type_name() == "Constant":
            return node.friendly_name
    raise ValueError(f"{product.friendly_name} has no weight")


def _openvino_sizes(constant: Any) -> tuple[int, int]:
    size, values = int(np.prod(constant.get_output_shape(0))), constant.data
    if constant.get_output_element_type(0).get_type_name() == "i4":  # two in a byte
        values = _nibbles(values.view(np.uint8))
    return size, int(np.count_nonzero(values))
