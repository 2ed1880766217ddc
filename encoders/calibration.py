"""Calibration: run a model on a sample of texts and collect statistics of its activations.

The statistics are running sums; no activations are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from runtime.errors import UserError
from runtime.finite import TRAINING_ADVICE


def calibration_texts(split: Dataset, count: int, seed: int) -> list[str]:
    """At most `count` texts of the split, sampled with `seed`."""
    rows = np.random.default_rng(seed).permutation(len(split))
    return split[rows[:count]]["text"]


def token_batches_of(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    batch: int,
    device: str = "cpu",
) -> Iterator[dict[str, Tensor]]:
    """Padded batches of at most `batch` texts of similar length, tokenized when they are needed."""
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
    """Sum of squares of each input feature of each Linear, over all tokens except padding.

    Set `attention_mask` [rows, tokens] before every forward pass. `add` is a forward pre-hook.

    Some Linears of DeBERTa are applied to the embeddings of relative positions, in a call of their
    own. A Linear that is applied to tokens too is scored on the tokens, another one on these.
    """

    def __init__(self, linears: dict[str, nn.Linear]):
        self.attention_mask: Tensor | None = None
        self.token_sums: dict[str, Tensor] = {}  # name of a Linear -> sums [in]
        self.position_sums: dict[str, Tensor] = {}
        for name, linear in linears.items():
            self.token_sums[name] = torch.zeros(linear.in_features, dtype=torch.float64)
            self.position_sums[name] = torch.zeros(linear.in_features, dtype=torch.float64)
        # Queries, keys and values have the same input: its sums are computed once.
        self.last_inputs: Tensor | None = None
        self.last_sums: Tensor | None = None

    def add(self, name: str, _module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Add the inputs [rows, tokens, features] of the Linear `name` in one forward pass."""
        inputs = arguments[0]
        are_tokens = inputs.shape[:-1] == self.attention_mask.shape
        if inputs is not self.last_inputs:
            squares = inputs.flatten(0, -2).float().square()
            if are_tokens:
                is_token = self.attention_mask.flatten().to(squares.dtype)
                self.last_sums = (is_token @ squares).double().cpu()
            else:
                self.last_sums = squares.sum(dim=0).double().cpu()
            self.last_inputs = inputs
        sums = self.token_sums if are_tokens else self.position_sums
        sums[name] += self.last_sums

    def totals(self) -> dict[str, Tensor]:
        """Name of a Linear -> the sums [in] that it is scored on."""
        return {
            name: sums if sums.any() else self.position_sums[name]
            for name, sums in self.token_sums.items()
        }


@torch.inference_mode()
def input_norms(
    model: PreTrainedModel, linears: dict[str, nn.Linear], batches: Iterable[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Name of a Linear of `model` -> L2 norms ||X_j||_2 [in] of its input features.

    The norm of feature j is taken over all tokens of all `batches`, without padding (Sun et al.
    2023, section 3). UserError if a norm is not finite. A single row is computed with a copy of
    itself, because one row of tokens can have the shape of DeBERTa's relative positions.
    """
    square_sums = InputSquareSums(linears)
    hooks = []
    for name, linear in linears.items():
        hooks.append(linear.register_forward_pre_hook(partial(square_sums.add, name)))
    model.eval()
    try:
        for batch in batches:
            if len(batch["attention_mask"]) == 1:
                batch = {name: tensor.repeat(2, 1) for name, tensor in batch.items()}
                square_sums.attention_mask = batch["attention_mask"].clone()
                square_sums.attention_mask[1] = 0  # the copy is not counted
            else:
                square_sums.attention_mask = batch["attention_mask"]
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    norms = {name: sums.sqrt().float() for name, sums in square_sums.totals().items()}
    for name, norm in norms.items():
        if not norm.isfinite().all():
            raise UserError(
                f"the inputs of {name} are not finite (nan or inf) on the calibration texts, so "
                f"its weights cannot be scored; {TRAINING_ADVICE}"
            )
    return norms
