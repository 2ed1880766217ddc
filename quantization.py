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

from datasets import DatasetDict

import graphs
from calibration import calibration_texts
from compression_config import QuantizeOptions, UserError
from encoders import Task, encoder_linears
from engines import empty_model, tokenizer_files
from gate import Gate, keep_record

Quantizer = Callable[..., None]  # (parent, out_dir, calibration texts, max_length, layers left whole)

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
    _save_quantized(parent, out_dir, TorchAoConfig(scheme, modules_to_not_convert=[*left_alone(parent), *whole]))


def quantize_dynamic_onnx(
    parent: Path, out_dir: Path, texts: list[str], max_length: int, whole: Sequence[str] = ()
) -> None:
    """The same in ONNX, embeddings and head too."""
    _write_graph(parent, out_dir, "model_quantized.onnx", graphs.onnx_dynamic, [], max_length, whole)


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

    unfit = left_alone(parent, width_multiple=NF4_BLOCK)
    if set(unfit) >= encoder_linears(empty_model(parent)).keys():
        raise UserError(f"--quant_method is int4, but no encoder Linear is a multiple of {NF4_BLOCK} inputs wide")
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


def form_name(method: str, engine: str) -> str:
    """The row of a method's form."""
    return method + ("-onnx" if engine == "onnx" else "")


def quantize(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: QuantizeOptions) -> Path:
    """Stage `quantize`: write every form that `--quant_method` gives."""
    method = options.quant_method
    texts = calibration_texts(splits["train"], options.calibration_samples, options.seed)

    gate = Gate(model_in, splits, task, options) if options.quant_auto and method in BITS else None
    whole: dict[str, list[str]] = {}
    for engine, quantizer in QUANTIZERS[method].items():
        write = partial(quantizer, model_in, out_dir, texts, options.max_length)
        if gate:
            whole[form_name(method, engine)] = gate.fit(write, out_dir, engine, BITS[method])
        else:
            write()
    keep_record(out_dir, whole)
    return out_dir


def left_alone(model_dir: Path, width_multiple: int = 1) -> list[str]:
    """Names of the Linears that stay in full precision: not the encoder's, or of an input width that does not fit."""
    from torch import nn

    model = empty_model(model_dir)
    fitting = {name for name, linear in encoder_linears(model).items() if linear.in_features % width_multiple == 0}
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
    parent: Path, out_dir: Path, name: str, write: graphs.Writer, texts: list[str], max_length: int,
    whole: Sequence[str],
) -> None:  # fmt: skip
    """Put `write`'s graph into `out_dir`, under the name that an export gives it; the fp32 graph that it is made from
    leaves no trace."""
    (out_dir / "onnx").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        graphs.write_onnx(parent, source)
        calibration = graphs.Calibration(parent, texts, max_length)
        write(source, out_dir / "onnx" / name, calibration, whole)
