"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Task:
    """What is predicted: the labels in the order of the logits, and whether several may hold at once."""

    labels: tuple[str, ...]
    multi_label: bool

    @property
    def problem_type(self) -> str:
        """The name Hugging Face configs use."""
        return "multi_label_classification" if self.multi_label else "single_label_classification"

    def config(self) -> dict:
        """The entries of a model's `config.json` that state the task."""
        return {
            "num_labels": len(self.labels),
            "problem_type": self.problem_type,
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }


def decide(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Class ids [rows] by the largest logit, or 0/1 [rows, labels] where the sigmoid passes one half."""
    return (logits > 0).astype(int) if multi_label else logits.argmax(axis=1)


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Softmax over classes, or a sigmoid per label; [rows, labels]."""
    if multi_label:
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
