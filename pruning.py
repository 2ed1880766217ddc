"""Pruning: the stages `trim`, `narrow` and `prune`.

`trim` and `narrow` are structured: they remove tokens from the vocabulary and neurons from the
feed-forward blocks, and the model becomes smaller and faster. `prune` is unstructured: it sets the
least important weights of the encoder's Linears to zero and fine-tunes the others (recovery).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from compression_config import Options
from data import labeled_rows
from encoders.calibration import calibration_texts, input_norms, token_batches_of
from encoders.families import (
    encoder_layers,
    encoder_linears,
    ffn_width,
    is_attention,
    linears_in,
    positions_before_text,
    set_ffn_width_,
)
from encoders.saved_models import load_saved_model, load_saved_tokenizer
from encoders.sparsity import KeepZeros, check_zero_count, count_zeros, nonzero_masks, sparsity
from encoders.start import save_model
from encoders.trimming import (
    check_same_tokens,
    keep_embedding_rows_,
    trimmed_tokenizer,
    unknown_rate,
)
from encoders.vocabulary import choose_tokens, count_usage, plain_backend
from runtime.distributed import broadcast_from_main, is_main_process
from runtime.errors import UserError
from runtime.finite import TRAINING_ADVICE, check_weights
from task import Task
from trainer import training_settings
from training import stage_loss, train_

log = logging.getLogger(__name__)


def labeled_sample(split: Dataset, count: int, seed: int) -> list[str]:
    """At most `count` labeled texts of the split for calibration, sampled with `seed`."""
    return calibration_texts(labeled_rows(split), count, seed)


# Stage `trim`: fewer tokens

TEXTS_PER_CHUNK = 10_000  # tokenized together


def text_chunks(split: Dataset) -> Iterator[list[str]]:
    """The texts of a split, in lists of at most TEXTS_PER_CHUNK."""
    for start in range(0, len(split), TEXTS_PER_CHUNK):
        yield split[start : start + TEXTS_PER_CHUNK]["text"]


def trim_vocabulary(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `trim`: keep only the tokens that the training texts need, unlabeled ones included."""
    model = load_saved_model(model_in)
    tokenizer = load_saved_tokenizer(model_in)
    backend = plain_backend(tokenizer)
    usage = count_usage(backend, text_chunks(splits["train"]))
    always = {*tokenizer.all_special_ids, *range(positions_before_text(model.config))}
    kept_ids = choose_tokens(backend, usage, options.trim_vocab, always)

    trimmed = trimmed_tokenizer(tokenizer, kept_ids)
    trimmed_backend = plain_backend(trimmed)
    if options.trim_vocab == "used":
        check_same_tokens(backend, trimmed_backend, kept_ids, text_chunks(splits["train"]))
    log.info(
        "vocabulary: kept %d of %d tokens, %.2f %% of the token occurrences in training texts; "
        "unknown tokens in validation texts: %.3f %%, before trimming %.3f %%",
        len(kept_ids),
        len(tokenizer),
        100 * usage.counts[kept_ids].sum() / usage.counts.sum(),
        100 * unknown_rate(trimmed_backend, text_chunks(splits["validation"])),
        100 * unknown_rate(backend, text_chunks(splits["validation"])),
    )
    keep_embedding_rows_(model, kept_ids)
    return save_model(model, trimmed, out_dir)


# Stage `narrow`: fewer neurons in feed-forward blocks


def ffn_linears(model: PreTrainedModel) -> dict[str, tuple[nn.Linear, nn.Linear]]:
    """The two Linears of each layer's feed-forward block, by the full name of the second.

    Their weights are [neurons, hidden] and [hidden, neurons]. UserError if a block is different.
    """
    prefix, layers = encoder_layers(model)
    blocks = {}
    for layer_id, layer in enumerate(layers):
        block = {
            name: linear
            for name, linear in linears_in(layer).items()
            if not is_attention(f".{name}")
        }
        if len(block) != 2 or any(linear.bias is None for linear in block.values()):
            raise UserError(
                f"--ffn_width is given, but a {model.config.model_type} layer's feed-forward block "
                "is not two Linears with biases"
            )
        (_, up), (down_name, down) = block.items()
        blocks[f"{prefix}.{layer_id}.{down_name}"] = (up, down)
    return blocks


def neuron_importance(down: Tensor, norm: Tensor) -> Tensor:
    """||a_j||_2 * ||W_:j||_2 of each neuron j [neurons].

    This is the Frobenius norm of the neuron's contribution a_j W_:j^T to the block's output.
    `down` is W, the second weight [hidden, neurons]; `norm` is ||a_j||_2 [neurons] of the neuron's
    activations over all calibration tokens.
    """
    return norm * down.norm(dim=0)


@torch.no_grad()
def keep_neurons_(up: nn.Linear, down: nn.Linear, kept: Tensor) -> None:
    """Keep only the neurons with the indices `kept` of a feed-forward block, in place."""
    up.weight = nn.Parameter(up.weight.data[kept])
    up.bias = nn.Parameter(up.bias.data[kept])
    down.weight = nn.Parameter(down.weight.data[:, kept])
    up.out_features = len(kept)
    down.in_features = len(kept)


def keep_important_neurons_(model: PreTrainedModel, norms: dict[str, Tensor], width: int) -> None:
    """Keep only the `width` most important neurons of every feed-forward block, in place and in
    order.

    `norms` are the input norms of each block's second Linear, by its full name.
    """
    for name, (up, down) in ffn_linears(model).items():
        importance = neuron_importance(down.weight.detach().cpu(), norms[name])
        kept = importance.topk(width).indices.sort().values
        keep_neurons_(up, down, kept.to(down.weight.device))
    set_ffn_width_(model.config, width)


def target_width(requested: float, full_width: int) -> int:
    """`--ffn_width` in neurons: a value below 1 is a fraction of the full width."""
    if requested < 1:
        return max(1, round(requested * full_width))
    return int(requested)


def narrow_ffn(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `narrow`: keep the most important neurons of every layer's feed-forward block.

    A later stage trains the model and recovers the loss.
    """
    model = load_saved_model(model_in).to(options.device)
    tokenizer = load_saved_tokenizer(model_in)
    texts = labeled_sample(splits["train"], options.calibration_samples, options.seed)
    batches = token_batches_of(texts, tokenizer, options.max_length, options.batch, options.device)
    down_linears = {name: down for name, (_up, down) in ffn_linears(model).items()}
    norms = input_norms(model, down_linears, batches)
    full_width = ffn_width(model.config)
    width = target_width(options.ffn_width, full_width)
    keep_important_neurons_(model, norms, width)
    log.info("feed-forward width: kept %d of %d neurons per layer", width, full_width)
    return save_model(model, tokenizer, out_dir)


# Stage `prune`: scores and masks

# (weight [out, in], input norms [in] or None) -> scores [out, in]
Scorer = Callable[[Tensor, Tensor | None], Tensor]


def magnitude(weight: Tensor, input_norm: Tensor | None = None) -> Tensor:
    """|W_ij| (Han et al. 2015, section 3)."""
    return weight.abs()


def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2 (Sun et al. 2023, equation 1)."""
    return weight.abs() * input_norm


SCORERS: dict[str, Scorer] = {"magnitude": magnitude, "wanda": wanda}


def lowest_mask(scores: Tensor, count: int) -> Tensor:
    """True at the `count` lowest of each row of `scores` [rows, n]; the first of equal ones."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    lower = scores < threshold
    equal = scores == threshold
    missing = count - lower.sum(dim=1, keepdim=True)  # to be taken from the equal ones [rows, 1]
    has_too_many = equal.sum(dim=1, keepdim=True) > missing
    for row in has_too_many[:, 0].nonzero()[:, 0]:
        equal[row] &= equal[row].cumsum(dim=0) <= missing[row]
    return lower | equal


def linears_to_prune(model: PreTrainedModel, layers: str) -> dict[str, nn.Linear]:
    """Full name -> encoder Linear, for `--prune_layers` all, attention or ffn."""
    linears = encoder_linears(model)
    if layers == "all":
        return linears
    wants_attention = layers == "attention"
    return {
        name: linear for name, linear in linears.items() if is_attention(name) == wants_attention
    }


@torch.no_grad()
def prune_(
    linears: dict[str, nn.Linear], method: str, target_sparsity: float, norms: dict[str, Tensor]
) -> None:
    """Set the round(target_sparsity * in) lowest-scoring weights of each output row to zero, in
    place.

    `norms` are the input norms [in] by layer name; {} for the magnitude method. UserError if a
    score is not finite.
    """
    source = f"the scores of --prune_method {method}"
    for name, linear in linears.items():
        norm = norms[name].to(linear.weight.device) if norms else None
        scores = SCORERS[method](linear.weight, norm)
        check_weights({f"{name}.weight": scores}, source, TRAINING_ADVICE)
        pruned = lowest_mask(scores, round(target_sparsity * linear.in_features))
        linear.weight.masked_fill_(pruned, 0)


def required_zeros(linears: dict[str, nn.Linear], target_sparsity: float) -> int:
    """Number of zeros that `prune_` gives; there are more if weights were zero before."""
    zeros = 0
    for linear in linears.values():
        zeros += linear.out_features * round(target_sparsity * linear.in_features)
    return zeros


@dataclass(frozen=True)
class Pruner:
    """The Linears to prune, the method, and the final sparsity; `norms` as in `prune_`."""

    linears: dict[str, nn.Linear]
    method: str
    target_sparsity: float
    norms: dict[str, Tensor]

    def prune_to(self, sparsity: float) -> None:
        """Prune the Linears to a sparsity, in place."""
        prune_(self.linears, self.method, sparsity, self.norms)

    def check(self, weights: Iterable[Tensor], when: str) -> None:
        """Raise RuntimeError if the weights have fewer zeros than the final sparsity requires."""
        required = required_zeros(self.linears, self.target_sparsity)
        check_zero_count(count_zeros(weights), required, when)

    def check_model(self, when: str) -> None:
        """`check` the weights of the model."""
        self.check([linear.weight for linear in self.linears.values()], when)


# Stage `prune`: recovery

RAMP_FRACTION = 0.5  # fraction of recovery in which the cubic schedule prunes

MASK_UPDATES = 32  # of the cubic schedule, at most about


def cubic_sparsity(step: int, ramp_steps: int, final: float) -> float:
    """s_f - s_f * (1 - t / n)^3 after step t <= n = ramp_steps, then s_f.

    Zhu & Gupta (2017), equation 1, from an initial sparsity of 0.
    """
    progress = min(step / ramp_steps, 1.0)
    return final - final * (1 - progress) ** 3


def ramp_length(steps: int) -> int:
    """The step of a recovery of `steps` steps at which the cubic schedule reaches its sparsity."""
    return max(1, round(RAMP_FRACTION * steps))


def is_pruning_step(step: int, ramp_steps: int) -> bool:
    """Whether the cubic schedule prunes after this step: MASK_UPDATES times, and at the end."""
    interval = max(1, ramp_steps // MASK_UPDATES)
    return step == ramp_steps or (step < ramp_steps and step % interval == 0)


class KeepPruned(KeepZeros):
    """Keep pruned weights at zero during recovery; if `gradual`, prune more on a cubic schedule.

    The masks are read from the weights, so an interrupted recovery resumes with the same masks.
    """

    def __init__(self, pruner: Pruner, *, gradual: bool):
        super().__init__(pruner.linears)
        self.pruner = pruner
        self.gradual = gradual

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Set pruned weights back to zero, then prune more if the schedule says so."""
        super().on_optimizer_step(args, state, control, **kwargs)
        step = state.global_step + 1  # the Trainer counts this step later
        ramp_steps = ramp_length(state.max_steps)
        if self.gradual and is_pruning_step(step, ramp_steps):
            self.pruner.prune_to(cubic_sparsity(step, ramp_steps, self.pruner.target_sparsity))
            self.masks = nonzero_masks(self.linears)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Check the zeros, on a cubic schedule only after its last pruning step."""
        if not self.gradual or state.global_step >= ramp_length(state.max_steps):
            self.pruner.check_model(f"after epoch {state.epoch:g}")


# Stage `prune`


def scoring_norms(
    method: str,
    model: PreTrainedModel,
    linears: dict[str, nn.Linear],
    batches: Iterable[dict[str, Tensor]],
    device: str,
) -> dict[str, Tensor]:
    """The input norms [in] by layer name that the method needs; {} for magnitude."""
    if method == "magnitude":
        return {}
    return input_norms(model.to(device), linears, batches)


def saved_weights(directory: Path, names: Iterable[str]) -> list[Tensor]:
    """The weights of the named Linears, read from the safetensors files in `directory`."""
    tensors: dict[str, Tensor] = {}
    for path in directory.glob("model*.safetensors"):
        tensors |= load_file(path)
    return [tensors[f"{name}.weight"] for name in names]


def prune(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options) -> Path:
    """Stage `prune`: set weights to zero, recover, and check the zeros in the saved file.

    The splits have a column `teacher_logits` for recovery. With the schedule `oneshot`, the target
    sparsity is reached before recovery; with `cubic`, it is reached gradually during the first half
    of recovery.
    """
    set_seed(options.seed)
    model = load_saved_model(model_in)
    tokenizer = load_saved_tokenizer(model_in)
    texts = labeled_sample(splits["train"], options.calibration_samples, options.seed)
    batches = token_batches_of(texts, tokenizer, options.max_length, options.batch, options.device)
    linears = linears_to_prune(model, options.prune_layers)
    norms = broadcast_from_main(
        partial(scoring_norms, options.prune_method, model, linears, batches, options.device)
    )
    pruner = Pruner(linears, options.prune_method, options.prune_sparsity, norms)
    gradual = options.prune_schedule == "cubic"
    if not gradual:
        pruner.prune_to(options.prune_sparsity)
        pruner.check_model("after masking")
    if options.fine_tune_epochs:
        settings = training_settings(
            options,
            epochs=options.fine_tune_epochs,
            learning_rate=options.lr,
            min_best_fraction=RAMP_FRACTION if gradual else 0.0,
        )
        loss = stage_loss(splits, task, options)
        recovery = KeepPruned(pruner, gradual=gradual)
        train_(model, tokenizer, splits, out_dir, settings, loss=loss, callbacks=(recovery,))
    save_model(model, tokenizer, out_dir)
    if is_main_process():
        pruner.check(saved_weights(out_dir, linears), f"in {out_dir}")
    log.info("sparsity %.4f over %d Linears", sparsity(linears), len(linears))
    return out_dir
