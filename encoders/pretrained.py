"""Pretrained encoders: config, tokenizer and weights of a hub name or a local directory.

`spec` is the hub name or the directory, `flag` the option that names it, for error messages. Only
safetensors weights are loaded, and never code that comes with a model.
"""

from __future__ import annotations

from functools import cache
from operator import itemgetter
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

from encoders.family_table import check_family
from encoders.loading import load_weights
from encoders.model_files import UnusableModel, check_quantization
from encoders.saved_heads import check_finished_head, fit_head_
from encoders.specs import check_directory
from runtime.errors import UserError, first_line
from task import Task

HUB_TIMEOUT_S = 5

MIN_ORDINARY_TOKENS = 10  # a tokenizer without its files has only special tokens, and a few marks


# Access to the hub


@cache
def is_hub_reachable() -> bool:
    """Whether the hub's host accepts a connection, or a proxy is configured.

    This is tried once per process, because the hub client retries for minutes without a network.
    """
    if getproxies():
        return True
    address = urlsplit(ENDPOINT)
    try:
        create_connection((address.hostname, address.port or 443), timeout=HUB_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def is_local_only(spec: str) -> bool:
    """Whether to read `spec` from disk only: from a directory, or from the hub's local cache."""
    return Path(spec).exists() or not is_hub_reachable()


# Config


@cache
def read_config(spec: str, flag: str) -> PretrainedConfig:
    """The config of a hub name or directory; UserError if it is unreadable or not that of a
    supported encoder."""
    is_on_disk = Path(spec).exists()
    if is_on_disk:
        check_directory(spec, flag)
    local_only = is_local_only(spec)
    try:
        entries, _ = PretrainedConfig.get_config_dict(spec, local_files_only=local_only)
        check_family(entries)
        check_quantization(entries)
        config = AutoConfig.from_pretrained(
            spec, trust_remote_code=False, local_files_only=local_only
        )
        check_encoder(config)
    except UnusableModel as error:
        raise UserError(f"{flag} is {spec}, but {error}") from error
    except Exception as error:  # the file is a stranger's, so any type can occur
        if is_on_disk:
            reason = f"whose config.json cannot be read ({first_line(error)})"
        else:
            reason = "neither a local directory nor a model that the hub provides now"
        raise UserError(
            f"{flag} is {spec}, {reason}; give a hub name (needs network access), a model "
            "directory, or scratch:4x256"
        ) from error
    return config


def check_encoder(config: PretrainedConfig) -> None:
    """Refuse a config that describes no model that can be built."""
    heads = config.num_attention_heads
    if heads < 1 or config.hidden_size % heads:
        raise UnusableModel(
            f"its config.json has a hidden_size of {config.hidden_size}, which its {heads} "
            "attention heads do not divide"
        )
    try:
        model_without_weights(config)
    except Exception as error:  # each family raises its own types
        raise UnusableModel(
            f"its config.json describes no model that can be built: {first_line(error)}"
        ) from error


def model_without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """The modules of a sequence classifier on the meta device, which allocates no memory."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


# Tokenizer


def load_tokenizer(spec: str, flag: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or directory; UserError if there is none that can be used.

    It pads on the right, whatever the saved one does: padding on the left would change the absolute
    positions of the tokens.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            spec,
            use_fast=True,
            padding_side="right",
            trust_remote_code=False,
            local_files_only=is_local_only(spec),
        )
    except Exception as error:  # the files are a stranger's, so any type can occur
        reason = f"its tokenizer cannot be read: {first_line(error)}"
        if "sentencepiece" in str(error):
            reason = "its tokenizer needs a package: pip install sentencepiece"
        raise UserError(f"{flag} is {spec}, but {reason}") from error
    try:
        check_tokenizer(tokenizer)
    except UnusableModel as error:
        raise UserError(f"{flag} is {spec}, but {error}") from error
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that the exported formats cannot use, or that knows no words."""
    if not tokenizer.is_fast:
        raise UnusableModel(
            f"its tokenizer, {type(tokenizer).__name__}, has no fast version (tokenizer.json), "
            "which every format needs; use another encoder"
        )
    ordinary_tokens = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    if len(ordinary_tokens) < MIN_ORDINARY_TOKENS:
        raise UnusableModel(
            f"its tokenizer has a vocabulary of only {len(tokenizer)} tokens; add the tokenizer "
            "files of the model"
        )
    if tokenizer.pad_token is None:
        raise UnusableModel(
            'its tokenizer has no padding token; name one as "pad_token" in tokenizer_config.json'
        )


def check_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with token ids that have no embedding."""
    rows = model.get_input_embeddings().num_embeddings
    token, token_id = max(tokenizer.get_vocab().items(), key=itemgetter(1))
    if token_id >= rows:
        raise UnusableModel(
            f"its tokenizer has token ids up to {token_id} ({token}), and its embedding has only "
            f"{rows} rows; add the tokenizer files of the same model"
        )


# Weights


def load_pretrained(
    spec: str, flag: str, task: Task, max_length: int, *, is_finished: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (float32, with a classification head for `task`) and tokenizer.

    A saved head for the task's labels is kept, in their order; otherwise a new one is initialized,
    or with `is_finished` refused. UserError if any other weight would be random, or if the
    tokenizer does not fit.
    """
    config = read_config(spec, flag)
    tokenizer = load_tokenizer(spec, flag)
    tokenizer.model_max_length = max_length
    try:
        model, new_names = load_weights(
            spec,
            allow_new_head=True,
            dtype="float32",
            local_files_only=is_local_only(spec),
            **task.config(),
        )
        check_token_ids(model, tokenizer)
    except UnusableModel as error:
        raise UserError(f"{flag} is {spec}, but {error}") from error
    if is_finished:
        try:
            check_finished_head(config, new_names, task)
        except UnusableModel as error:
            raise UserError(f"--teacher_epochs is 0, but {spec} is the teacher: {error}") from error
    fit_head_(model, config, new_names, task, spec)
    return model, tokenizer
