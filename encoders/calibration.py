"""Streamed statistics of a model on texts; nothing but running sums is kept."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def calibration_texts(split: Dataset, count: int, seed: int) -> list[str]:
    """At most `count` texts of the split, drawn with `seed`."""
    return split[np.random.default_rng(seed).permutation(len(split))[:count]]["text"]


def token_batches_of(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    batch: int,
    device: str = "cpu",
) -> Iterable[dict[str, Tensor]]:
    """Padded batches of token ids, similar lengths together."""
    texts = sorted(texts, key=len)
    for start in range(0, len(texts), batch):
        yield tokenizer(
            texts[start : start + batch],
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
        ).to(device)


class InputSquareSums:
    """Sum of squares of what reaches each Linear, over real tokens (Sun et al. 2023, ||X_j||_2)."""

    def __init__(self, linears: dict[str, nn.Linear]):
        self.sums = {
            name: torch.zeros(linear.in_features, dtype=torch.float64)
            for name, linear in linears.items()
        }
        self.mask: Tensor | None = None
        self.last: tuple[Tensor | None, Tensor | None] = (
            None,
            None,
        )  # queries, keys and values share one input

    def add(self, name: str, inputs: Tensor) -> None:
        """Add one batch: `inputs` [rows, tokens, features]; padding does not count."""
        if inputs is not self.last[0]:
            squares = inputs.flatten(0, -2).float().square()
            self.last = inputs, (self.mask.flatten().to(squares.dtype) @ squares).double().cpu()
        self.sums[name] += self.last[1]


@torch.inference_mode()
def input_norms(
    model: PreTrainedModel, linears: dict[str, nn.Linear], batches: Iterable[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Name of a Linear of `model` -> L2 norm [in] of each of its input features over all real tokens of `batches`."""
    squares = InputSquareSums(linears)
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, name=name: squares.add(name, args[0]))
        for name, linear in linears.items()
    ]
    model.eval()
    try:
        for batch in batches:
            squares.mask = batch["attention_mask"]
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total.sqrt().float() for name, total in squares.sums.items()}
