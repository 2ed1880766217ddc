"""Losses of logits. Pure: tensors in, a scalar tensor out.

Multi-label targets are one sigmoid per label throughout, never a softmax over labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy for class ids `labels` [rows]; mean binary cross-entropy for 0/1 `labels` [rows, labels].

    `logits` [rows, labels]; `weights` [labels] weights classes, or each label's positives.
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, weight=weights)
    return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)


def soft_label_loss(logits: Tensor, teacher_logits: Tensor, temperature: float, multi_label: bool) -> Tensor:
    """Hinton et al. (2015): T^2 * KL(teacher || student), both softened by T; mean over rows.

    Both [rows, labels]. Multi-label: the same divergence of each label's Bernoulli, mean over labels too, so that
    it stands on the scale of binary cross-entropy. T^2 keeps the gradient's size as T grows (their section 2.1).
    """
    student, teacher = logits / temperature, teacher_logits / temperature
    if multi_label:
        target = teacher.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(teacher, target)
        return temperature**2 * (F.binary_cross_entropy_with_logits(student, target) - entropy)
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")
    return temperature**2 * divergence


def distillation_loss(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor, alpha: float, temperature: float,
    weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Hinton et al. (2015): alpha * T^2 * KL(teacher || student) + (1 - alpha) * hard-label loss."""
    soft = soft_label_loss(logits, teacher_logits, temperature, multi_label=labels.ndim == 2)
    return alpha * soft + (1 - alpha) * hard_label_loss(logits, labels, weights)


def balanced_weights(labels: Tensor, label_count: int) -> Tensor:
    """Weights [labels] that let rare labels count as much as common ones.

    Class ids [rows]: rows / (classes * rows of the class). 0/1 [rows, labels]: negatives / positives of the label.
    """
    if labels.ndim == 1:
        counts = torch.bincount(labels, minlength=label_count).clamp(min=1)
        return len(labels) / (label_count * counts)
    positives = labels.sum(0).clamp(min=1)
    return (len(labels) - positives) / positives
