"""Where a model starts: a hub name, a directory, fresh weights, or layers of the teacher.

Also the one place that knows how encoder families differ: which Linears belong to the encoder's layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from socket import create_connection
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub.constants import ENDPOINT
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from compression_config import UserError
from encoders.families import encoder_layers, keep_layers_, position_limit, query_key_value
from encoders.scratch import is_fresh, scratch_config, scratch_model, train_wordpiece
from runtime.distributed import is_main_process
from task import Task

TEACHER_LAYERS = re.compile(r"teacher:(\d+(?:,\d+)*)")


def spaced_layers(count: int, available: int) -> list[int]:
    """`count` evenly spaced of `available` layers, with the first and the last: 3 of 6 -> [0, 2, 5]."""
    if count == 1:
        return [available - 1]
    return [round(i * (available - 1) / (count - 1)) for i in range(count)]


def teacher_layer_ids(spec: str, available: int) -> list[int]:
    """The layers that `teacher:N` or `teacher:0,2,5` names; UserError where the teacher lacks them."""
    numbers = [int(part) for part in TEACHER_LAYERS.fullmatch(spec)[1].split(",")]
    layers = numbers if "," in spec else None
    if layers is None:
        if not 1 <= numbers[0] <= available:
            raise UserError(f"--student_path is {spec}, but the teacher has {available} layers")
        return spaced_layers(numbers[0], available)
    if max(layers) >= available or sorted(set(layers)) != layers:
        raise UserError(
            f"--student_path is {spec}, but must name rising layers of the teacher's 0 to {available - 1}"
        )
    return layers


def check_directory(spec: str, flag: str) -> None:
    """Refuse a local directory without config or safetensors weights, or one that brings its own code."""
    directory = Path(spec)
    if not (directory / "config.json").is_file():
        raise UserError(f"{flag} is {spec}, but that directory has no config.json")
    if not any(directory.glob("*.safetensors")):
        raise UserError(
            f"{flag} is {spec}, but that directory has no .safetensors weights (pickle files are refused)"
        )
    if '"auto_map"' in (directory / "config.json").read_text(encoding="utf-8", errors="replace"):
        raise UserError(
            f"{flag} is {spec}, but models that bring their own code (trust_remote_code) are refused"
        )


def check_encoder(config: PretrainedConfig, spec: str, flag: str) -> None:
    """Refuse what is no encoder with a sequence classification head, judging by its structure alone."""
    refusal = UserError(
        f"{flag} is {spec}, a {config.model_type} model, but must be an encoder that classifies texts"
    )
    if (
        type(config) not in AutoModelForSequenceClassification._model_mapping
        or config.is_encoder_decoder
    ):
        raise refusal
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    try:
        encoder_layers(model)
    except UserError:
        raise refusal from None


@cache
def is_hub_reachable() -> bool:
    """Whether the hub's host answers; asked once, because the hub's own retries take minutes without a network."""
    if getproxies():
        return True
    address = urlsplit(ENDPOINT)
    try:
        create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def is_local_only(spec: str) -> bool:
    """Whether `spec` is to be read from disk alone: a directory, or a hub model that only the cache may hold."""
    return Path(spec).exists() or not is_hub_reachable()


@cache
def read_config(spec: str, flag: str) -> PretrainedConfig:
    """The config of a hub name or directory; UserError in one line where there is none or it is no encoder."""
    if Path(spec).exists():
        check_directory(spec, flag)
    try:
        config = AutoConfig.from_pretrained(
            spec, trust_remote_code=False, local_files_only=is_local_only(spec)
        )
    except (OSError, ValueError, KeyError) as error:
        what = (
            "whose config.json cannot be read"
            if Path(spec).exists()
            else "neither a local directory nor a model that the hub gives now"
        )
        raise UserError(
            f"{flag} is {spec}, {what}; give a hub name (with network), a model directory, "
            "or scratch:4x256"
        ) from error
    check_encoder(config, spec, flag)
    return config


def pretrained_model(
    spec: str, flag: str, task: Task, max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer of a hub name or directory, with a head for `task`; safetensors only, in float32."""
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            spec,
            dtype="float32",
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            local_files_only=is_local_only(spec),
            **task.config(),
        )
    except OSError as error:
        raise UserError(
            f"{flag} is {spec}, but it cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    tokenizer = start_tokenizer(spec, flag, [], max_length)
    tokenizer.model_max_length = max_length
    tokenizer.init_kwargs.pop(
        "local_files_only", None
    )  # else saved, and the bytes would depend on the network
    return model, tokenizer


def start_tokenizer(
    spec: str, flag: str, texts: Sequence[str], max_length: int
) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or directory, or a fresh one learnt from `texts`."""
    if is_fresh(spec):
        return train_wordpiece(texts, max_length)
    try:
        return AutoTokenizer.from_pretrained(
            spec, use_fast=True, local_files_only=is_local_only(spec)
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{flag} is {spec}, but it has no tokenizer: {str(error).splitlines()[0]}"
        ) from error


def start_teacher(
    spec: str, task: Task, texts: Sequence[str], max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `--teacher_path` names, with a head for `task`; `texts` train a fresh tokenizer."""
    if is_fresh(spec):
        return scratch_model(spec, task, texts, max_length)
    return pretrained_model(spec, "--teacher_path", task, max_length)


def start_student(
    spec: str,
    teacher_dir: Path,
    task: Task,
    texts: Sequence[str],
    max_length: int,
    own_tokenizer: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `--student_path` names; `teacher:N` starts from layers, embeddings and head of the teacher. A
    fresh one learns a tokenizer of its own from `texts`, or takes the teacher's."""
    if is_fresh(spec):
        shared = (
            None
            if own_tokenizer
            else start_tokenizer(str(teacher_dir), "--teacher_path", [], max_length)
        )
        return scratch_model(spec, task, texts, max_length, shared)
    if not TEACHER_LAYERS.fullmatch(spec):
        return pretrained_model(spec, "--student_path", task, max_length)
    model, tokenizer = pretrained_model(str(teacher_dir), "--teacher_path", task, max_length)
    keep_layers_(model, teacher_layer_ids(spec, model.config.num_hidden_layers))
    return model, tokenizer


def check_start(spec: str, flag: str, max_length: int) -> None:
    """Refuse a teacher or student that cannot be loaded or reads less than `max_length`, before training."""
    if spec.startswith("scratch:"):
        if not is_fresh(spec):
            raise UserError(
                f"{flag} is {spec}, but must read scratch:LAYERSxHIDDEN, such as scratch:4x256"
            )
        scratch_config(spec)
    elif spec.startswith("teacher:"):
        if flag != "--student_path" or not TEACHER_LAYERS.fullmatch(spec):
            raise UserError(
                f"{flag} is {spec}, but only --student_path takes teacher:N or teacher:0,2,5"
            )
    elif (limit := position_limit(read_config(spec, flag))) < max_length:
        raise UserError(f"--max_length is {max_length}, but {spec} reads at most {limit} tokens")


def has_known_queries(spec: str, flag: str) -> bool:
    """Whether the queries and keys of the model that `spec` names can be told."""
    return is_fresh(spec) or bool(query_key_value(encoder_layers(empty_encoder(spec, flag))[1][0]))


def empty_encoder(spec: str, flag: str) -> PreTrainedModel:
    """The architecture of a hub name or directory, without weights or memory."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(read_config(spec, flag))


def config_value(spec: str, flag: str, name: str) -> int:
    """An entry of the config of the model that `spec` names, such as `num_hidden_layers`."""
    return scratch_config(spec)[name] if is_fresh(spec) else getattr(read_config(spec, flag), name)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out_dir: Path) -> Path:
    """Write a plain Hugging Face checkpoint."""
    if is_main_process():
        model.save_pretrained(out_dir)
        tokenizer.save_pretrained(out_dir)
    return out_dir
