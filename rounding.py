"""The grids of weights and activations in fewer bits: those of Linears in the exported forms, or near them.

Eight bits: a scale for each output row of a weight, from the largest absolute value on 127 steps; activations on 256
steps between their extremes. Four bits: a scale for each 64 weights of a row, and the largest of them, whatever its
sign, lies on the step -8 (NNCF's INT4_SYM); what 32 does not divide has 8 bits there too.
"""

import torch
from torch import Tensor, nn

from engines import INT4_BLOCK

LEAST_BLOCK = 32  # fewer weights do not share a scale in 4 bits
TINY = 1e-12  # the least scale, of weights that are all zero


def layers_of(model: nn.Module) -> dict[str, nn.Linear | nn.Embedding]:
    """Name -> every layer that has a grid."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Embedding)}


def block_of(width: int) -> int:
    """How many of `width` weights share a scale in 4 bits: 64, else 32; 0 where neither divides."""
    return next((block for block in (INT4_BLOCK, LEAST_BLOCK) if width % block == 0), 0)


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """`weight` [out, in] on its grid of 8 or 4 bits. A weight on the grid stays what it is."""
    block = block_of(weight.shape[1])
    if bits == 8 or not block:
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(TINY)
        return (weight / scale).round() * scale
    blocks = weight.reshape(-1, block)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = torch.where(extreme.abs() < TINY, TINY, extreme / -8)
    return ((blocks / scale).round().clamp(-8, 7) * scale).view_as(weight)


def rounded_input(values: Tensor) -> Tensor:
    """Activations on a grid of 256 steps between their extremes, zero among them."""
    low, high = values.min().clamp_max(0), values.max().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(TINY)
    zero = (low / scale).round()
    return ((values / scale).round().clamp(zero, zero + 255)) * scale


def round_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    """A forward pre-hook: what reaches a layer, rounded."""
    return (rounded_input(inputs[0]),)
