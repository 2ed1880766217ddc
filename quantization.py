"""Stage quantize: store and compute in fewer bits (fp16, dynamic int8, static int8, NF4).

Each method starts from a full-precision directory and writes one that is whole: weights, config, tokenizer.
Weights are quantized symmetrically wherever they can be pruned, so that a zero stays a zero.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    set_seed,
)

from compression_config import Options, UserError
from encoders.calibration import calibration_texts
from encoders.families import encoder_linears
from encoders.sparsity import KeepZeros
from encoders.start import save_model
from engines import graphs
from engines.engine import empty_model, tokenizer_files
from engines.fake_quantization import (
    fake_quantize_activations,
    fake_quantize_weight,
    quantizable_layers,
)
from engines.sensitivity import QualityGate, record_skipped_layers
from task import Task
from training import soft_target_loss, train_

Quantizer = Callable[
    ..., None
]  # (parent, out_dir, calibration texts, max_length, layers left whole)

NF4_BLOCK = 64

BITS = {"dynamic": 8, "static": 8, "int4": 4}

REQUIREMENTS = {
    "fp16": (),
    "dynamic": ("torchao", "onnx", "onnxruntime"),
    "static": ("onnx", "onnxruntime"),
    "int4": ("accelerate", "bitsandbytes"),
}


def quantize_fp16(
    parent: Path, out_dir: Path, texts: list[str], max_length: int, whole: Sequence[str] = ()
) -> None:
    """Store every tensor in half; `"dtype": "float32"` makes a plain `from_pretrained` compute in fp32."""
    from safetensors.torch import load_file, save_file

    _copy_all_but_weights(parent, out_dir)
    for path in parent.glob("model*.safetensors"):
        tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(tensors, out_dir / path.name, metadata={"format": "pt"})
    config = json.loads((parent / "config.json").read_text())
    (out_dir / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def quantize_dynamic(
    parent: Path, out_dir: Path, texts: list[str], max_length: int, whole: Sequence[str] = ()
) -> None:
    """Int8 weights of encoder Linears, activations quantized as they come."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import TorchAoConfig

    scheme = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    _save_quantized(
        parent,
        out_dir,
        TorchAoConfig(scheme, modules_to_not_convert=[*skipped_modules(parent), *whole]),
    )


def quantize_dynamic_onnx(
    parent: Path, out_dir: Path, texts: list[str], max_length: int, whole: Sequence[str] = ()
) -> None:
    """The same in ONNX, embeddings and head too."""
    _write_graph(
        parent, out_dir, "model_quantized.onnx", graphs.onnx_dynamic, [], max_length, whole
    )


def quantize_static(
    parent: Path, out_dir: Path, texts: list[str], max_length: int, whole: Sequence[str] = ()
) -> None:
    """Int8 weights, embeddings and head; the activations' ranges are the extremes seen on `texts`."""
    _copy_all_but_weights(parent, out_dir)
    _write_graph(parent, out_dir, "model_static.onnx", graphs.onnx_static, texts, max_length, whole)


def quantize_int4(
    parent: Path, out_dir: Path, texts: list[str], max_length: int, whole: Sequence[str] = ()
) -> None:
    """Dettmers et al. (2023): encoder Linears in NF4, blocks of 64, the blocks' scales quantized to 8 bits.

    Saved before any forward, because on some CPUs the first one repacks the weights with a loss.
    """
    import torch
    from transformers import BitsAndBytesConfig

    unfit = skipped_modules(parent, width_multiple=NF4_BLOCK)
    if set(unfit) >= encoder_linears(empty_model(parent)).keys():
        raise UserError(
            f"--quant_method is int4, but no encoder Linear is a multiple of {NF4_BLOCK} inputs wide"
        )
    scheme = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=[*unfit, *whole],
    )
    _save_quantized(parent, out_dir, scheme)


QUANTIZERS: dict[str, dict[str, Quantizer]] = {  # method -> engine -> what writes its form
    "fp16": {"torch": quantize_fp16},
    "dynamic": {"torch": quantize_dynamic, "onnx": quantize_dynamic_onnx},
    "static": {"onnx": quantize_static},
    "int4": {"torch": quantize_int4},
}


def format_row(method: str, engine: str) -> str:
    """The row of a method's form."""
    return method + ("-onnx" if engine == "onnx" else "")


def quantize(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `quantize`: write every form that `--quant_method` gives."""
    method = options.quant_method
    texts = calibration_texts(splits["train"], options.calibration_samples, options.seed)

    gate = (
        QualityGate(model_in, splits, task, options)
        if options.quant_auto and method in BITS
        else None
    )
    whole: dict[str, list[str]] = {}
    for engine, quantizer in QUANTIZERS[method].items():
        write = partial(quantizer, model_in, out_dir, texts, options.max_length)
        if gate:
            whole[format_row(method, engine)] = gate.fit(write, out_dir, engine, BITS[method])
        else:
            write()
    record_skipped_layers(out_dir, whole)
    return out_dir


def skipped_modules(model_dir: Path, width_multiple: int = 1) -> list[str]:
    """Names of the Linears that stay in full precision: not the encoder's, or of an input width that does not fit."""
    from torch import nn

    model = empty_model(model_dir)
    fitting = {
        name
        for name, linear in encoder_linears(model).items()
        if linear.in_features % width_multiple == 0
    }
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linears if name not in fitting]


def _save_quantized(parent: Path, out_dir: Path, scheme: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        parent, dtype="float32", device_map="cpu", quantization_config=scheme
    )
    model.save_pretrained(out_dir)
    for path in tokenizer_files(parent):
        shutil.copy2(path, out_dir)


def _copy_all_but_weights(parent: Path, out_dir: Path) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in [parent / "config.json", *tokenizer_files(parent)]:
        shutil.copy2(path, out_dir)


def _write_graph(
    parent: Path,
    out_dir: Path,
    name: str,
    write: graphs.Writer,
    texts: list[str],
    max_length: int,
    whole: Sequence[str],
) -> None:
    """Put `write`'s graph into `out_dir`, under the name that an export gives it; the fp32 graph that it is made from
    leaves no trace."""
    (out_dir / "onnx").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        graphs.write_onnx(parent, source)
        calibration = graphs.Calibration(parent, texts, max_length)
        write(source, out_dir / "onnx" / name, calibration, whole)


QAT_BITS = {"int8": 8, "int4": 4}

QAT_LR_FACTOR = 0.1  # of the learning rate: the weights are trained already

QAT_REQUIREMENTS = {"none": (), "int8": ("torchao",), "int4": ("torchao",)}


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

    for name, layer in quantizable_layers(model).items():
        linear = isinstance(layer, nn.Linear)
        swapped = (
            FakeQuantizedLinear.from_linear(layer)
            if linear
            else FakeQuantizedEmbedding.from_embedding(layer)
        )
        swapped.weight_fake_quantizer = StraightThrough(partial(fake_quantize_weight, bits=bits))
        if linear and bits == 8:
            swapped.activation_fake_quantizer = StraightThrough(fake_quantize_activations)
        model.set_submodule(name, swapped)


@torch.no_grad()
def convert_to_plain_(model: PreTrainedModel, bits: int) -> None:
    """Take the rounding out again, in place, and leave the weights where it had them."""
    for name, layer in quantizable_layers(model).items():
        plain = layer.to_linear() if isinstance(layer, nn.Linear) else layer.to_embedding()
        plain.weight.copy_(fake_quantize_weight(plain.weight, bits))
        model.set_submodule(name, plain)


def train_quantization_aware(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Train under rounding on the `teacher_logits` and labels of the training rows, zeros held; then convert."""
    set_seed(options.seed)
    model = AutoModelForSequenceClassification.from_pretrained(model_in, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_in)
    fake_quantize_(model, QAT_BITS[options.qat])
    train_(
        model,
        tokenizer,
        splits,
        out_dir,
        options,
        epochs=options.qat_epochs,
        lr=options.lr * QAT_LR_FACTOR,
        loss=soft_target_loss(splits, task, options),
        callbacks=(KeepZeros(encoder_linears(model)),),
    )
    convert_to_plain_(model, QAT_BITS[options.qat])
    return save_model(model, tokenizer, out_dir)
