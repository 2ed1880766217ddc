"""Stage `prune`: set the least important weights of every encoder Linear to zero, then recover with masks held.

Embeddings, pooler and head are never pruned. Scores are compared within each output row, for both methods.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import DatasetDict
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)

from calibration import calibration_texts, input_norms, text_batches
from compression_config import PruneOptions
from data import labelled_rows
from encoders import Task, encoder_linears, is_attention
from training import save_model, soft_target_loss, train_

log = logging.getLogger(__name__)

Scorer = Callable[[Tensor, Tensor | None], Tensor]  # (weight [out, in], input norm [in]) -> score [out, in]
Masks = dict[str, Tensor]  # layer name -> True where the weight is kept [out, in]


def magnitude(weight: Tensor, input_norm: Tensor | None = None) -> Tensor:
    """|W| (Han et al. 2015, section 3)."""
    return weight.abs()


def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2 (Sun et al. 2023, equation 1)."""
    return weight.abs() * input_norm


SCORERS: dict[str, Scorer] = {"magnitude": magnitude, "wanda": wanda}


def row_mask(scores: Tensor, sparsity: float) -> Tensor:
    """True for what stays: in each row of `scores` [out, in], the round(sparsity * in) lowest go."""
    drop = round(sparsity * scores.shape[1])
    lowest = scores.argsort(dim=1, stable=True)[:, :drop]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)


def linears_to_prune(model: PreTrainedModel, which: str) -> dict[str, nn.Linear]:
    """The encoder Linears that `--prune_layers` names: all, attention or ffn."""
    wanted = {"all": lambda name: True, "attention": is_attention, "ffn": lambda name: not is_attention(name)}[which]
    return {name: linear for name, linear in encoder_linears(model).items() if wanted(name)}


def make_masks(linears: dict[str, nn.Linear], method: str, sparsity: float, norms: dict[str, Tensor]) -> Masks:
    """One mask per Linear; `norms` holds input norms [in] by layer name (unused by magnitude)."""
    return {name: row_mask(SCORERS[method](linear.weight.detach().cpu(), norms.get(name)), sparsity)
            for name, linear in linears.items()}  # fmt: skip


@torch.no_grad()
def apply_masks_(model: PreTrainedModel, masks: Masks) -> None:
    """Set every masked weight to zero."""
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        weight.mul_(mask.to(weight.device))


def sparsity_of(model: PreTrainedModel, names: list[str]) -> float:
    """Share of zeros over the weights of the named Linears."""
    weights = [model.get_submodule(name).weight for name in names]
    return sum((weight == 0).sum().item() for weight in weights) / sum(weight.numel() for weight in weights)


class HoldMasks(TrainerCallback):
    """Zero the masked weights after every optimizer step, so that recovery cannot revive them."""

    def __init__(self, masks: Masks):
        self.masks = masks

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Weight decay and momentum moved them: set them back."""
        apply_masks_(model, self.masks)


def calibrated_norms(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], options: PruneOptions
) -> dict[str, Tensor]:
    """Input norms that the method needs; none for magnitude."""
    if options.prune_method == "magnitude":
        return {}
    model.to(options.device)
    return input_norms(model, text_batches(texts, tokenizer, options.max_length, options.batch, options.device))


def check_sparsity(model: PreTrainedModel, masks: Masks) -> float:
    """The sparsity reached over the masked Linears; stops the run where a masked weight is not zero."""
    wanted = sum((~mask).sum().item() for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    reached = sparsity_of(model, list(masks))
    if reached < wanted:
        raise RuntimeError(f"sparsity is {reached:.6f} after recovery, but the masks promise {wanted:.6f}")
    return reached


def recover_(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: DatasetDict, task: Task, out_dir: Path,
    options: PruneOptions, masks: Masks,
) -> None:  # fmt: skip
    """Distil the teacher's outputs into what is left, masks held."""
    train_(model, tokenizer, splits, out_dir, options, epochs=options.fine_tune_epochs, lr=options.lr,
           loss=soft_target_loss(splits, task, options), callbacks=(HoldMasks(masks),))  # fmt: skip


def prune(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: PruneOptions) -> Path:
    """Score, mask, recover and check; the splits carry `teacher_logits`."""
    set_seed(options.seed)
    model = AutoModelForSequenceClassification.from_pretrained(model_in)
    tokenizer = AutoTokenizer.from_pretrained(model_in)
    texts = calibration_texts(labelled_rows(splits["train"]), options.calibration_samples, options.seed)
    norms = calibrated_norms(model, tokenizer, texts, options)
    linears = linears_to_prune(model, options.prune_layers)
    masks = make_masks(linears, options.prune_method, options.prune_sparsity, norms)
    apply_masks_(model, masks)
    if options.fine_tune_epochs:
        recover_(model, tokenizer, splits, task, out_dir, options, masks)
    log.info("sparsity %.4f over %d Linears", check_sparsity(model, masks), len(masks))
    return save_model(model, tokenizer, out_dir)
