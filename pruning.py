"""Stage `prune`: set the least important weights of every encoder Linear to zero, then recover with the zeros held.

Embeddings, pooler and head are never pruned.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import DatasetDict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from calibration import calibration_texts, input_norms, text_batches
from compression_config import PruneOptions
from data import labelled_rows
from encoders import Task, encoder_linears, is_attention
from masks import HoldZeros, check_zeros, masks_of, sparsity_of, zeros_in
from ranks import is_first, told_by_first
from training import save_model, soft_target_loss, train_

log = logging.getLogger(__name__)

Scorer = Callable[[Tensor, Tensor | None], Tensor]  # (weight [out, in], input norm [in]) -> score [out, in]
MASK_UPDATES = 32  # how often a cubic schedule prunes on its way
RAMP = 0.5  # share of the steps of recovery in which it gets there


def magnitude(weight: Tensor, input_norm: Tensor | None = None) -> Tensor:
    """|W| (Han et al. 2015, section 3)."""
    return weight.abs()


def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2 (Sun et al. 2023, equation 1)."""
    return weight.abs() * input_norm


SCORERS: dict[str, Scorer] = {"magnitude": magnitude, "wanda": wanda}


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` lowest of each row of `scores` [rows, n]; of equal ones the first go."""
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    gone, equal = scores < threshold, scores == threshold
    left = count - gone.sum(dim=1, keepdim=True)
    for row in (equal.sum(dim=1, keepdim=True) > left).nonzero()[:, 0]:
        equal[row] &= equal[row].cumsum(dim=0) <= left[row]
    return gone | equal


def linears_to_prune(model: PreTrainedModel, which: str) -> dict[str, nn.Linear]:
    """The encoder Linears that `--prune_layers` names: all, attention or ffn."""
    wanted = {"all": lambda name: True, "attention": is_attention, "ffn": lambda name: not is_attention(name)}[which]
    return {name: linear for name, linear in encoder_linears(model).items() if wanted(name)}


def compared(linears: dict[str, nn.Linear], scope: str) -> list[dict[str, nn.Linear]]:
    """The Linears whose scores are compared with one another: each alone, or all under `global`."""
    return [linears] if scope == "global" else [{name: linear} for name, linear in linears.items()]


@torch.no_grad()
def prune_(linears: dict[str, nn.Linear], method: str, sparsity: float, scope: str, norms: dict[str, Tensor]) -> None:
    """Set the round(sparsity * n) lowest scores to zero, in place: of the n inputs of each output row, of the n weights
    of each layer, or of all n weights, as `scope` says. `norms` holds input norms [in] by layer name (unused by
    magnitude). The scores of one layer are in memory at once; under `global` those of all."""
    for part in compared(linears, scope):
        scores = [SCORERS[method](linear.weight, norms[name].to(linear.weight.device) if norms else None)
                  for name, linear in part.items()]  # fmt: skip
        if scope != "row":
            scores = [torch.cat([score.flatten() for score in scores])[None]]
        gone = lowest(scores[0], round(sparsity * scores[0].shape[1]))
        for linear, chosen in zip(part.values(), gone.flatten().split([one.weight.numel() for one in part.values()]),
                                  strict=True):  # fmt: skip
            linear.weight.masked_fill_(chosen.view_as(linear.weight), 0)


def promised(linears: dict[str, nn.Linear], sparsity: float, scope: str) -> int:
    """How many zeros `prune_` promises at least."""
    if scope == "row":
        return sum(linear.out_features * round(sparsity * linear.in_features) for linear in linears.values())
    counts = [sum(linear.weight.numel() for linear in part.values()) for part in compared(linears, scope)]
    return sum(round(sparsity * count) for count in counts)


def cubic(step: int, ramp: int, final: float) -> float:
    """Zhu & Gupta (2017), equation 1, from 0: s_f - s_f * (1 - t / ramp)^3 after step t, s_f from `ramp` on."""
    return final - final * (1 - min(step / ramp, 1.0)) ** 3


class HoldPruned(HoldZeros):
    """Under the cubic schedule more weights go every few steps of the first half of recovery. What is zero tells what
    is masked, so a killed recovery goes on with the masks that it had."""

    def __init__(self, pruner: "Pruner", gradual: bool):
        super().__init__(pruner.linears)
        self.pruner, self.gradual = pruner, gradual

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Set the zeros back; then prune further if it is time."""
        super().on_optimizer_step(args, state, control, **kwargs)
        step, ramp = state.global_step + 1, ramp_steps(state.max_steps)
        if self.gradual and (step == ramp or (step < ramp and step % max(1, ramp // MASK_UPDATES) == 0)):
            self.pruner.prune_to(cubic(step, ramp, self.pruner.sparsity))
            self.masks = masks_of(self.linears)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Check that the zeros are there, once all of them must be."""
        if not self.gradual or state.global_step >= ramp_steps(state.max_steps):
            self.pruner.check(f"after epoch {state.epoch:g}")


def ramp_steps(steps: int) -> int:
    """The steps of a recovery after which a cubic schedule has reached its sparsity: half of them."""
    return max(1, round(RAMP * steps))


@dataclass(frozen=True)
class Pruner:
    """What is pruned, how, and how far; `norms` as `prune_` takes them."""

    linears: dict[str, nn.Linear]
    method: str
    sparsity: float
    scope: str
    norms: dict[str, Tensor]

    def prune_to(self, sparsity: float) -> None:
        """Prune the Linears in place."""
        prune_(self.linears, self.method, sparsity, self.scope, self.norms)

    def check(self, when: str, weights: Iterable[Tensor] | None = None) -> None:
        """Stop the run where fewer zeros than promised are in `weights`, by default the Linears' own."""
        weights = [linear.weight for linear in self.linears.values()] if weights is None else weights
        check_zeros(zeros_in(weights), promised(self.linears, self.sparsity, self.scope), when)


def calibrated_norms(
    model: PreTrainedModel, linears: dict[str, nn.Linear], tokenizer: PreTrainedTokenizerBase, texts: list[str],
    options: PruneOptions,
) -> dict[str, Tensor]:  # fmt: skip
    """Input norms that the method needs; none for magnitude."""
    if options.prune_method == "magnitude":
        return {}
    model.to(options.device)
    batches = text_batches(texts, tokenizer, options.max_length, options.batch, options.device)
    return input_norms(model, linears, batches)


def saved_weights(directory: Path, names: Iterable[str]) -> list[Tensor]:
    """The weights of the named Linears, as the files in `directory` hold them."""
    tensors: dict[str, Tensor] = {}
    for path in directory.glob("model*.safetensors"):
        tensors |= load_file(path)
    return [tensors[f"{name}.weight"] for name in names]


def prune(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: PruneOptions) -> Path:
    """Score, mask, recover and check; the splits carry `teacher_logits`."""
    set_seed(options.seed)
    model = AutoModelForSequenceClassification.from_pretrained(model_in)
    tokenizer = AutoTokenizer.from_pretrained(model_in)
    texts = calibration_texts(labelled_rows(splits["train"]), options.calibration_samples, options.seed)
    linears = linears_to_prune(model, options.prune_layers)
    norms = told_by_first(lambda: calibrated_norms(model, linears, tokenizer, texts, options))
    pruner = Pruner(linears, options.prune_method, options.prune_sparsity, options.prune_scope, norms)
    gradual = options.prune_schedule == "cubic"
    if not gradual:
        pruner.prune_to(options.prune_sparsity)
        pruner.check("after masking")
    if options.fine_tune_epochs:
        train_(model, tokenizer, splits, out_dir, options, epochs=options.fine_tune_epochs, lr=options.lr,
               loss=soft_target_loss(splits, task, options), callbacks=(HoldPruned(pruner, gradual),),
               settle=RAMP if gradual else 0.0)  # fmt: skip
    save_model(model, tokenizer, out_dir)
    if is_first():
        pruner.check(f"in {out_dir}", saved_weights(out_dir, linears))
    log.info("sparsity %.4f over %d Linears", sparsity_of(linears), len(linears))
    return out_dir
