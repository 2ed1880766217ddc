"""Stages `quantize` and `qat`: post-training quantization and quantization-aware training.

Every quantizer reads a full-precision checkpoint and writes a complete model directory: weights,
config, tokenizer. Weights that can be pruned are quantized symmetrically, so that a zero stays a
zero.

The packages of a method (REQUIREMENTS) are optional, so each is imported by the quantizer that
needs it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import set_seed

from compression_config import Options
from data import label_array
from encoders.calibration import calibration_texts
from encoders.families import encoder_linears
from encoders.saved_models import load_saved_model, load_saved_tokenizer
from encoders.sparsity import KeepZeros
from encoders.start import save_model
from engines import graphs
from engines.engine import empty_model, load_engine, predict_logits, tokenizer_files
from engines.fake_quantization import convert_qat_, prepare_qat_
from engines.sensitivity import quality_gate, record_skipped_layers
from runtime.errors import UserError
from runtime.finite import FORMAT_ADVICE, check_fp16_range, check_logits, check_weights
from task import Task
from trainer import training_settings
from training import stage_loss, train_

NF4_BLOCK = 64  # weights that share a scale

CHECKED_TEXTS = 32  # calibration texts whose logits every new graph computes

BITS = {"dynamic": 8, "static": 8, "int4": 4}  # the methods that a quality gate can repair

REQUIREMENTS = {
    "fp16": (),
    "dynamic": ("torchao", "onnx", "onnxruntime"),
    "static": ("onnx", "onnxruntime"),
    "int4": ("accelerate", "bitsandbytes"),
}

QAT_BITS = {"int8": 8, "int4": 4}

QAT_LR_FACTOR = 0.1  # of `--lr`, because the weights are already trained

QAT_REQUIREMENTS = {"none": (), "int8": ("torchao",), "int4": ("torchao",)}


# ---------------------------------------------------------------------- post-training quantization


@dataclass(frozen=True)
class QuantizationRequest:
    """The input of a quantizer.

    `texts` are used by methods that calibrate activation ranges, truncated to `max_length` tokens.
    `skipped_layers` stay in full precision, in addition to those that the method never quantizes.
    """

    model_in: Path
    out_dir: Path
    texts: list[str]
    max_length: int
    skipped_layers: Sequence[str] = ()


Quantizer = Callable[[QuantizationRequest], None]


def quantize(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `quantize`: write every format of `--quant_method`."""
    method = options.quant_method
    texts = calibration_texts(splits["train"], options.calibration_samples, options.seed)
    request = QuantizationRequest(model_in, out_dir, texts, options.max_length)
    gate = None
    if options.quant_auto and method in BITS:
        gate = quality_gate(model_in, splits, label_array(splits["validation"]), task, options)
    skipped_layers = {}
    for engine, quantizer in QUANTIZERS[method].items():
        if gate is None:
            quantizer(request)
        else:
            write = partial(quantize_except, quantizer, request)
            skipped_layers[format_row(method, engine)] = gate.write_until_accepted(
                write, out_dir, engine, BITS[method]
            )
        check_format(request, engine)
    record_skipped_layers(out_dir, skipped_layers)
    return out_dir


def check_format(request: QuantizationRequest, engine: str) -> None:
    """Raise UserError if the new format has a weight, or a graph a logit, that is not finite."""
    if engine != "torch":
        logits = predict_logits(
            load_engine(request.out_dir, engine, request.max_length),
            request.texts[:CHECKED_TEXTS],
        )
        check_logits(logits, f"the {engine} graph", FORMAT_ADVICE)
        return
    for path in request.out_dir.glob("model*.safetensors"):
        check_weights(load_file(path), "the quantized model", FORMAT_ADVICE)


def quantize_except(
    quantizer: Quantizer, request: QuantizationRequest, skipped_layers: Sequence[str]
) -> None:
    """Run a quantizer that keeps `skipped_layers` in full precision."""
    quantizer(replace(request, skipped_layers=skipped_layers))


def format_row(method: str, engine: str) -> str:
    """The results row of a method's format in an engine."""
    if engine == "onnx":
        return f"{method}-onnx"
    return method


def quantized_formats(options: Options) -> dict[str, str]:
    """Results row -> format name, for every format of `--quant_method`."""
    method = options.quant_method
    return {format_row(method, engine): engine for engine in QUANTIZERS[method]}


def quantize_fp16(request: QuantizationRequest) -> None:
    """Store every tensor in fp16.

    `"dtype": "float32"` in config.json makes a plain `from_pretrained` compute in fp32.
    UserError if a value is beyond the range of fp16.
    """
    copy_config_and_tokenizer(request.model_in, request.out_dir)
    for path in request.model_in.glob("model*.safetensors"):
        tensors = load_file(path)
        check_fp16_range(tensors, str(request.model_in))
        halves = {name: tensor.half() for name, tensor in tensors.items()}
        save_file(halves, request.out_dir / path.name, metadata={"format": "pt"})
    config = json.loads((request.model_in / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    text = json.dumps(config, indent=2) + "\n"
    (request.out_dir / "config.json").write_text(text, encoding="utf-8")


def quantize_dynamic(request: QuantizationRequest) -> None:
    """Quantize the weights of the encoder's Linears to int8; activations are quantized at run
    time (torchao)."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import TorchAoConfig

    scheme = TorchAoConfig(
        Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
        modules_to_not_convert=[
            *unquantizable_linears(request.model_in),
            *request.skipped_layers,
        ],
    )
    save_quantized(request, scheme)
    sort_metadata_(request.out_dir / "model.safetensors")


def sort_metadata_(path: Path) -> None:
    """Sort the metadata of a safetensors file by key, in place.

    safetensors writes it in an order that differs from call to call. The file starts with the
    length of the header (8 bytes, little-endian) and the header, which is JSON and may end with
    spaces.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise RuntimeError(f"{path}: the sorted header has {len(text)} bytes, not {length}")
        file.seek(8)
        file.write(text.ljust(length))


def quantize_dynamic_onnx(request: QuantizationRequest) -> None:
    """Write an ONNX graph with int8 weights in all layers, embeddings and head included."""
    write_graph(request, "model_quantized.onnx", graphs.quantize_onnx_dynamic)


def quantize_static(request: QuantizationRequest) -> None:
    """Int8 weights of all layers and activation ranges calibrated on the texts, in ONNX."""
    copy_config_and_tokenizer(request.model_in, request.out_dir)
    write_graph(request, "model_static.onnx", graphs.quantize_onnx_static)


def quantize_int4(request: QuantizationRequest) -> None:
    """NF4 weights of the encoder's Linears (Dettmers et al. 2023, QLoRA, section 3).

    Blocks of 64 weights share a scale; the scales are quantized to 8 bits. Raises UserError if no
    Linear is wide enough.
    """
    from transformers import BitsAndBytesConfig

    unquantizable = unquantizable_linears(request.model_in, width_multiple=NF4_BLOCK)
    if set(unquantizable) >= encoder_linears(empty_model(request.model_in)).keys():
        raise UserError(
            f"--quant_method is int4, but no encoder Linear has an input width that is a multiple "
            f"of {NF4_BLOCK}"
        )
    scheme = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=[*unquantizable, *request.skipped_layers],
    )
    save_quantized(request, scheme)


QUANTIZERS: dict[str, dict[str, Quantizer]] = {  # method -> engine -> quantizer
    "fp16": {"torch": quantize_fp16},
    "dynamic": {"torch": quantize_dynamic, "onnx": quantize_dynamic_onnx},
    "static": {"onnx": quantize_static},
    "int4": {"torch": quantize_int4},
}


def unquantizable_linears(model_dir: Path, width_multiple: int = 1) -> list[str]:
    """The Linears that a torch method keeps in full precision.

    These are the Linears outside the encoder's layers, and those whose input width is not a
    multiple of `width_multiple`.
    """
    model = empty_model(model_dir)
    encoder = encoder_linears(model)
    names = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name not in encoder or module.in_features % width_multiple != 0:
            names.append(name)
    return names


def save_quantized(request: QuantizationRequest, scheme: Any) -> None:
    """Write the checkpoint quantized by transformers with `scheme`.

    It is saved before any forward pass: on some CPUs the first forward pass of NF4 repacks the
    weights with a loss.
    """
    model = load_saved_model(
        request.model_in, dtype="float32", device_map="cpu", quantization_config=scheme
    )
    model.save_pretrained(request.out_dir)
    for path in tokenizer_files(request.model_in):
        shutil.copy2(path, request.out_dir)


def copy_config_and_tokenizer(model_in: Path, out_dir: Path) -> None:
    """Copy everything but the weights."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in [model_in / "config.json", *tokenizer_files(model_in)]:
        shutil.copy2(path, out_dir)


def write_graph(request: QuantizationRequest, file_name: str, write: graphs.Writer) -> None:
    """Write an ONNX graph to `onnx/`; the fp32 graph that it is made from is temporary."""
    folder = request.out_dir / "onnx"
    folder.mkdir(parents=True, exist_ok=True)
    calibration = graphs.Calibration(request.model_in, request.texts, request.max_length)
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "model.onnx"
        graphs.write_onnx(request.model_in, source)
        write(source, folder / file_name, calibration, request.skipped_layers)


# --------------------------------------------------------------------- quantization-aware training


def train_quantization_aware(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `qat`: train with fake quantization, then write a plain checkpoint on the grid.

    The loss is that of distillation, from the teacher's logits and the labels. Pruned weights stay
    zero.
    """
    bits = QAT_BITS[options.qat]
    settings = training_settings(
        options, epochs=options.qat_epochs, learning_rate=options.lr * QAT_LR_FACTOR
    )
    loss = stage_loss(splits, task, options)
    set_seed(options.seed)
    model = load_saved_model(model_in, dtype=torch.float32)
    tokenizer = load_saved_tokenizer(model_in)
    prepare_qat_(model, bits)
    train_(
        model,
        tokenizer,
        splits,
        out_dir,
        settings,
        loss=loss,
        callbacks=(KeepZeros(encoder_linears(model)),),
    )
    convert_qat_(model, bits)
    return save_model(model, tokenizer, out_dir)
