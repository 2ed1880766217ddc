"""Fake quantization: tensors in full precision whose values lie on a quantization grid.

The grids are those of the Linear layers in the exported formats, or close to them:

- 8 bits: weights have one scale per output row, the largest absolute value divided by 127;
  activations have 256 steps between their minimum and maximum.
- 4 bits: groups of 64 weights of a row share a scale, and the weight with the largest absolute
  value, positive or negative, is mapped to -8 (`INT4_SYM` of NNCF). Rows whose width is not
  divisible by 32 use the 8-bit grid.

Quantization-aware training (QAT) computes with fake-quantized tensors and updates the weights in
full precision (Jacob et al. 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from engines.engine import INT4_GROUP_SIZE

SMALL_INT4_GROUP_SIZE = 32  # if the width is not divisible by INT4_GROUP_SIZE

MIN_SCALE = 1e-12  # the scale of weights that are all zero


def quantizable_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Embedding]:
    """Name -> layer, for every Linear and Embedding of `model`."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            layers[name] = module
    return layers


def int4_group_size(width: int) -> int | None:
    """The number of weights that share a scale in a row of `width`; None if no size divides it."""
    for group_size in (INT4_GROUP_SIZE, SMALL_INT4_GROUP_SIZE):
        if width % group_size == 0:
            return group_size
    return None


def fake_quantize_weight(weight: Tensor, bits: int) -> Tensor:
    """`weight` [out, in] rounded to its grid of 8 or 4 bits; idempotent."""
    group_size = int4_group_size(weight.shape[1])
    if bits == 8 or group_size is None:
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(MIN_SCALE)
        return (weight / scale).round() * scale
    groups = weight.reshape(-1, group_size)
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    scale = torch.where(extreme.abs() < MIN_SCALE, MIN_SCALE, extreme / -8)
    return ((groups / scale).round().clamp(-8, 7) * scale).view_as(weight)


def fake_quantize_activations(values: Tensor) -> Tensor:
    """`values` rounded to 256 steps between their minimum and maximum; the range includes zero."""
    low = values.min().clamp_max(0)
    high = values.max().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(MIN_SCALE)
    lowest_step = (low / scale).round()
    return (values / scale).round().clamp(lowest_step, lowest_step + 255) * scale


def fake_quantize_input_hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    """A forward pre-hook that fake-quantizes the input of a layer."""
    return (fake_quantize_activations(inputs[0]),)


# ---------------------------------------------------------------------- quantization-aware training


class StraightThroughEstimator(nn.Module):
    """Applies `quantize` in the forward pass; the gradient is that of the identity."""

    def __init__(self, quantize: Callable[[Tensor], Tensor]):
        super().__init__()
        self.quantize = quantize

    def forward(self, values: Tensor) -> Tensor:
        """`values` quantized in fp32, in the number format of the input."""
        with torch.no_grad():
            change = self.quantize(values.float()).to(values.dtype) - values
        return values + change


def prepare_qat_(model: nn.Module, bits: int) -> None:
    """Replace every Linear and Embedding with one that fake-quantizes its weight, in place.

    With 8 bits the inputs of Linears are fake-quantized too. The names of the weights do not
    change.
    """
    # torchao's prototype API: the fake-quantized modules are not part of its stable interface.
    from torchao.quantization.qat.embedding import FakeQuantizedEmbedding
    from torchao.quantization.qat.linear import FakeQuantizedLinear

    for name, layer in quantizable_layers(model).items():
        if isinstance(layer, nn.Linear):
            qat_layer = FakeQuantizedLinear.from_linear(layer)
            if bits == 8:
                estimator = StraightThroughEstimator(fake_quantize_activations)
                qat_layer.activation_fake_quantizer = estimator
        else:
            qat_layer = FakeQuantizedEmbedding.from_embedding(layer)
        qat_layer.weight_fake_quantizer = StraightThroughEstimator(
            partial(fake_quantize_weight, bits=bits)
        )
        model.set_submodule(name, qat_layer)


@torch.no_grad()
def convert_qat_(model: nn.Module, bits: int) -> None:
    """Undo `prepare_qat_` in place; the weights are rounded to the grid that training used."""
    for name, layer in quantizable_layers(model).items():
        is_linear = isinstance(layer, nn.Linear)
        plain_layer = layer.to_linear() if is_linear else layer.to_embedding()
        plain_layer.weight.copy_(fake_quantize_weight(plain_layer.weight, bits))
        model.set_submodule(name, plain_layer)
