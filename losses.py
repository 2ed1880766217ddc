"""Losses on logits and on an encoder's hidden states: tensors in, a scalar tensor out.

A multi-label task has one sigmoid per label, never a softmax over labels. A row whose label is
NO_LABEL has no hard-label loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from task import NO_LABEL


class States(NamedTuple):
    """The tensors of a batch that the state losses compare, of the student or the teacher.

    `hidden`: outputs [rows, tokens, width] of paired layers; the student's are projected to the
    teacher's width.
    `scores`: attention scores [rows, heads, tokens, tokens] of paired layers, before softmax and
    mask.
    `relations`: queries, keys and values of one layer, split into relation heads
    [rows, heads, tokens, width / heads].
    """

    hidden: list[Tensor]
    scores: list[Tensor]
    relations: list[Tensor]


def is_labeled(labels: Tensor) -> Tensor:
    """Mask [rows] of the rows that have a label."""
    if labels.ndim == 1:
        return labels != NO_LABEL
    return labels[:, 0] != NO_LABEL


def hard_label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy; multi-label: mean binary cross-entropy.

    `logits` [rows, labels]; `labels` are class ids [rows] or 0/1 [rows, labels]; `weights`
    [labels] weights classes, or the positives of each label. The result is the mean over labeled
    rows times their fraction of the batch: the loss of an unlabeled row is 0.
    """
    labeled = is_labeled(labels)
    if not labeled.any():
        return 0 * logits.sum()
    fraction = labeled.float().mean()
    logits = logits[labeled]
    labels = labels[labeled]
    if labels.ndim == 1:
        return fraction * F.cross_entropy(logits, labels, weight=weights)
    return fraction * F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)


def soft_label_loss(
    logits: Tensor, teacher_logits: Tensor, temperature: float, multi_label: bool
) -> Tensor:
    """Hinton et al. (2015): T^2 * KL(teacher || student), both softened by T; mean over rows.

    Both are [rows, labels]. Multi-label: the divergence of each label's Bernoulli distribution,
    averaged over labels as in binary cross-entropy. The factor T^2 keeps the scale of the gradient
    constant in T (section 2.1).
    """
    student = logits / temperature
    teacher = teacher_logits / temperature
    if multi_label:
        target = teacher.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(teacher, target)
        divergence = F.binary_cross_entropy_with_logits(student, target) - entropy
    else:
        divergence = F.kl_div(
            student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
        )
    return temperature**2 * divergence


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    alpha: float,
    temperature: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Hinton et al. (2015): alpha * soft-label loss + (1 - alpha) * hard-label loss.

    With alpha 0, `teacher_logits` is not used.
    """
    hard = hard_label_loss(logits, labels, weights)
    if alpha == 0:
        return hard
    soft = soft_label_loss(logits, teacher_logits, temperature, multi_label=labels.ndim == 2)
    return alpha * soft + (1 - alpha) * hard


def mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [rows, tokens, ...] over the real tokens of `mask` [rows, tokens]."""
    return values[mask.bool()].mean()


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision values in float32; wider ones unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Element-wise squared error, computed in float32 at least."""
    return (at_least_float32(student) - at_least_float32(teacher)) ** 2


def hidden_loss(student: States, teacher: States, mask: Tensor) -> Tensor:
    """Jiao et al. (2020, TinyBERT), equation 8: mean squared error of hidden states.

    Mean over paired layers; `mask` [rows, tokens] is 1 at real tokens, and padding does not count.
    """
    layer_losses = []
    for student_layer, teacher_layer in zip(student.hidden, teacher.hidden, strict=True):
        layer_losses.append(mean_over_tokens(squared_error(student_layer, teacher_layer), mask))
    return torch.stack(layer_losses).mean()


def attention_loss(student: States, teacher: States, mask: Tensor) -> Tensor:
    """Jiao et al. (2020, TinyBERT), equation 7: mean squared error of attention scores.

    The scores are those before softmax. Mean over paired layers, heads and pairs of real tokens of
    `mask` [rows, tokens].
    """
    is_real_pair = (mask[:, :, None] * mask[:, None, :]).bool()
    layer_losses = []
    for student_layer, teacher_layer in zip(student.scores, teacher.scores, strict=True):
        errors = squared_error(student_layer, teacher_layer).mean(dim=1)
        layer_losses.append(errors[is_real_pair].mean())
    return torch.stack(layer_losses).mean()


def relation_loss(student: States, teacher: States, mask: Tensor) -> Tensor:
    """Wang et al. (2021, MiniLMv2), equations 1 to 3: KL(teacher || student) of relations.

    A relation is the scaled dot-product of queries with queries, keys with keys, or values with
    values. Mean over these three, relation heads and real tokens of `mask` [rows, tokens]. Student
    and teacher have as many relation heads; their widths may differ.
    """
    losses = []
    for student_vectors, teacher_vectors in zip(student.relations, teacher.relations, strict=True):
        student_log = log_relation(at_least_float32(student_vectors), mask)
        teacher_log = log_relation(at_least_float32(teacher_vectors), mask)
        terms = teacher_log.exp() * (teacher_log - student_log)
        divergence = terms.masked_fill(mask[:, None, None, :] == 0, 0.0).sum(-1)
        losses.append(mean_over_tokens(divergence.transpose(1, 2), mask))
    return torch.stack(losses).mean()


def log_relation(vectors: Tensor, mask: Tensor) -> Tensor:
    """log softmax(V V^T / sqrt(d)) over real tokens [rows, heads, tokens, tokens].

    `vectors` V [rows, heads, tokens, d]; the result at padding is a large negative number.
    """
    scores = vectors @ vectors.transpose(-1, -2) / vectors.shape[-1] ** 0.5
    is_padding = mask[:, None, None, :] == 0
    return scores.masked_fill(is_padding, torch.finfo(scores.dtype).min / 2).log_softmax(-1)


STATE_LOSSES = {"hidden": hidden_loss, "attention": attention_loss, "relation": relation_loss}

KD_LOSSES = {  # --kd_method -> the losses on states that are added to the loss on logits
    "logit": (),
    "hidden": ("hidden",),
    "attention": ("attention",),
    "relation": ("relation",),
    "multi_level": ("hidden", "attention", "relation"),
}


def state_loss(student: States, teacher: States, mask: Tensor, names: tuple[str, ...]) -> Tensor:
    """The sum of the losses on states in `names`, such as KD_LOSSES[method]; at least one."""
    return sum(STATE_LOSSES[name](student, teacher, mask) for name in names)


def balanced_weights(labels: Tensor, label_count: int) -> Tensor:
    """Weights [labels] that give rare labels the same total weight as frequent ones.

    Class ids [rows]: rows / (classes * rows of the class), as scikit-learn's
    `class_weight="balanced"`. 0/1 [rows, labels]: negatives / positives of the label.
    """
    if labels.ndim == 1:
        counts = torch.bincount(labels, minlength=label_count).clamp(min=1)
        return len(labels) / (label_count * counts)
    positives = labels.sum(0).clamp(min=1)
    return (len(labels) - positives) / positives
