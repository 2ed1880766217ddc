"""Load a sequence classifier such that no weight is random by accident.

`from_pretrained` initializes every tensor at random that it does not find in the weights, and
ignores every tensor that it has no place for. Here both are errors, except in the classification
head of a model that will be trained.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from encoders.family_table import check_positions
from encoders.model_files import COUNTERS, UnusableModel
from runtime.errors import first_line

log = logging.getLogger(__name__)

# What DDP, torch.compile, Lightning and others put before the names of a model's tensors.
WRAPPERS = (
    "module",
    "model",
    "base_model",
    "auto_model",  # SentenceTransformer
    "0",  # a module of nn.Sequential
    "encoder",
    "text_encoder",
    "transformer",
    "backbone",
    "net",
    "network",
)

# What torch.compile, FSDP and activation checkpointing put inside of the names.
INNER_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def load_weights(
    spec: str, *, allow_new_head: bool, **arguments: Any
) -> tuple[PreTrainedModel, set[str]]:
    """The model of a hub name or directory, and the names of its newly initialized tensors.

    `arguments` are those of `from_pretrained`. Wrapper prefixes of tensor names are removed with a
    note. With `allow_new_head`, tensors of the head and the pooler that are missing or have another
    shape are initialized. UnusableModel if any other tensor is missing, has another shape, is not
    finite, or has no place in the model.
    """
    model, info = call_from_pretrained(spec, arguments)
    renaming = wrapper_renaming(model, info)
    if renaming:
        model, info = call_from_pretrained(spec, arguments | {"key_mapping": renaming})
        removed = " and ".join(pattern_text(pattern) for pattern in renaming)
        log_once(f"the tensor names in {spec} are read without {removed}, which a wrapper added")
    if "quantization_config" not in arguments:
        # Private attribute of transformers (pinned): `save_pretrained` would restore the names of
        # the file, such as `module.bert...` or `LayerNorm.gamma`.
        model._weight_conversions = []
    check_positions(model.config.to_dict())
    new_names = check_tensors(model, info, allow_new_head=allow_new_head)
    check_finite(model)
    return model, new_names


def call_from_pretrained(
    spec: str, arguments: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Model and loading info; UnusableModel if transformers cannot load it."""
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            spec,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **arguments,
        )
    except Exception as error:  # the files are a stranger's, so any type can occur
        raise UnusableModel(f"it cannot be loaded: {first_line(error)}") from error


@cache
def log_once(message: str) -> None:
    """Log a note; the same note is logged once per process."""
    log.warning("note: %s", message)


# Wrappers


def wrapper_renaming(model: PreTrainedModel, info: dict[str, Any]) -> dict[str, str]:
    """The `key_mapping` that removes the wrappers of tensor names.

    It is {} if there are none, and if the encoder is complete without them: a second copy of it,
    such as an average of the weights, is ignored. UnusableModel if there are several copies and
    none has the names of the model.
    """
    if all(is_head(model, name) for name in info["missing_keys"]):
        return {}
    unexpected = info["unexpected_keys"]
    renaming = {}
    names = []
    for name in unexpected:
        parts = [part for part in name.split(".") if part not in INNER_WRAPPERS]
        names.append(".".join(parts))
    for wrapper in INNER_WRAPPERS:
        if any(wrapper in name.split(".") for name in unexpected):
            renaming[re.escape(f"{wrapper}.")] = ""
    expected = expected_names(model)
    prefixes = {wrapper_prefix(name, expected) for name in names} - {""}
    if len(prefixes) > 1:
        named = " and ".join(sorted(prefixes))
        raise UnusableModel(
            f"its weights have several copies of the model, named {named}; keep only one of them"
        )
    for prefix in prefixes:
        renaming["^" + re.escape(prefix)] = ""
    return renaming


def expected_names(model: PreTrainedModel) -> set[str]:
    """The tensor names of the model, and those of its base model without their prefix."""
    names = set(model.state_dict())
    prefix = f"{model.base_model_prefix}."
    return names | {name.removeprefix(prefix) for name in names}


def wrapper_prefix(name: str, expected: set[str]) -> str:
    """The shortest prefix of WRAPPERS without which the name is expected; "" if there is none."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        if parts[count - 1] not in WRAPPERS:
            return ""
        if ".".join(parts[count:]) in expected:
            return ".".join(parts[:count]) + "."
    return ""


def pattern_text(pattern: str) -> str:
    """The text that a pattern of `wrapper_renaming` removes."""
    return pattern.removeprefix("^").replace("\\", "")


# Checks


def check_tensors(
    model: PreTrainedModel, info: dict[str, Any], *, allow_new_head: bool
) -> set[str]:
    """The names of newly initialized tensors; UnusableModel if others than those of the head are.

    An encoder tensor without a place in the model is an error too: config.json describes another
    model, such as one with fewer layers.
    """
    shapes = {}
    for name, found, needed in info["mismatched_keys"]:
        shapes[name] = f"{list(found)} instead of {list(needed)}"
    new_names = set(info["missing_keys"]) | shapes.keys()
    random_names = sorted(new_names)
    if allow_new_head:
        random_names = [name for name in random_names if not is_head(model, name)]
    missing = [name for name in random_names if name not in shapes]
    if missing:
        raise UnusableModel(
            f"its weights lack {len(missing)} of the {len(model.state_dict())} tensors that its "
            f"config.json describes, the first is {missing[0]}; config.json must be that of the "
            "weights"
        )
    if random_names:
        first = random_names[0]
        raise UnusableModel(
            f"its config.json describes other shapes for {len(random_names)} of the tensors in "
            f"its weights, the first is {first}: {shapes[first]}; config.json must be that of the "
            "weights"
        )
    homeless = sorted(name for name in info["unexpected_keys"] if is_in_encoder(model, name))
    if homeless:
        raise UnusableModel(
            f"its config.json has no place for {len(homeless)} of the encoder tensors in its "
            f"weights, the first is {homeless[0]}; config.json must be that of the weights"
        )
    return new_names


def is_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor of the model is outside of the encoder: in its head or its pooler."""
    prefix = f"{model.base_model_prefix}."
    return not name.startswith(prefix) or is_pooler(name.removeprefix(prefix))


def is_pooler(name: str) -> bool:
    """Whether a tensor, named relative to the base model, is one of its pooler."""
    return name.split(".")[0] == "pooler"


def is_in_encoder(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor of a file, which the model lacks, is a part of an encoder of its family."""
    relative = name.removeprefix(f"{model.base_model_prefix}.")
    if is_pooler(relative) or name.split(".")[-1] in COUNTERS:
        return False
    is_leftover = name.endswith("._weight")  # of the published mDeBERTa: a copy of `.weight`
    if is_leftover and name.removesuffix("_weight") + "weight" in model.state_dict():
        return False
    children = {child for child, _module in model.base_model.named_children()}
    return relative.split(".")[0] in children


@torch.no_grad()
def check_finite(model: PreTrainedModel) -> None:
    """UnusableModel if a tensor has a value that is NaN or infinite.

    Tensors of quantized types are skipped.
    """
    bad_names = []
    for name, parameter in model.named_parameters():
        tensor = parameter.data
        if type(tensor) is not torch.Tensor or not tensor.is_floating_point():
            continue
        # NaN if any value is NaN, infinite if any value is: without a copy of the tensor
        extremes = torch.stack(tensor.aminmax())
        if not extremes.isfinite().all():
            bad_names.append(name)
    if bad_names:
        raise UnusableModel(
            f"its weights have NaN or infinite values in {len(bad_names)} of the tensors, the "
            f"first is {bad_names[0]}"
        )
