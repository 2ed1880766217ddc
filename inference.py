"""Turn any form on disk (torch, ONNX, linear) into logits, and read from it what it weighs.

Rows are scored in batches of similar length and come back in their original order. The int8 matrix products of
ONNX Runtime quantize activations per batch, so there a row's logits depend slightly on its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
QUANTIZATION_SUFFIXES = ("_scale", "_zero_point")


@dataclass(frozen=True)
class Engine:
    """A loaded form: `encode` makes a padded batch of texts, `forward` its float32 logits [rows, labels]."""

    encode: Callable[[list[str]], Any]
    forward: Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class WeightCounts:
    """Logical weights of a form, however packed; `sparsity` is the share of zeros in the encoder's Linears."""

    parameters: int
    nonzeros: int
    sparsity: float


def load(
    model_dir: Path | str, engine: str, max_length: int, threads: int | None = None, device: str = "cpu"
) -> Engine:
    """Load the form that `engine` serves; `threads` is process-wide in torch, `device` concerns torch only."""
    return LOADERS[engine](Path(model_dir), max_length, threads, device)


def load_torch(model_dir: Path, max_length: int, threads: int | None, device: str) -> Engine:
    """Any checkpoint that plain `from_pretrained` reads: fp32, fp16-stored, int8, NF4."""
    import torch
    from transformers import AutoModelForSequenceClassification

    if threads is not None:
        torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, device_map=device).eval()

    def forward(batch: Any) -> np.ndarray:
        with torch.inference_mode():
            return model(**batch.to(device)).logits.float().cpu().numpy()

    return Engine(tokenize_with(model_dir, max_length, "pt"), forward)


def load_onnx(model_dir: Path, max_length: int, threads: int | None, device: str) -> Engine:
    """The one graph in `model_dir/onnx`, on the CPU, fed with the inputs that it names."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_path(model_dir), options, providers=["CPUExecutionProvider"])
    tokenize = tokenize_with(model_dir, max_length, "np")
    names = [graph_input.name for graph_input in session.get_inputs()]

    def encode(texts: list[str]) -> dict[str, np.ndarray]:
        batch = tokenize(texts)
        zeros = np.zeros_like(batch["input_ids"])
        return {name: batch.get(name, zeros).astype(np.int64) for name in names}

    def forward(batch: dict[str, np.ndarray]) -> np.ndarray:
        return session.run(["logits"], batch)[0].astype(np.float32)

    return Engine(encode, forward)


def load_linear(model_dir: Path, max_length: int, threads: int | None, device: str) -> Engine:
    """A scikit-learn pipeline; its logits are log-probabilities, or log-odds a label where labels overlap."""
    import joblib

    pipeline = joblib.load(model_dir / "linear.joblib")
    to_logits = _log_odds if hasattr(pipeline[-1], "estimators_") else np.log

    def forward(texts: list[str]) -> np.ndarray:
        probabilities = np.clip(pipeline.predict_proba(texts), 1e-12, 1 - 1e-12)
        return to_logits(probabilities).astype(np.float32)

    return Engine(list, forward)


LOADERS: dict[str, Callable[[Path, int, int | None, str], Engine]] = {
    "torch": load_torch,
    "onnx": load_onnx,
    "linear": load_linear,
}


def predict_logits(
    engine: Engine, texts: list[str], batch: int = 32, description: str | None = None
) -> np.ndarray:
    """Logits [rows, labels] in the order of `texts`; a `description` puts a progress bar on stderr."""
    from tqdm import tqdm

    longest_first = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    chunks = [longest_first[start : start + batch] for start in range(0, len(texts), batch)]
    logits = [
        engine.forward(engine.encode([texts[row] for row in chunk]))
        for chunk in tqdm(chunks, desc=description, disable=description is None, leave=False)
    ]
    return np.concatenate(logits)[np.argsort(longest_first, kind="stable")]


def onnx_path(model_dir: Path) -> Path:
    """The one ONNX graph of a directory in the Hub's layout."""
    (path,) = (model_dir / "onnx").glob("*.onnx")
    return path


def tokenize_with(model_dir: Path, max_length: int, tensors: str) -> Callable[[list[str]], Any]:
    """The directory's tokenizer as texts -> padded batch of `tensors` ("pt" or "np")."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return lambda texts: tokenizer(
        texts, padding=True, truncation=True, max_length=max_length, return_tensors=tensors
    )


def tokenizer_files(model_dir: Path) -> list[Path]:
    """The files of a fast tokenizer that lie in `model_dir`."""
    return [model_dir / name for name in TOKENIZER_FILES if (model_dir / name).exists()]


def serving_files(model_dir: Path | str, engine: str) -> list[Path]:
    """Every file that serving this form needs, and no other."""
    model_dir = Path(model_dir)
    if engine == "linear":
        return [model_dir / "linear.joblib"]
    weights = {"torch": "model*.safetensors*", "onnx": "onnx/*.onnx"}[engine]
    return [model_dir / "config.json", *sorted(model_dir.glob(weights)), *tokenizer_files(model_dir)]


def empty_model(model_dir: Path | str) -> Any:
    """The architecture that a directory's config describes, without weights or memory."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(model_dir))


def count_weights(model_dir: Path | str, engine: str) -> WeightCounts:
    """What the form on disk holds; scales and zero points are no weights."""
    return COUNTERS[engine](Path(model_dir))


def count_torch(model_dir: Path) -> WeightCounts:
    """Counts of the loaded checkpoint, packed weights unpacked one at a time."""
    from transformers import AutoModelForSequenceClassification

    from encoders import encoder_linears

    model = AutoModelForSequenceClassification.from_pretrained(model_dir)
    sizes = {name: _torch_sizes(parameter) for name, parameter in model.named_parameters()}
    return _total(sizes, {f"{name}.weight" for name in encoder_linears(model)})


def count_onnx(model_dir: Path) -> WeightCounts:
    """Counts of the graph's weights, found by the module paths in its node names."""
    import onnx

    from encoders import encoder_linears

    graph = onnx.load(onnx_path(model_dir)).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {use: _onnx_sizes(use[1], tensors) for use in _weight_uses(graph, tensors)}
    linears = encoder_linears(empty_model(model_dir))
    return _total(sizes, {use for use in sizes if use[0] in linears and len(tensors[use[1]].dims) == 2})


def count_linear(model_dir: Path) -> WeightCounts:
    """Counts of a scikit-learn pipeline: coefficients, intercepts and inverse document frequencies."""
    import joblib

    steps = [step for _, step in joblib.load(model_dir / "linear.joblib").steps]
    classifiers = getattr(steps[-1], "estimators_", [steps[-1]])
    arrays = {("coef", i): classifier.coef_ for i, classifier in enumerate(classifiers)}
    arrays |= {("intercept", i): classifier.intercept_ for i, classifier in enumerate(classifiers)}
    arrays |= {("idf", i): step.idf_ for i, step in enumerate(steps[:-1])}
    sizes = {key: (array.size, int(np.count_nonzero(array))) for key, array in arrays.items()}
    return _total(sizes, {key for key in sizes if key[0] == "coef"})


COUNTERS: dict[str, Callable[[Path], WeightCounts]] = {
    "torch": count_torch,
    "onnx": count_onnx,
    "linear": count_linear,
}


def _total(sizes: dict[Any, tuple[int, int]], encoder: set[Any]) -> WeightCounts:
    """Sum (parameters, nonzeros) of all entries; sparsity over those named in `encoder`."""
    parameters, nonzeros = (sum(column) for column in zip(*sizes.values(), strict=True))
    held, kept = (sum(column) for column in zip(*(sizes[name] for name in encoder), strict=True))
    return WeightCounts(parameters, nonzeros, 1 - kept / held)


def _torch_sizes(parameter: Any) -> tuple[int, int]:
    if hasattr(parameter, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        parameter = dequantize_4bit(parameter.data, parameter.quant_state)
    elif hasattr(parameter, "dequantize") and hasattr(parameter, "qdata"):
        parameter = parameter.dequantize()
    return parameter.numel(), int(parameter.count_nonzero())


def _weight_uses(graph: Any, tensors: dict[str, Any]) -> set[tuple[str, str]]:
    """(module, initializer) pairs; the exporter stores equal weights once, so one initializer may serve many."""
    dequantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    uses = ((_module_path(node.name), dequantized.get(name, name)) for node in graph.node for name in node.input)
    return {(module, name) for module, name in uses if module and name in tensors and _is_weight(tensors[name])}


def _module_path(node_name: str) -> str:
    """`/model/bert/encoder/layer.0/output/dense/MatMul_quant` -> `bert.encoder.layer.0.output.dense`."""
    path = ".".join(node_name.split("/")[2:-1])
    return re.sub(r"_\d+$", "", path)  # a module that is called twice (ALBERT's shared layer) has a numbered path


def _is_weight(tensor: Any) -> bool:
    """Not a scale or zero point, and not one of the int64 shapes and indices."""
    is_quantization = tensor.name.endswith(QUANTIZATION_SUFFIXES)
    return bool(tensor.dims) and not is_quantization and tensor.data_type != tensor.INT64


def _onnx_sizes(name: str, tensors: dict[str, Any]) -> tuple[int, int]:
    from onnx.numpy_helper import to_array

    values = to_array(tensors[name])
    zero_point = tensors.get(name.removesuffix("_quantized") + "_zero_point")
    zero = 0 if zero_point is None else to_array(zero_point).flat[0]  # symmetric: the same for all channels
    return values.size, int(np.count_nonzero(values != zero))


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    return np.log(probabilities) - np.log1p(-probabilities)
