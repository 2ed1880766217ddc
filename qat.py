"""Stage `qat`: training with the rounding in the loop, so that the weights settle where fewer bits cost little.

Forward passes see every Linear and embedding on the grid that the exported forms have; gradients pass the rounding as
if it were not there (Bengio et al. 2013; Jacob et al. 2018). torchao swaps the layers and swaps them back. What is
written is an ordinary checkpoint whose weights lie on the grid: an OpenVINO export in 4 bits changes none of them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from datasets import DatasetDict
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, set_seed

from compression_config import QatOptions
from encoders import Task, encoder_linears
from masks import HoldZeros
from rounding import layers_of, rounded_input, rounded_weight
from training import save_model, soft_target_loss, train_

BITS = {"int8": 8, "int4": 4}
LR_SHARE = 0.1  # of the learning rate: the weights are trained already
REQUIREMENTS = {"none": (), "int8": ("torchao",), "int4": ("torchao",)}


class StraightThrough(nn.Module):
    """Rounds; the gradient passes unchanged."""

    def __init__(self, rounded: Callable[[Tensor], Tensor]):
        super().__init__()
        self.rounded = rounded

    def forward(self, values: Tensor) -> Tensor:
        """`values` rounded, in their own number format."""
        with torch.no_grad():
            change = self.rounded(values.float()).to(values.dtype) - values
        return values + change


def fake_quantize_(model: PreTrainedModel, bits: int) -> None:
    """Put the rounding of weights, and under 8 bits of what reaches a Linear, in front of every layer, in place; the
    names of the weights stay."""
    from torchao.quantization.qat.embedding import FakeQuantizedEmbedding
    from torchao.quantization.qat.linear import FakeQuantizedLinear

    for name, layer in layers_of(model).items():
        linear = isinstance(layer, nn.Linear)
        swapped = FakeQuantizedLinear.from_linear(layer) if linear else FakeQuantizedEmbedding.from_embedding(layer)
        swapped.weight_fake_quantizer = StraightThrough(partial(rounded_weight, bits=bits))
        if linear and bits == 8:
            swapped.activation_fake_quantizer = StraightThrough(rounded_input)
        model.set_submodule(name, swapped)


@torch.no_grad()
def convert_(model: PreTrainedModel, bits: int) -> None:
    """Take the rounding out again, in place, and leave the weights where it had them."""
    for name, layer in layers_of(model).items():
        plain = layer.to_linear() if isinstance(layer, nn.Linear) else layer.to_embedding()
        plain.weight.copy_(rounded_weight(plain.weight, bits))
        model.set_submodule(name, plain)


def qat(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: QatOptions) -> Path:
    """Train under rounding on the `teacher_logits` and labels of the training rows, zeros held; then convert."""
    set_seed(options.seed)
    model = AutoModelForSequenceClassification.from_pretrained(model_in, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_in)
    fake_quantize_(model, BITS[options.qat])
    train_(model, tokenizer, splits, out_dir, options, epochs=options.qat_epochs, lr=options.lr * LR_SHARE,
           loss=soft_target_loss(splits, task, options), callbacks=(HoldZeros(encoder_linears(model)),))  # fmt: skip
    convert_(model, BITS[options.qat])
    return save_model(model, tokenizer, out_dir)
