"""The classification task: its labels, and how logits become probabilities and decisions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NO_LABEL = -100  # label of an unlabeled row: the `ignore_index` of PyTorch


@dataclass(frozen=True)
class Task:
    """The labels in the order of the logits, and whether several may apply to one text."""

    labels: tuple[str, ...]
    multi_label: bool

    @property
    def is_binary(self) -> bool:
        """Whether exactly one of two classes applies."""
        return len(self.labels) == 2 and not self.multi_label

    @property
    def problem_type(self) -> str:
        """The name of the task in Hugging Face configs."""
        if self.multi_label:
            return "multi_label_classification"
        return "single_label_classification"

    def config(self) -> dict:
        """The entries of a model's `config.json` that describe the task."""
        return {
            "num_labels": len(self.labels),
            "problem_type": self.problem_type,
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }


def decide(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Class ids [rows] of the largest logit; multi-label: 0/1 [rows, labels], sigmoid above 0.5."""
    if multi_label:
        return (logits > 0).astype(int)
    return logits.argmax(axis=1)


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Probabilities [rows, labels]: softmax over classes; multi-label: a sigmoid per label."""
    if multi_label:
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
