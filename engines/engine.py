"""Any form on disk (torch, ONNX, OpenVINO, linear) as one thing: texts -> token ids -> padded batch -> logits.

Graphs are served without torch and transformers. Rows are scored in batches of similar length and come back in their
original order. Int8 products of ONNX Runtime quantize activations per batch, so there a row's logits depend slightly
on its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ModelFormat:
    """A way of serving one model: the row it fills, its directory, and what is served of it: torch, linear, or a graph
    (`onnx/model_q4.onnx`; `onnx` where it is the only one)."""

    name: str
    path: Path
    served: str

    @property
    def engine(self) -> str:
        """What serves it: torch, onnx, openvino or linear."""
        return engine_name(self.served)


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

GRAPH_PATTERNS = {
    "onnx": "onnx/*.onnx",
    "openvino": "openvino/*.xml",
}  # engine -> where its graphs lie

INT4_GROUP_SIZE = (
    64  # 4-bit weights of OpenVINO that share a scale; activations are quantized in the same blocks
)

UNLIMITED_LENGTH = 10**6  # tokenizers without a limit claim a huge one

TokenIds = Sequence[int]


@dataclass(frozen=True)
class Engine:
    """A loaded form: `tokenize` gives token ids of each text, `collate` pads them to a batch, `forward` gives its
    float32 logits [rows, labels]. The linear reference takes texts for token ids."""

    tokenize: Callable[[list[str]], list[TokenIds]]
    collate: Callable[[list[TokenIds]], Any]
    forward: Callable[[Any], np.ndarray]

    def encode(self, texts: list[str]) -> Any:
        """A padded batch of texts."""
        return self.collate(self.tokenize(texts))


def engine_name(form: str) -> str:
    """The engine that serves a form: `onnx/model_q4.onnx` -> `onnx`."""
    return form.partition("/")[0]


def formats_in(model_dir: Path) -> list[str]:
    """Every form that a directory holds: `torch`, `linear`, and the paths of its graphs."""
    held = {
        "torch": any(model_dir.glob("model*.safetensors")),
        "linear": (model_dir / "linear.joblib").is_file(),
    }
    graphs = [
        path for pattern in GRAPH_PATTERNS.values() for path in sorted(model_dir.glob(pattern))
    ]
    return [form for form in held if held[form]] + [
        str(path.relative_to(model_dir)) for path in graphs
    ]


def graph_path(model_dir: Path, form: str) -> Path:
    """The graph that a form is; where only an engine is named, the one that the directory holds for it."""
    if "/" in form:
        return model_dir / form
    (path,) = model_dir.glob(GRAPH_PATTERNS[form])
    return path


def load_engine(
    model_dir: Path | str,
    form: str,
    max_length: int,
    threads: int | None = None,
    device: str = "cpu",
) -> Engine:
    """Load a form; `threads` is process-wide in torch, `device` concerns torch only."""
    return LOADERS[engine_name(form)](Path(model_dir), form, max_length, threads, device)


def load_torch(
    model_dir: Path, form: str, max_length: int, threads: int | None, device: str
) -> Engine:
    """Any checkpoint that plain `from_pretrained` reads: fp32, fp16-stored, int8, NF4."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if threads is not None:
        torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_dir, device_map=device, use_safetensors=True
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)

    def tokenize(texts: list[str]) -> list[TokenIds]:
        return tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]

    def forward(batch: dict[str, np.ndarray]) -> np.ndarray:
        inputs = {name: torch.from_numpy(values).to(device) for name, values in batch.items()}
        with torch.inference_mode():
            return model(**inputs).logits.float().cpu().numpy()

    return Engine(tokenize, make_collate(tokenizer.pad_token_id, tokenizer.padding_side), forward)


def load_onnx(
    model_dir: Path, form: str, max_length: int, threads: int | None, device: str
) -> Engine:
    """A graph of ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    path = graph_path(model_dir, form)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [graph_input.name for graph_input in session.get_inputs()]
    return graph_engine(
        model_dir, max_length, names, lambda batch: session.run(["logits"], batch)[0]
    )


def load_openvino(
    model_dir: Path, form: str, max_length: int, threads: int | None, device: str
) -> Engine:
    """A graph of OpenVINO, on the CPU; what is not quantized is computed in fp32, not in the CPU's bf16, so that a
    model decides alike on any machine."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": INT4_GROUP_SIZE,
    }
    settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    compiled = openvino.Core().compile_model(graph_path(model_dir, form), "CPU", settings)
    request = compiled.create_infer_request()
    names = [graph_input.get_any_name() for graph_input in compiled.inputs]

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        inputs = [np.ascontiguousarray(batch[name]) for name in names]
        for i, values in enumerate(
            inputs
        ):  # by hand: `infer` looks at a dict for a tenth of a small model's time
            request.set_input_tensor(i, openvino.Tensor(values, shared_memory=True))
        request.infer(share_outputs=True)
        return request.get_output_tensor(0).data.copy()

    return graph_engine(model_dir, max_length, names, run)


def graph_engine(
    model_dir: Path,
    max_length: int,
    names: list[str],
    run: Callable[[dict[str, np.ndarray]], np.ndarray],
) -> Engine:
    """An engine of `run`, fed with the inputs `names` by the directory's tokenizer.json."""
    tokenize, collate = read_tokenizer(model_dir, max_length)

    def forward(batch: dict[str, np.ndarray]) -> np.ndarray:
        inputs = {
            name: batch[name] if name in batch else np.zeros_like(batch["input_ids"])
            for name in names
        }
        return run(inputs).astype(np.float32, copy=False)

    return Engine(tokenize, collate, forward)


def load_linear(
    model_dir: Path, form: str, max_length: int, threads: int | None, device: str
) -> Engine:
    """A scikit-learn pipeline; its logits are log-probabilities, or log-odds a label where labels overlap."""
    import joblib

    pipeline = joblib.load(model_dir / "linear.joblib")
    to_logits = _log_odds if hasattr(pipeline[-1], "estimators_") else np.log

    def forward(texts: list[str]) -> np.ndarray:
        probabilities = np.clip(pipeline.predict_proba(texts), 1e-12, 1 - 1e-12)
        return to_logits(probabilities).astype(np.float32)

    return Engine(list, list, forward)


LOADERS: dict[str, Callable[[Path, str, int, int | None, str], Engine]] = {
    "torch": load_torch,
    "onnx": load_onnx,
    "openvino": load_openvino,
    "linear": load_linear,
}


def read_tokenizer(model_dir: Path | str, max_length: int) -> tuple[Callable, Callable]:
    """`tokenize` and `collate` of an `Engine` from the directory's tokenizer.json and tokenizer_config.json alone."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model_dir) / "tokenizer.json"))
    config = read_tokenizer_config(model_dir)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=config.get("truncation_side", "right"))
    pad_id = tokenizer.token_to_id(pad_token(config))

    def tokenize(texts: list[str]) -> list[TokenIds]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]

    return tokenize, make_collate(pad_id, config.get("padding_side", "right"))


def read_tokenizer_config(model_dir: Path | str) -> dict[str, Any]:
    """What tokenizer_config.json says."""
    return json.loads((Path(model_dir) / "tokenizer_config.json").read_text(encoding="utf-8"))


def pad_token(config: dict[str, Any]) -> str:
    """The token that fills the rows of a batch, as a tokenizer_config.json has it."""
    pad = config["pad_token"]
    return pad if isinstance(pad, str) else pad["content"]


def max_input_tokens(model_dir: Path | str) -> int | None:
    """Tokens that the model reads of a text, as its tokenizer says; None where it sets no limit."""
    limit = read_tokenizer_config(model_dir).get("model_max_length", UNLIMITED_LENGTH)
    return int(limit) if limit < UNLIMITED_LENGTH else None


def make_collate(
    pad_id: int, side: str = "right"
) -> Callable[[list[TokenIds]], dict[str, np.ndarray]]:
    """Rows of token ids -> `input_ids` and `attention_mask`, int64 [rows, tokens of the longest]."""

    def collate(rows: list[TokenIds]) -> dict[str, np.ndarray]:
        shape = len(rows), max(map(len, rows))
        ids, mask = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
        for row, tokens in enumerate(rows):
            where = slice(len(tokens)) if side == "right" else slice(shape[1] - len(tokens), None)
            ids[row, where], mask[row, where] = tokens, 1
        return {"input_ids": ids, "attention_mask": mask}

    return collate


def predict_logits(
    engine: Engine, texts: list[str], batch: int = 32, description: str | None = None
) -> np.ndarray:
    """Logits [rows, labels] in the order of `texts`; a `description` puts a progress bar on stderr."""
    from tqdm import tqdm

    longest_first = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    chunks = [longest_first[start : start + batch] for start in range(0, len(texts), batch)]
    counted = tqdm(chunks, desc=description, leave=False) if description else chunks
    logits = [engine.forward(engine.encode([texts[row] for row in chunk])) for chunk in counted]
    return np.concatenate(logits)[np.argsort(longest_first, kind="stable")]


def tokenizer_files(model_dir: Path) -> list[Path]:
    """The files of a fast tokenizer that lie in `model_dir`."""
    return [model_dir / name for name in TOKENIZER_FILES if (model_dir / name).exists()]


def serving_files(model_dir: Path | str, form: str) -> list[Path]:
    """Every file that serving this form needs, and no other."""
    model_dir = Path(model_dir)
    if form == "linear":
        return [model_dir / "linear.joblib"]
    return [model_dir / "config.json", *_weight_files(model_dir, form), *tokenizer_files(model_dir)]


def _weight_files(model_dir: Path, form: str) -> Iterable[Path]:
    if form == "torch":
        return sorted(model_dir.glob("model*.safetensors*"))
    graph = graph_path(model_dir, form)
    return [graph, graph.with_suffix(".bin")] if engine_name(form) == "openvino" else [graph]


def empty_model(model_dir: Path | str) -> Any:
    """The architecture that a directory's config describes, without weights or memory."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(model_dir))


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    return np.log(probabilities) - np.log1p(-probabilities)
