"""A saved classification head, used for the labels of a file.

The rows of a head are in the order of its own labels, which need not be the order of the file's.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from encoders.loading import log_once
from encoders.model_files import UnusableModel
from task import Task

DEFAULT_LABEL = re.compile(r"LABEL_\d+")  # of a config without names


def saved_labels(config: PretrainedConfig) -> tuple[str, ...] | None:
    """The labels in the order of the logits; None if `id2label` does not number them from 0."""
    names = config.id2label
    if sorted(names) != list(range(len(names))):
        return None
    return tuple(str(names[label_id]) for label_id in range(len(names)))


def has_default_labels(saved: tuple[str, ...] | None) -> bool:
    """Whether the labels are LABEL_0, LABEL_1, ...: the names of a config that has none."""
    return saved is not None and all(DEFAULT_LABEL.fullmatch(name) for name in saved)


def row_order(saved: tuple[str, ...] | None, labels: tuple[str, ...]) -> list[int] | None:
    """The row of a head with the labels `saved` for each of `labels`; None if they differ.

    Default labels are matched by position.
    """
    if saved is None or len(saved) != len(labels):
        return None
    if sorted(saved) == sorted(labels):
        return [saved.index(label) for label in labels]
    if has_default_labels(saved):
        return list(range(len(labels)))
    return None


def output_layer(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Name and module of the last Linear, which gives the logits."""
    linears = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            linears.append((name, module))
    return linears[-1]


def check_finished_head(config: PretrainedConfig, new_names: set[str], task: Task) -> None:
    """Refuse a head that does not predict the labels of the file.

    `new_names` are the tensors that are not in the weights.
    """
    saved = saved_labels(config)
    if saved is None:
        raise UnusableModel(
            "id2label in its config.json must number the labels 0, 1, 2, ... without gaps"
        )
    order = row_order(saved, task.labels)
    if order is None:
        raise UnusableModel(
            f"it predicts {', '.join(saved)} and the file has {', '.join(task.labels)}"
        )
    if new_names:
        raise UnusableModel(
            f"it has no fine-tuned head: {min(new_names)} is not in its weights, or has another "
            "shape"
        )
    if task.multi_label != (config.problem_type == "multi_label_classification"):
        kinds = {True: "several labels per text", False: "one label per text"}
        raise UnusableModel(
            f"it predicts {kinds[not task.multi_label]} (problem_type in its config.json) and the "
            f"file has {kinds[task.multi_label]}"
        )


@torch.no_grad()
def fit_head_(
    model: PreTrainedModel, config: PretrainedConfig, new_names: set[str], task: Task, spec: str
) -> None:
    """Put the rows of the saved head into the order of the task's labels, in place.

    A head for other labels is initialized again. `config` is the saved one. Both give a note.
    """
    saved = saved_labels(config)
    order = row_order(saved, task.labels)
    name, layer = output_layer(model)
    named = "numbers with gaps" if saved is None else ", ".join(saved)
    wanted = ", ".join(task.labels)
    if order is None:
        if f"{name}.weight" not in new_names:
            layer.weight.normal_(0, model.config.initializer_range)
            layer.bias.zero_()
        if not has_default_labels(saved):
            log_once(f"{spec} predicts {named}, not {wanted}: it gets a new classification head")
        return
    if f"{name}.weight" in new_names:
        return
    if has_default_labels(saved) and saved != task.labels:
        log_once(f"the labels of {spec} have no names ({named}): they are read as {wanted}")
    if order != list(range(len(order))):
        log_once(f"the head of {spec} predicts {named}: its rows are reordered to {wanted}")
        layer.weight.copy_(layer.weight[order].clone())
        layer.bias.copy_(layer.bias[order].clone())
