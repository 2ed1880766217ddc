"""The files of a local model directory, checked before anything is loaded. No torch.

Each check raises UnusableModel, whose message completes "--teacher_path is DIR, but ...".
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"

INDEX = "model.safetensors.index.json"  # of weights in several files

GIT_LFS_START = b"version https://git-lfs"

# Files of a vocabulary; a tokenizer that transformers builds without one knows no word.
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tokenizer.model",
)

FLOAT_TYPES = ("F64", "F32", "F16", "BF16")  # of safetensors

CONFIGS = ("config.json", "tokenizer_config.json")

CODE_KEYS = {"auto_map", "custom_pipelines"}  # of a config: Python files that come with the model

COUNTERS = (  # saved integer buffers
    "position_ids",
    "token_type_ids",
    "num_batches_tracked",
    "n_averaged",
)


class UnusableModel(Exception):
    """A directory that contains no model that can be used."""


def read_start(path: Path) -> bytes:
    """The first bytes of a file; UnusableModel if it is unreadable or a Git LFS pointer."""
    try:
        with path.open("rb") as file:
            start = file.read(len(GIT_LFS_START))
    except OSError as error:
        raise UnusableModel(f"its {path.name} cannot be read: {error.strerror}") from None
    if start == GIT_LFS_START:
        raise UnusableModel(
            f"its {path.name} is only a Git LFS pointer; run git lfs pull in that directory"
        )
    return start


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; UnusableModel if the file is anything else."""
    read_start(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UnusableModel(f"its {path.name} cannot be read as a JSON object")
    return value


def check_quantization(config: dict[str, Any]) -> None:
    """Refuse weights that are quantized: only full precision can be trained or compressed."""
    quantization = config.get("quantization_config")
    if not quantization:
        return
    method = "unknown method"
    if isinstance(quantization, dict):
        method = quantization.get("quant_method", method)
    raise UnusableModel(
        f"its weights are quantized ({method}); give the full-precision model that they were made "
        "from"
    )


def weight_files(directory: Path) -> list[Path]:
    """The weight files that transformers loads; UnusableModel if one is missing."""
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    if not (directory / INDEX).exists():
        graphs = [*directory.glob("onnx/*.onnx"), *directory.glob("openvino/*.xml")]
        if graphs:
            raise UnusableModel(
                f"that directory has no {WEIGHTS}, only graphs; give the full-precision model that "
                "they were made from"
            )
        raise UnusableModel(
            f"that directory has no {WEIGHTS} (.safetensors weights; pickle files are refused)"
        )
    weight_map = read_object(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnusableModel(f"its {INDEX} names no weights")
    names = sorted(set(map(str, weight_map.values())))
    if any(Path(name).name != name for name in names):
        raise UnusableModel(f"its {INDEX} names files outside of that directory")
    paths = [directory / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UnusableModel(
            f"{len(missing)} of the {len(paths)} weight files that {INDEX} names are missing, the "
            f"first is {missing[0]}"
        )
    return paths


def check_weight_file(path: Path) -> None:
    """Refuse a damaged safetensors file, and one whose tensors are no floating-point numbers."""
    from safetensors import SafetensorError, safe_open

    read_start(path)
    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                kind = tensors.get_slice(name).get_dtype()
                if kind not in FLOAT_TYPES and name.split(".")[-1] not in COUNTERS:
                    raise UnusableModel(
                        f"its {path.name} has tensors of type {kind}, such as {name}: weights that "
                        "are quantized cannot be used; give the full-precision model"
                    )
    except (OSError, SafetensorError) as error:
        raise UnusableModel(
            f"its {path.name} is damaged or incomplete ({error}); copy or download it again"
        ) from None


def check_vocabulary_files(directory: Path) -> None:
    """Refuse a directory without tokenizer, or with one that needs a package."""
    present = [name for name in VOCABULARY_FILES if (directory / name).exists()]
    if not present:
        raise UnusableModel(
            "that directory has no tokenizer (tokenizer.json, vocab.txt or another vocabulary); "
            "copy the tokenizer files of the model into it"
        )
    for name in present:
        read_start(directory / name)
    if (directory / "tokenizer_config.json").exists():
        read_object(directory / "tokenizer_config.json")
    is_sentencepiece = present[0].endswith(".model")
    if is_sentencepiece and find_spec("sentencepiece") is None:
        raise UnusableModel(
            f"its tokenizer is a SentencePiece model ({present[0]}), which needs a package: "
            "pip install sentencepiece"
        )


def check_own_code(directory: Path) -> None:
    """Refuse a directory whose config or tokenizer names code to run, also for serving."""
    for name in CONFIGS:
        path = directory / name
        keys = CODE_KEYS & read_object(path).keys() if path.exists() else set()
        if keys:
            raise UnusableModel(
                f"its {name} has {min(keys)}, and models that bring their own code "
                "(trust_remote_code) are refused"
            )


def read_model_config(directory: Path) -> dict[str, Any]:
    """The config.json of a model; UnusableModel for an adapter or a model with code of its own."""
    if not directory.is_dir():
        raise UnusableModel("that is a file; give the directory of a model")
    if (directory / "adapter_config.json").exists():
        raise UnusableModel(
            "that directory has an adapter (adapter_config.json), not a model; merge the adapter "
            "into its base model first (merge_and_unload in PEFT)"
        )
    if not (directory / "config.json").exists():
        raise UnusableModel("that directory has no config.json")
    check_own_code(directory)
    return read_object(directory / "config.json")


def check_model_files(directory: Path) -> None:
    """Refuse a directory without complete full-precision safetensors, or without a tokenizer."""
    for path in weight_files(directory):
        check_weight_file(path)
    check_vocabulary_files(directory)


def check_served_tokenizer(directory: Path, tokenizer: Any, config: dict[str, Any]) -> int:
    """Refuse a `tokenizers.Tokenizer` that does not belong to the model in `directory`.

    Returns the id of its padding token. `config` is the content of tokenizer_config.json; only
    `pad_token` is read, which is a string or an object.
    """
    pad_token = config.get("pad_token")
    if isinstance(pad_token, dict):
        pad_token = pad_token.get("content")
    pad_id = tokenizer.token_to_id(pad_token) if isinstance(pad_token, str) else None
    if pad_id is None:
        raise UnusableModel(
            'its tokenizer has no padding token; name one as "pad_token" in tokenizer_config.json'
        )
    count = tokenizer.get_vocab_size()
    rows = read_object(directory / "config.json").get("vocab_size")
    if isinstance(rows, int) and count > rows:
        raise UnusableModel(
            f"its tokenizer has {count} tokens, and its embedding only {rows} rows; add the "
            "tokenizer files of the same model"
        )
    return pad_id
