"""Sparsity of Linears: count zeros, and keep pruned weights at zero during training.

No mask is stored anywhere: a weight is pruned if and only if it is zero.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

Masks = dict[str, Tensor]  # layer name -> True where the weight is kept [out, in]


def nonzero_masks(linears: dict[str, nn.Linear]) -> Masks:
    """Masks that keep the nonzero weights."""
    return {name: linear.weight != 0 for name, linear in linears.items()}


@torch.no_grad()
def apply_masks_(linears: dict[str, nn.Linear], masks: Masks) -> None:
    """Set every masked weight to zero, in place."""
    for name, linear in linears.items():
        linear.weight.mul_(masks[name])


def count_zeros(weights: Iterable[Tensor]) -> int:
    """Number of zeros in all tensors together."""
    return sum(int((weight == 0).sum()) for weight in weights)


def sparsity(linears: dict[str, nn.Linear]) -> float:
    """Fraction of the Linears' weights that are zero; biases do not count."""
    weights = [linear.weight for linear in linears.values()]
    return count_zeros(weights) / sum(weight.numel() for weight in weights)


def check_zero_count(zeros: int, required: int, when: str) -> None:
    """Raise RuntimeError if there are fewer zeros than required; `when` completes the message."""
    if zeros < required:
        raise RuntimeError(
            f"the sparsity is too low: {zeros} zeros {when}, but at least {required} are required"
        )


class KeepZeros(TrainerCallback):
    """Set pruned weights back to zero after every optimizer step."""

    def __init__(self, linears: dict[str, nn.Linear]):
        self.linears = linears

    def on_train_begin(self, args, state, control, **kwargs):
        """Read the masks from the weights, which may come from a checkpoint."""
        self.masks = nonzero_masks(self.linears)

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Undo what the gradient, momentum and weight decay did to the pruned weights."""
        apply_masks_(self.linears, self.masks)
