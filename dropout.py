"""Dropout for training on a CPU, where torch takes longer to draw a mask than to apply it."""

import torch
from torch import Tensor, nn


class ByteDropout(nn.Dropout):
    """Dropout (Srivastava et al., 2014) that decides by one random byte an element, eight bytes a draw.

    `p` is rounded to a multiple of 1/256, and what is kept is scaled by what was truly dropped: the mean stays.
    """

    def forward(self, values: Tensor) -> Tensor:
        """`values` of any shape, a share `p` of them zero."""
        dropped = round(256 * self.p)  # of the 256 values of a byte
        if not self.training or dropped in (0, 256):
            return super().forward(values)
        draws = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.uint8)[: values.numel()].view(values.shape) >= dropped
        return values * kept * (256 / (256 - dropped))


def draw_bytes_(model: nn.Module) -> None:
    """Make every plain Dropout of `model` a ByteDropout."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = ByteDropout
