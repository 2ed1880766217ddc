"""Inference engines: texts -> token ids -> padded batch -> logits, the same for every format.

A *format* is one servable representation of a model: PyTorch fp32, ONNX int8, OpenVINO 4-bit, ...
A format name is `torch`, `linear` or the path of a graph inside the model directory, such as
`onnx/model_q4.onnx`. The name of an engine (`onnx`, `openvino`) is also a format name if the
directory contains exactly one graph of that engine.

Engine libraries are imported inside the functions that use them: serving a graph must not import
torch or transformers, and reading a directory must not import any engine.

The logits of a text do not depend on the other texts of its batch, apart from the last digits of a
float. Activation ranges that are measured at run time would be those of the whole batch, and a
difference in the last digits would change how activations are rounded. Formats with quantized
activations therefore compute the rows of a batch in groups (`RowGrouping`): rows of equal length,
or single rows.
"""

from __future__ import annotations

import json
import mmap
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.linear import LINEAR_NAME, read_linear
from runtime.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

GRAPH_PATTERNS = {"onnx": "onnx/*.onnx", "openvino": "openvino/*.xml"}  # engine -> its graphs

INT4_GROUP_SIZE = 64  # weights that share a scale in OpenVINO's 4-bit formats

UNLIMITED_LENGTH = 10**6  # tokenizers without a limit have a huge `model_max_length`

# Operators of ONNX graphs that quantize activations with ranges that are measured at run time, and
# with fixed ranges. The results of MatMulNBits depend on the number of rows in the last digits.
RUN_TIME_RANGES = (b"DynamicQuantizeLinear", b"MatMulNBits")
FIXED_RANGES = (b"QuantizeLinear",)

# In an ONNX graph, an entry of a protobuf map: "location", the length of a file name (one byte, as
# file names are shorter than 128 bytes), and the file name.
DATA_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])(?=(.{1,127}))", re.DOTALL)

# In an OpenVINO graph: activations of fixed ranges, and weights that are multiplied with quantized
# activations.
OPENVINO_QUANTIZATION = re.compile(r'type="FakeQuantize"|element_type="[iu][2348]"')

TokenIds = Sequence[int]

Forward = Callable[[dict[str, np.ndarray]], np.ndarray]  # batch -> logits [rows, labels]

# Lengths of the rows of a batch -> row numbers of each group that is computed at once
RowGrouping = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class ModelFormat:
    """One format of one model: its row in the results, its directory, and its format name."""

    name: str
    directory: Path
    format_name: str

    @property
    def engine(self) -> str:
        """The engine that serves the format: `torch`, `onnx`, `openvino` or `linear`."""
        return engine_name(self.format_name)


@dataclass(frozen=True)
class Engine:
    """A loaded format.

    `tokenize` returns the token ids of each text, `collate` pads them to a batch, and `forward`
    returns the float32 logits [rows, labels] of a batch. The token ids and the batch of the linear
    baseline are the texts themselves.

    All three may be called from several threads at once. Of a quantized torch format the first
    forward pass must be complete before: bitsandbytes repacks the weights in it.
    """

    tokenize: Callable[[list[str]], list[TokenIds]]
    collate: Callable[[list[TokenIds]], Any]
    forward: Callable[[Any], np.ndarray]

    def encode(self, texts: list[str]) -> Any:
        """Tokenize and pad `texts` to one batch."""
        return self.collate(self.tokenize(texts))


# ----------------------------------------------------------------- the formats of a model directory


def engine_name(format_name: str) -> str:
    """The engine that serves a format: `onnx/model_q4.onnx` -> `onnx`."""
    return format_name.partition("/")[0]


def formats_in(model_dir: Path) -> list[str]:
    """The names of all formats that a directory contains."""
    format_names = []
    if any(model_dir.glob("model*.safetensors")):
        format_names.append("torch")
    if (model_dir / LINEAR_NAME).is_file():
        format_names.append("linear")
    for pattern in GRAPH_PATTERNS.values():
        for path in sorted(model_dir.glob(pattern)):
            format_names.append(path.relative_to(model_dir).as_posix())
    return format_names


def graph_path(model_dir: Path, format_name: str) -> Path:
    """The file of a graph; for the name of an engine, the only graph of that engine."""
    if "/" in format_name:
        return model_dir / format_name
    (path,) = model_dir.glob(GRAPH_PATTERNS[format_name])
    return path


def tokenizer_files(model_dir: Path) -> list[Path]:
    """The files of a fast tokenizer that exist in `model_dir`."""
    paths = [model_dir / name for name in TOKENIZER_FILES]
    return [path for path in paths if path.exists()]


def serving_files(model_dir: Path | str, format_name: str) -> list[Path]:
    """All files that are needed to serve a format, and no others."""
    model_dir = Path(model_dir)
    if format_name == "linear":
        return [model_dir / LINEAR_NAME]
    return [
        model_dir / "config.json",
        *_weight_files(model_dir, format_name),
        *tokenizer_files(model_dir),
    ]


def _weight_files(model_dir: Path, format_name: str) -> list[Path]:
    if format_name == "torch":
        return sorted(model_dir.glob("model*.safetensors*"))
    graph = graph_path(model_dir, format_name)
    if engine_name(format_name) == "openvino":
        return [graph, graph.with_suffix(".bin")]
    return [graph, *external_data_files(graph)]


def external_data_files(graph: Path) -> list[Path]:
    """The files beside an ONNX graph that contain weights of the graph, sorted.

    They are found by the bytes of the graph's protobuf, so that serving does not need the package
    onnx. UserError if a file is not in the directory of the graph.
    """
    has_other_files = any(path.suffix != ".onnx" for path in graph.parent.iterdir())
    if not has_other_files:  # do not read a large graph that contains its weights
        return []
    with mapped(graph) as content:
        names = {
            match[2][: match[1][0]].decode(errors="replace")
            for match in DATA_LOCATION.finditer(content)
        }
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{graph} has weights in {name!r}, which is not in its directory")
    return [graph.with_name(name) for name in sorted(names)]


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The bytes of a file, without reading it as a whole."""
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            yield b""
            return
        with content:
            yield content


def empty_model(model_dir: Path | str) -> Any:
    """The `PreTrainedModel` that config.json describes, on the meta device: without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


# ---------------------------------------------------------------------------------------- inference


def predict_logits(
    engine: Engine, texts: list[str], batch: int = 32, description: str | None = None
) -> np.ndarray:
    """Logits [rows, labels] in the order of `texts`, computed in batches of similar length.

    `description` is the label of a progress bar on stderr; None shows no progress bar.
    """
    from tqdm import tqdm

    longest_first = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    logits = []
    starts = range(0, len(texts), batch)
    if description is not None:
        starts = tqdm(starts, desc=description, leave=False)
    for start in starts:
        rows = longest_first[start : start + batch]
        logits.append(engine.forward(engine.encode([texts[row] for row in rows])))
    return np.concatenate(logits)[np.argsort(longest_first, kind="stable")]


# ------------------------------------------------------------------------- the rows of a batch


def rows_of_equal_length(lengths: np.ndarray) -> list[np.ndarray]:
    """The row numbers of each length."""
    return [np.flatnonzero(lengths == length) for length in np.unique(lengths)]


def single_rows(lengths: np.ndarray) -> list[np.ndarray]:
    """Each row number separately."""
    return list(np.arange(len(lengths))[:, np.newaxis])


def in_groups(forward: Forward, grouping: RowGrouping | None) -> Forward:
    """`forward` that computes the groups of a batch separately, without padding.

    It computes the batch at once if `grouping` is None.
    """
    if grouping is None:
        return forward

    def forward_groups(batch: dict[str, np.ndarray]) -> np.ndarray:
        lengths = batch["attention_mask"].sum(axis=1)
        if len(lengths) == 1:  # without padding
            return forward(batch)
        groups = grouping(lengths)
        logits = []
        for rows in groups:
            length = max(1, lengths[rows[0]])  # a graph cannot compute a row without tokens
            logits.append(forward({name: ids[rows, :length] for name, ids in batch.items()}))
        original_order = np.argsort(np.concatenate(groups))
        return np.concatenate(logits)[original_order]

    return forward_groups


def torch_grouping(model_dir: Path) -> RowGrouping | None:
    """torchao measures the ranges of activations at run time; other checkpoints compute in
    floats."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    method = (config.get("quantization_config") or {}).get("quant_method")
    return single_rows if method == "torchao" else None


def onnx_grouping(graph: Path) -> RowGrouping | None:
    """The grouping that the operators of an ONNX graph require."""
    with mapped(graph) as content:
        if any(content.find(name) >= 0 for name in RUN_TIME_RANGES):
            return single_rows
        if any(content.find(name) >= 0 for name in FIXED_RANGES):
            return rows_of_equal_length
    return None


def openvino_grouping(graph: Path) -> RowGrouping | None:
    """The grouping that the operators of an OpenVINO graph require."""
    if OPENVINO_QUANTIZATION.search(graph.read_text(encoding="utf-8")):
        return rows_of_equal_length
    return None


# ------------------------------------------------------------------------------------------ loaders


def load_engine(
    model_dir: Path | str,
    format_name: str,
    max_length: int,
    threads: int | None = None,
    device: str = "cpu",
) -> Engine:
    """Load a format that truncates texts to `max_length` tokens.

    `threads` None keeps the default of the engine; torch applies the number to the whole process.
    `device` is used by torch only: graphs and the linear baseline run on the CPU.
    """
    load = LOADERS[engine_name(format_name)]
    return load(Path(model_dir), format_name, max_length, threads, device)


def load_torch(
    model_dir: Path, format_name: str, max_length: int, threads: int | None, device: str
) -> Engine:
    """Load any checkpoint that plain `from_pretrained` supports: fp32, fp16, int8, NF4.

    UnusableModel if a weight is missing, or if the tokenizer is not that of the model.
    """
    import torch

    from encoders.loading import load_weights
    from encoders.model_files import check_served_tokenizer
    from encoders.saved_models import load_saved_tokenizer

    if threads is not None:
        torch.set_num_threads(threads)
    model, _ = load_weights(str(model_dir), allow_new_head=False, device_map=device)
    model.eval()
    tokenizer = load_saved_tokenizer(model_dir)
    names = {"pad_token": tokenizer.pad_token}
    check_served_tokenizer(model_dir, tokenizer.backend_tokenizer, names)
    tokenize = make_tokenize(tokenizer.backend_tokenizer, max_length, tokenizer.truncation_side)

    def forward(batch: dict[str, np.ndarray]) -> np.ndarray:
        inputs = {name: torch.from_numpy(values).to(device) for name, values in batch.items()}
        with torch.inference_mode():
            return model(**inputs).logits.float().cpu().numpy()

    return Engine(
        tokenize,
        make_collate(tokenizer.pad_token_id),
        in_groups(forward, torch_grouping(model_dir)),
    )


def load_onnx(
    model_dir: Path, format_name: str, max_length: int, threads: int | None, device: str
) -> Engine:
    """A graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    path = graph_path(model_dir, format_name)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    input_names = [graph_input.name for graph_input in session.get_inputs()]

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        (logits,) = session.run(["logits"], batch)
        return logits

    return graph_engine(model_dir, max_length, input_names, run, onnx_grouping(path))


def load_openvino(
    model_dir: Path, format_name: str, max_length: int, threads: int | None, device: str
) -> Engine:
    """A graph in OpenVINO.

    Float operations run in fp32, also on CPUs with bf16, so that the predictions are the same on
    every machine. Activations of 4-bit products are quantized in the groups of the weights.

    An infer request holds the inputs and outputs of one call, so concurrent calls use different
    requests. They share the model's only stream and are computed one after the other.
    """
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": INT4_GROUP_SIZE,
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    path = graph_path(model_dir, format_name)
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    idle_requests = deque([compiled.create_infer_request()])  # append and pop are thread-safe
    input_names = [graph_input.get_any_name() for graph_input in compiled.inputs]

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        # `infer(dict)` would spend a tenth of a small model's latency on checking its argument.
        inputs = [np.ascontiguousarray(batch[name]) for name in input_names]
        try:
            request = idle_requests.pop()
        except IndexError:
            request = compiled.create_infer_request()
        for index, values in enumerate(inputs):
            request.set_input_tensor(index, openvino.Tensor(values, shared_memory=True))
        request.infer(share_outputs=True)
        logits = request.get_output_tensor(0).data.copy()
        idle_requests.append(request)
        return logits

    return graph_engine(model_dir, max_length, input_names, run, openvino_grouping(path))


def graph_engine(
    model_dir: Path,
    max_length: int,
    input_names: list[str],
    run: Forward,
    grouping: RowGrouping | None,
) -> Engine:
    """An engine that calls `run` on the graph inputs `input_names`, for each group of a batch.

    The tokenizer is read from tokenizer.json. Inputs other than `input_ids` and `attention_mask`
    are zeros.
    """
    tokenize, collate = read_tokenizer(model_dir, max_length)

    def forward(batch: dict[str, np.ndarray]) -> np.ndarray:
        inputs = {}
        for name in input_names:
            if name in batch:
                inputs[name] = batch[name]
            else:
                inputs[name] = np.zeros_like(batch["input_ids"])
        return run(inputs).astype(np.float32, copy=False)

    return Engine(tokenize, collate, in_groups(forward, grouping))


def load_linear(
    model_dir: Path, format_name: str, max_length: int, threads: int | None, device: str
) -> Engine:
    """The linear baseline, whose tokens are the texts themselves (engines/linear.py)."""
    return Engine(list, list, read_linear(model_dir).logits)


LOADERS: dict[str, Callable[[Path, str, int, int | None, str], Engine]] = {
    "torch": load_torch,
    "onnx": load_onnx,
    "openvino": load_openvino,
    "linear": load_linear,
}


# ---------------------------------------------------------------------------------------- tokenizer


def read_tokenizer(model_dir: Path | str, max_length: int) -> tuple[Callable, Callable]:
    """`tokenize` and `collate` of an `Engine`, from tokenizer.json and tokenizer_config.json.

    UnusableModel if the tokenizer is not that of the model.
    """
    from tokenizers import Tokenizer

    from encoders.model_files import check_served_tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model_dir) / "tokenizer.json"))
    config = read_tokenizer_config(model_dir)
    pad_id = check_served_tokenizer(Path(model_dir), tokenizer, config)
    tokenize = make_tokenize(tokenizer, max_length, config.get("truncation_side", "right"))
    return tokenize, make_collate(pad_id)


def make_tokenize(
    tokenizer: Any, max_length: int, truncation_side: str
) -> Callable[[list[str]], list[TokenIds]]:
    """`tokenize` of an `Engine`, from a `tokenizers.Tokenizer`.

    Truncation is set here, once: a tokenizer of transformers sets it in every call, for all
    threads.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=truncation_side)

    def tokenize(texts: list[str]) -> list[TokenIds]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]

    return tokenize


def read_tokenizer_config(model_dir: Path | str) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return json.loads((Path(model_dir) / "tokenizer_config.json").read_text(encoding="utf-8"))


def max_input_tokens(model_dir: Path | str) -> int | None:
    """The `model_max_length` of the tokenizer; None if it sets no limit."""
    limit = read_tokenizer_config(model_dir).get("model_max_length", UNLIMITED_LENGTH)
    if limit >= UNLIMITED_LENGTH:
        return None
    return int(limit)


def make_collate(pad_id: int) -> Callable[[list[TokenIds]], dict[str, np.ndarray]]:
    """A function that pads rows of token ids on the right, to the length of the longest row.

    It returns `input_ids` and `attention_mask`, both int64 [rows, tokens]. A `padding_side` of the
    tokenizer is ignored: padding on the left would change the absolute positions of the tokens.
    """

    def collate(rows: list[TokenIds]) -> dict[str, np.ndarray]:
        length = max(1, *(len(tokens) for tokens in rows))
        ids = np.full((len(rows), length), pad_id, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    return collate
