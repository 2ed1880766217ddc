"""Checks that logits and weights are finite: a NaN would silently become a decision or a file.

Imports no torch; tensors are checked by their own methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TRAINING_ADVICE = "lower --lr and --teacher_lr, or use --precision fp32"
FORMAT_ADVICE = "use another --quant_method or --export"

MAX_FP16 = 65_504  # the largest number that fp16 can store


def check_logits(logits: np.ndarray, source: str, advice: str) -> None:
    """Raise UserError if a value of `logits` [rows, labels] is NaN or infinite.

    `source` names the model, `advice` tells what to do.
    """
    is_finite_row = np.isfinite(logits).all(axis=1)
    if is_finite_row.all():
        return
    first = int(is_finite_row.argmin())
    raise UserError(
        f"{source}: the logits of {(~is_finite_row).sum():,} of {len(logits):,} texts are not "
        f"finite, first those of text {first + 1}, {logits[first].tolist()}; {advice}"
    )


def check_weights(tensors: Mapping[str, Tensor], source: str, advice: str) -> None:
    """Raise UserError if a value of a floating-point tensor is NaN or infinite.

    `tensors` are named as in the checkpoint; `source` names the model.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        is_finite = tensor.float().isfinite()
        if not is_finite.all():
            raise UserError(
                f"{source}: {int((~is_finite).sum()):,} of {tensor.numel():,} values of {name} "
                f"are not finite (nan or inf); {advice}"
            )


def check_fp16_range(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError if fp16 cannot store a value of a tensor: it would become infinite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        overflowing = int(tensor.half().isinf().sum())
        if overflowing:
            raise UserError(
                f"--quant_method is fp16, but {overflowing:,} of {tensor.numel():,} values of "
                f"{name} in {source} are beyond {MAX_FP16:,}, the largest number of fp16; use "
                "--quant_method dynamic, static or int4, or --export"
            )
