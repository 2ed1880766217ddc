"""Pretrained encoders: config, tokenizer and weights of a hub name or a local directory.

`spec` is the hub name or the directory, `flag` the option that names it, for error messages. Only
safetensors weights are loaded, and never code that comes with a model.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from socket import create_connection
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub.constants import ENDPOINT
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from encoders.families import encoder_layers
from encoders.specs import check_directory
from runtime.errors import UserError
from task import Task

HUB_TIMEOUT_S = 5


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
    """The config of a hub name or directory; UserError if it is unreadable or not that of an
    encoder."""
    is_on_disk = Path(spec).exists()
    if is_on_disk:
        check_directory(spec, flag)
    try:
        config = AutoConfig.from_pretrained(
            spec, trust_remote_code=False, local_files_only=is_local_only(spec)
        )
    except (OSError, ValueError, KeyError) as error:
        if is_on_disk:
            reason = "whose config.json cannot be read"
        else:
            reason = "neither a local directory nor a model that the hub provides now"
        raise UserError(
            f"{flag} is {spec}, {reason}; give a hub name (needs network access), a model "
            "directory, or scratch:4x256"
        ) from error
    check_encoder(config, spec, flag)
    return config


def check_encoder(config: PretrainedConfig, spec: str, flag: str) -> None:
    """Refuse a config that does not describe an encoder with a sequence classification head."""
    if not is_encoder_classifier(config):
        raise UserError(
            f"{flag} is {spec}, a {config.model_type} model, but must be an encoder that "
            "classifies texts"
        )


def is_encoder_classifier(config: PretrainedConfig) -> bool:
    """Whether the config gives a sequence classifier with encoder layers; loads no weights."""
    if config.is_encoder_decoder:
        return False
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return False
    try:
        encoder_layers(model_without_weights(config))
    except UserError:
        return False
    return True


def model_without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """The modules of a sequence classifier on the meta device, which allocates no memory."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


# Tokenizer and weights


def load_tokenizer(spec: str, flag: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or directory; UserError if there is none.

    It pads on the right, whatever the saved one does: padding on the left would change the absolute
    positions of the tokens.
    """
    try:
        return AutoTokenizer.from_pretrained(
            spec,
            use_fast=True,
            padding_side="right",
            local_files_only=is_local_only(spec),
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{flag} is {spec}, but it has no tokenizer: {first_line(error)}"
        ) from error


def load_pretrained(
    spec: str, flag: str, task: Task, max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (float32, with a classification head for `task`) and tokenizer.

    A saved head is kept if its shape fits the task, otherwise a new one is initialized.
    """
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
            f"{flag} is {spec}, but it cannot be loaded: {first_line(error)}"
        ) from error
    tokenizer = load_tokenizer(spec, flag)
    tokenizer.model_max_length = max_length
    return model, tokenizer


def first_line(error: Exception) -> str:
    """The first line of an error message."""
    return str(error).splitlines()[0]
