"""The grids of weights and activations in fewer bits: those of Linears in the exported forms, or near them.

Eight bits: a scale for each output row of a weight, from the largest absolute value on 127 steps; activations on 256
steps between their extremes. Four bits: a scale for each 64 weights of a row, and the largest of them, whatever its
sign, lies on the step -8 (NNCF's INT4_SYM); what 32 does not divide has 8 bits there too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.engine import INT4_GROUP_SIZE

MIN_GROUP_SIZE = 32  # fewer weights do not share a scale in 4 bits

MIN_SCALE = 1e-12  # the least scale, of weights that are all zero


def quantizable_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Embedding]:
    """Name -> every layer that has a grid."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Embedding)
    }


def group_size(width: int) -> int:
    """How many of `width` weights share a scale in 4 bits: 64, else 32; 0 where neither divides."""
    return next((block for block in (INT4_GROUP_SIZE, MIN_GROUP_SIZE) if width % block == 0), 0)


def fake_quantize_weight(weight: Tensor, bits: int) -> Tensor:
    """`weight` [out, in] on its grid of 8 or 4 bits. A weight on the grid stays what it is."""
    block = group_size(weight.shape[1])
    if bits == 8 or not block:
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(MIN_SCALE)
        return (weight / scale).round() * scale
    blocks = weight.reshape(-1, block)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = torch.where(extreme.abs() < MIN_SCALE, MIN_SCALE, extreme / -8)
    return ((blocks / scale).round().clamp(-8, 7) * scale).view_as(weight)


def fake_quantize_activations(values: Tensor) -> Tensor:
    """Activations on a grid of 256 steps between their extremes, zero among them."""
    low, high = values.min().clamp_max(0), values.max().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(MIN_SCALE)
    zero = (low / scale).round()
    return ((values / scale).round().clamp(zero, zero + 255)) * scale


def quantize_input_hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    """A forward pre-hook: what reaches a layer, rounded."""
    return (fake_quantize_activations(inputs[0]),)
