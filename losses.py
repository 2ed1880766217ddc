"""Losses of logits and of an encoder's states. Pure: tensors in, a scalar tensor out.

Multi-label targets are one sigmoid per label throughout, never a softmax over labels. A row whose label is NO_LABEL
has no hard loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NO_LABEL = -100  # what stands for the label of an unlabeled row


class States(NamedTuple):
    """What an encoder computed for a batch, as far as a loss compares it; `hidden` and `scores` of paired layers."""

    hidden: list[
        Tensor
    ]  # outputs of layers [rows, tokens, width]; the student's projected to the teacher's width
    scores: list[Tensor]  # attention before softmax and mask [rows, heads, tokens, tokens]
    relations: list[
        Tensor
    ]  # queries, keys, values of one layer, split into heads [rows, heads, tokens, width / heads]


def hard_label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy for class ids `labels` [rows]; mean binary cross-entropy for 0/1 `labels` [rows, labels].

    `logits` [rows, labels]; `weights` [labels] weights classes, or each label's positives. Mean over labelled rows,
    times their share: an unlabeled row is a row of loss 0.
    """
    labelled = (labels if labels.ndim == 1 else labels[:, 0]) != NO_LABEL
    if not labelled.any():
        return 0 * logits.sum()
    logits, labels, share = logits[labelled], labels[labelled], labelled.float().mean()
    if labels.ndim == 1:
        return share * F.cross_entropy(logits, labels, weight=weights)
    return share * F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)


def soft_label_loss(
    logits: Tensor, teacher_logits: Tensor, temperature: float, multi_label: bool
) -> Tensor:
    """Hinton et al. (2015): T^2 * KL(teacher || student), both softened by T; mean over rows.

    Both [rows, labels]. Multi-label: the same divergence of each label's Bernoulli, mean over labels too, so that
    it stands on the scale of binary cross-entropy. T^2 keeps the gradient's size as T grows (their section 2.1).
    """
    student, teacher = logits / temperature, teacher_logits / temperature
    if multi_label:
        target = teacher.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(teacher, target)
        return temperature**2 * (F.binary_cross_entropy_with_logits(student, target) - entropy)
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
    """Hinton et al. (2015): alpha * T^2 * KL(teacher || student) + (1 - alpha) * hard-label loss; with alpha 0 it needs
    no teacher."""
    if not alpha:
        return hard_label_loss(logits, labels, weights)
    soft = soft_label_loss(logits, teacher_logits, temperature, multi_label=labels.ndim == 2)
    return alpha * soft + (1 - alpha) * hard_label_loss(logits, labels, weights)


def over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [rows, tokens, ...] over the real tokens of `mask` [rows, tokens] and all that follows."""
    return values[mask.bool()].mean()


def wide(values: Tensor) -> Tensor:
    """Half-precision values in float32; wider ones as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def hidden_loss(student: States, teacher: States, mask: Tensor) -> Tensor:
    """Jiao et al. (2020, TinyBERT), equation 8: mean squared error of hidden states, mean over paired layers.

    `mask` [rows, tokens] is 1 at real tokens; padding does not count.
    """
    pairs = zip(student.hidden, teacher.hidden, strict=True)
    return torch.stack(
        [over_tokens((wide(one) - wide(other)) ** 2, mask) for one, other in pairs]
    ).mean()


def attention_loss(student: States, teacher: States, mask: Tensor) -> Tensor:
    """Jiao et al. (2020, TinyBERT), equation 7: mean squared error of attention scores before softmax, mean over
    paired layers, heads and pairs of real tokens of `mask` [rows, tokens]."""
    both = (mask[:, :, None] * mask[:, None, :]).bool()
    pairs = zip(student.scores, teacher.scores, strict=True)
    errors = [((wide(one) - wide(other)) ** 2).mean(dim=1)[both].mean() for one, other in pairs]
    return torch.stack(errors).mean()


def relation_loss(student: States, teacher: States, mask: Tensor) -> Tensor:
    """Wang et al. (2021, MiniLMv2), equations 1 to 3: KL(teacher || student) of the self-attention relations among
    queries, among keys and among values; mean over the three, relation heads and real tokens of `mask` [rows, tokens].
    Both have as many relation heads; widths may differ.
    """
    parts = []
    for one, other in zip(student.relations, teacher.relations, strict=True):
        ours, theirs = (relation(wide(vectors), mask) for vectors in (one, other))
        divergence = (
            (theirs.exp() * (theirs - ours)).masked_fill(mask[:, None, None, :] == 0, 0.0).sum(-1)
        )
        parts.append(over_tokens(divergence.transpose(1, 2), mask))
    return torch.stack(parts).mean()


def relation(vectors: Tensor, mask: Tensor) -> Tensor:
    """log softmax(V V^T / sqrt(d)) over real tokens, of `vectors` V [rows, heads, tokens, d]: [rows, heads, tokens,
    tokens]; at padding a large negative number."""
    scores = vectors @ vectors.transpose(-1, -2) / vectors.shape[-1] ** 0.5
    return scores.masked_fill(
        mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min / 2
    ).log_softmax(-1)


def state_loss(student: States, teacher: States, mask: Tensor, names: tuple[str, ...]) -> Tensor:
    """The sum of the losses on states in `names`, such as KD_LOSSES[method]; at least one."""
    return sum(STATE_LOSSES[name](student, teacher, mask) for name in names)


STATE_LOSSES = {"hidden": hidden_loss, "attention": attention_loss, "relation": relation_loss}

KD_LOSSES = {  # --kd_method -> the losses of states that join the loss of logits
    "logit": (),
    "hidden": ("hidden",),
    "attention": ("attention",),
    "relation": ("relation",),
    "multi_level": ("hidden", "attention", "relation"),
}


def balanced_weights(labels: Tensor, label_count: int) -> Tensor:
    """Weights [labels] that let rare labels count as much as common ones.

    Class ids [rows]: rows / (classes * rows of the class). 0/1 [rows, labels]: negatives / positives of the label.
    """
    if labels.ndim == 1:
        counts = torch.bincount(labels, minlength=label_count).clamp(min=1)
        return len(labels) / (label_count * counts)
    positives = labels.sum(0).clamp(min=1)
    return (len(labels) - positives) / positives
