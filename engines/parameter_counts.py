"""Parameters, nonzeros and encoder sparsity of every format on disk.

Counts are those of the logical weights, independent of how they are stored; scales and zero points
are not counted. The libraries that read a format are imported by its counter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engines.engine import empty_model, engine_name, graph_path
from engines.linear import read_tensors

QUANTIZATION_SUFFIXES = ("_scale", "_scales", "_zero_point")

UNPACKING_OPS = ("Convert", "Multiply", "Reshape")  # OpenVINO: from a stored weight to its use

WEIGHT_TYPES = ("f32", "f16", "i8", "i4")

INT4_ZERO = 8  # the stored value of a zero weight in MatMulNBits


@dataclass(frozen=True)
class ParameterCounts:
    """Logical weights of a format; `sparsity` is the fraction of zeros in the encoder's Linears."""

    parameters: int
    nonzeros: int
    sparsity: float


class WeightCount(NamedTuple):
    """The number of values and of nonzero values of one weight."""

    size: int
    nonzeros: int


def count_parameters(model_dir: Path | str, format_name: str) -> ParameterCounts:
    """Count the weights of a format from its files."""
    return COUNTERS[engine_name(format_name)](Path(model_dir), format_name)


def _total(counts: dict[Hashable, WeightCount], encoder: Iterable[Hashable]) -> ParameterCounts:
    """The sum of `counts`; the sparsity is that of the entries in `encoder`."""
    encoder_counts = [counts[key] for key in encoder]
    encoder_size = sum(count.size for count in encoder_counts)
    encoder_nonzeros = sum(count.nonzeros for count in encoder_counts)
    return ParameterCounts(
        parameters=sum(count.size for count in counts.values()),
        nonzeros=sum(count.nonzeros for count in counts.values()),
        sparsity=1 - encoder_nonzeros / encoder_size,
    )


def _count_values(values: np.ndarray, zero: int | float = 0) -> WeightCount:
    return WeightCount(values.size, int(np.count_nonzero(values != zero)))


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """The 4-bit numbers of an array of bytes [..., n] -> [..., n, 2], the low half first."""
    return np.stack([packed & 15, packed >> 4], axis=-1)


def module_path(node_name: str) -> str:
    """The path of the module that a graph node was exported from.

    `/model/bert/encoder/layer.0/output/dense/MatMul_quant` -> `bert.encoder.layer.0.output.dense`.
    The second call of a shared module (ALBERT's layer) has a number appended, which is removed.
    """
    path = ".".join(node_name.split("/")[2:-1])
    return re.sub(r"_\d+$", "", path)


# ------------------------------------------------------------------------------------------- torch


def count_torch(model_dir: Path, format_name: str) -> ParameterCounts:
    """Counts of a checkpoint; quantized weights are dequantized one at a time."""
    from encoders.families import encoder_linears
    from encoders.saved_models import load_saved_model

    model = load_saved_model(model_dir)
    counts = {}
    for name, parameter in model.named_parameters():
        weight = _dequantize(parameter)
        counts[name] = WeightCount(weight.numel(), int(weight.count_nonzero()))
    return _total(counts, [f"{name}.weight" for name in encoder_linears(model)])


def _dequantize(parameter: Any) -> Any:
    """The values of a parameter of bitsandbytes (NF4), torchao (int8) or plain torch."""
    if hasattr(parameter, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(parameter.data, parameter.quant_state)
    if hasattr(parameter, "dequantize") and hasattr(parameter, "qdata"):
        return parameter.dequantize()
    return parameter


# -------------------------------------------------------------------------------------------- ONNX


def count_onnx(model_dir: Path, format_name: str) -> ParameterCounts:
    """Counts of a graph; modules are identified by the names of the nodes.

    The exporter stores equal weights once, so an initializer counts once per module that uses it.
    """
    import onnx

    from encoders.families import encoder_linears

    graph = onnx.load(graph_path(model_dir, format_name)).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    widths = _int4_widths(graph)
    linears = encoder_linears(empty_model(model_dir))
    counts = {}
    encoder = set()
    for module, name in _onnx_uses(graph, tensors):
        counts[module, name] = _count_onnx_tensor(name, tensors, widths.get(name))
        if module in linears and len(tensors[name].dims) > 1:
            encoder.add((module, name))
    return _total(counts, encoder)


def _int4_widths(graph: Any) -> dict[str, int]:
    """Initializer -> input features, for every weight of a MatMulNBits."""
    from onnx.helper import get_node_attr_value

    widths = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            widths[node.input[1]] = get_node_attr_value(node, "K")
    return widths


def _onnx_uses(graph: Any, tensors: dict[str, Any]) -> set[tuple[str, str]]:
    """(module, initializer) for every weight that a module uses, directly or dequantized."""
    stored_names = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            stored_names[node.output[0]] = node.input[0]
    uses = set()
    for node in graph.node:
        module = module_path(node.name)
        for input_name in node.input:
            name = stored_names.get(input_name, input_name)
            if module and name in tensors and _is_weight(tensors[name]):
                uses.add((module, name))
    return uses


def _is_weight(tensor: Any) -> bool:
    """False for scalars, scales, zero points, and the int64 shapes and indices."""
    is_quantization = tensor.name.endswith(QUANTIZATION_SUFFIXES)
    return bool(tensor.dims) and not is_quantization and tensor.data_type != tensor.INT64


def _count_onnx_tensor(name: str, tensors: dict[str, Any], int4_width: int | None) -> WeightCount:
    """`int4_width` is the row width of a 4-bit weight, whose rows are padded to whole groups."""
    from onnx.numpy_helper import to_array

    values = to_array(tensors[name])
    if int4_width is not None:
        rows = _nibbles(values).reshape(len(values), -1)
        return _count_values(rows[:, :int4_width], INT4_ZERO)
    zero_point = tensors.get(name.removesuffix("_quantized") + "_zero_point")
    if zero_point is None:
        return _count_values(values)
    zero_points = to_array(zero_point)  # symmetric: the same for all channels
    return _count_values(values, zero_points.flat[0])


# ---------------------------------------------------------------------------------------- OpenVINO


def count_openvino(model_dir: Path, format_name: str) -> ParameterCounts:
    """Counts of the weight constants of a graph; modules are identified by operation names."""
    import openvino

    from encoders.families import encoder_linears

    operations = openvino.Core().read_model(graph_path(model_dir, format_name)).get_ordered_ops()
    linears = encoder_linears(empty_model(model_dir))
    counts = {}
    encoder = set()
    for operation in operations:
        kind = operation.get_type_name()
        if kind == "Constant" and _is_weight_constant(operation):
            counts[operation.friendly_name] = _count_openvino_constant(operation)
        elif kind == "MatMul" and module_path(operation.friendly_name) in linears:
            encoder.add(_weight_constant_name(operation))
    return _total(counts, encoder)


def _is_weight_constant(constant: Any) -> bool:
    """False for numbers, shapes, scales and activation ranges."""
    kind = constant.get_output_element_type(0).get_type_name()
    size = np.prod(constant.get_output_shape(0))
    user = next(iter(constant.output(0).get_target_inputs()))
    user_name = user.get_node().friendly_name
    is_scale = "fq_weights" in user_name and user.get_index() == 1
    is_range = "nncf" in user_name or "/fq_" in constant.friendly_name
    return kind in WEIGHT_TYPES and size > 1 and not is_scale and not is_range


def _weight_constant_name(product: Any) -> str:
    """The name of the constant that stores the weight of a product.

    Raises ValueError if no input of the product is a constant.
    """
    for source in product.input_values():
        node = source.get_node()
        while node.get_type_name() in UNPACKING_OPS:
            node = node.input_value(0).get_node()
        if node.get_type_name() == "Constant":
            return node.friendly_name
    raise ValueError(f"{product.friendly_name} has no weight")


def _count_openvino_constant(constant: Any) -> WeightCount:
    values = constant.data
    if constant.get_output_element_type(0).get_type_name() == "i4":  # two numbers per byte
        values = _nibbles(values.view(np.uint8))
    return WeightCount(int(np.prod(constant.get_output_shape(0))), int(np.count_nonzero(values)))


# ----------------------------------------------------------------------------------------- linear


def count_linear(model_dir: Path, format_name: str) -> ParameterCounts:
    """Counts of the linear baseline: coefficients, intercepts, inverse document frequencies.

    The sparsity is that of the coefficients.
    """
    tensors = read_tensors(model_dir)
    names = ("coefficients", "intercepts", "idf")
    counts = {name: _count_values(tensors[name]) for name in names}
    return _total(counts, ["coefficients"])


COUNTERS: dict[str, Callable[[Path, str], ParameterCounts]] = {
    "torch": count_torch,
    "onnx": count_onnx,
    "openvino": count_openvino,
    "linear": count_linear,
}
