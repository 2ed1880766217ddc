"""Zeros that stay zeros: a weight that is zero is a pruned one, so masks are read from the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

Masks = dict[str, Tensor]  # layer name -> True where the weight is kept [out, in]


def nonzero_masks(linears: dict[str, nn.Linear]) -> Masks:
    """What is not zero stays."""
    return {name: linear.weight != 0 for name, linear in linears.items()}


@torch.no_grad()
def apply_masks_(linears: dict[str, nn.Linear], masks: Masks) -> None:
    """Set every masked weight to zero."""
    for name, linear in linears.items():
        linear.weight.mul_(masks[name])


def count_zeros(weights: Iterable[Tensor]) -> int:
    """How many weights are zero."""
    return sum(int((weight == 0).sum()) for weight in weights)


def sparsity(linears: dict[str, nn.Linear]) -> float:
    """Share of zeros over the weights of the Linears."""
    weights = [linear.weight for linear in linears.values()]
    return count_zeros(weights) / sum(weight.numel() for weight in weights)


def check_zero_count(found: int, wanted: int, when: str) -> None:
    """Stop the run where fewer weights are zero than were promised."""
    if found < wanted:
        raise RuntimeError(
            f"sparsity is not what was asked for: {found} zeros {when}, but {wanted} were promised"
        )


class KeepZeros(TrainerCallback):
    """Set weights that were zero back to zero after every optimizer step, so that no training can revive them."""

    def __init__(self, linears: dict[str, nn.Linear]):
        self.linears = linears

    def on_train_begin(self, args, state, control, **kwargs):
        """Take what is zero now."""
        self.masks = nonzero_masks(self.linears)

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Weight decay and momentum moved the zeros: set them back."""
        apply_masks_(self.linears, self.masks)
