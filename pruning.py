"""Stage `prune`: set the least important weights of every encoder Linear to zero, then recover with the zeros held.

Embeddings, pooler and head are never pruned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from compression_config import Options, UserError
from data import labelled_rows
from encoders.calibration import calibration_texts, input_norms, token_batches_of
from encoders.families import (
    encoder_layers,
    encoder_linears,
    ffn_width,
    is_attention,
    positions_before_text,
    set_ffn_width_,
)
from encoders.sparsity import KeepZeros, check_zero_count, count_zeros, nonzero_masks, sparsity
from encoders.start import save_model
from encoders.vocabulary import (
    choose_tokens,
    count_usage,
    plain_backend,
    trimmed_tokenizer,
    unknown_token,
)
from runtime.distributed import broadcast_from_main, is_main_process
from task import Task
from training import soft_target_loss, train_

log = logging.getLogger(__name__)

CHUNK = 10_000  # texts that are tokenized together

TOKEN_IDS = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "cls_token_id",
    "sep_token_id",
    "mask_token_id",
    "unk_token_id",
)


def text_chunks(split: Dataset) -> Iterator[list[str]]:
    """The texts of a split, a chunk at a time."""
    for first in range(0, len(split), CHUNK):
        yield split[first : first + CHUNK]["text"]


@torch.no_grad()
def keep_embedding_rows_(model: PreTrainedModel, kept: list[int]) -> None:
    """Keep the rows `kept` of the token embedding, in place; the ids in the config follow."""
    old, new, config = (
        model.get_input_embeddings(),
        {before: row for row, before in enumerate(kept)},
        model.config,
    )
    embedding = nn.Embedding(len(kept), old.embedding_dim, padding_idx=new.get(old.padding_idx))
    rows = nn.functional.pad(
        old.weight, (0, 0, 0, max(0, kept[-1] + 1 - old.num_embeddings))
    )  # of added tokens
    embedding.weight.copy_(rows[kept])
    model.set_input_embeddings(embedding)
    config.vocab_size = len(kept)
    for name in TOKEN_IDS:
        if (number := getattr(config, name, None)) is not None:
            setattr(config, name, new.get(number))


def unknown_rate(backend: Tokenizer, split: Dataset) -> float:
    """Share of the tokens of a split's texts that stand for what the tokenizer does not know."""
    unknown = backend.token_to_id(unknown_token(backend) or "")
    encodings = (
        one
        for texts in text_chunks(split)
        for one in backend.encode_batch_fast(texts, add_special_tokens=False)
    )
    ids = [number for encoding in encodings for number in encoding.ids]
    return ids.count(unknown) / max(1, len(ids))


def check_same_tokens(before: Tokenizer, after: Tokenizer, kept: list[int], split: Dataset) -> None:
    """Stop where a text of the split is cut into other tokens than before; `kept` are the old ids of the new ones."""
    for texts in text_chunks(split):
        pairs = zip(
            before.encode_batch_fast(texts), after.encode_batch_fast(texts), texts, strict=True
        )
        differing = [
            text for one, other, text in pairs if one.ids != [kept[new] for new in other.ids]
        ]
        if differing:
            raise RuntimeError(
                f"the trimmed vocabulary cuts {len(differing)} texts otherwise: {differing[0]!r}"
            )


def trim_vocabulary(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `trim`: keep the tokens that the training texts, unlabeled ones among them, need."""
    model, tokenizer = (
        kind.from_pretrained(model_in)
        for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    backend = plain_backend(tokenizer)
    used = count_usage(backend, text_chunks(splits["train"]))
    always = {*tokenizer.all_special_ids, *range(positions_before_text(model.config))}
    kept = choose_tokens(backend, used, options.trim_vocab, always)
    trimmed = trimmed_tokenizer(tokenizer, kept)
    if options.trim_vocab == "used":
        check_same_tokens(backend, plain_backend(trimmed), kept, splits["train"])
    unknown = [unknown_rate(one, splits["validation"]) for one in (backend, plain_backend(trimmed))]
    log.info(
        "vocabulary: %d of %d tokens, %.2f %% of their occurrences in training texts; unknown in validation "
        "texts: %.3f %%, before %.3f %%",
        len(kept),
        len(tokenizer),
        100 * used.counts[kept].sum() / used.counts.sum(),
        100 * unknown[1],
        100 * unknown[0],
    )
    keep_embedding_rows_(model, kept)
    return save_model(model, trimmed, out_dir)


def ffn_linears(model: PreTrainedModel) -> dict[str, tuple[nn.Linear, nn.Linear]]:
    """Full name of the second Linear of each layer's feed-forward block -> the first [neurons, hidden] and the second
    [hidden, neurons]."""
    prefix, layers = encoder_layers(model)
    found = {}
    for number, layer in enumerate(layers):
        block = {
            name: module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and not is_attention(f".{name}")
        }
        if len(block) != 2 or any(linear.bias is None for linear in block.values()):
            raise UserError(
                f"--ffn_width is given, but a {model.config.model_type} layer's feed-forward block is not "
                "two Linears with biases"
            )
        found[f"{prefix}.{number}.{list(block)[1]}"] = tuple(block.values())
    return found


def neuron_importance(down: Tensor, norm: Tensor) -> Tensor:
    """||a_j||_2 * ||W_:j||_2 [neurons]: what neuron j adds to the block's output over the calibration texts, if neurons
    were independent. `down` is W [hidden, neurons], `norm` ||a_j||_2 of the activations that reach it."""
    return norm * down.norm(dim=0)


@torch.no_grad()
def keep_neurons_(up: nn.Linear, down: nn.Linear, kept: Tensor) -> None:
    """Keep the neurons `kept` of a feed-forward block, in place."""
    up.weight, up.bias = (nn.Parameter(part.data[kept]) for part in (up.weight, up.bias))
    down.weight = nn.Parameter(down.weight.data[:, kept])
    up.out_features = down.in_features = len(kept)


def keep_important_neurons_(model: PreTrainedModel, norms: dict[str, Tensor], width: int) -> None:
    """Keep the `width` most important neurons of every feed-forward block, in their order; the config follows."""
    for name, (up, down) in ffn_linears(model).items():
        importance = neuron_importance(down.weight.detach().cpu(), norms[name])
        keep_neurons_(up, down, importance.topk(width).indices.sort().values.to(down.weight.device))
    set_ffn_width_(model.config, width)


def target_width(ffn_width: float, whole: int) -> int:
    """`--ffn_width` in neurons: a number as it is, a share below 1 of the `whole` width."""
    return max(1, round(ffn_width * whole)) if ffn_width < 1 else int(ffn_width)


def narrow_ffn(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `narrow`: a narrower feed-forward block in every layer, for the training that follows to make good."""
    model = AutoModelForSequenceClassification.from_pretrained(model_in).to(options.device)
    tokenizer = AutoTokenizer.from_pretrained(model_in)
    texts = calibration_texts(
        labelled_rows(splits["train"]), options.calibration_samples, options.seed
    )
    batches = token_batches_of(texts, tokenizer, options.max_length, options.batch, options.device)
    norms = input_norms(
        model, {name: down for name, (_, down) in ffn_linears(model).items()}, batches
    )
    whole = ffn_width(model.config)
    width = target_width(options.ffn_width, whole)
    keep_important_neurons_(model, norms, width)
    log.info("feed-forward width: %d of %d neurons a layer", width, whole)
    return save_model(model, tokenizer, out_dir)


Scorer = Callable[
    [Tensor, Tensor | None], Tensor
]  # (weight [out, in], input norm [in]) -> score [out, in]

MASK_UPDATES = 32  # how often a cubic schedule prunes on its way

RAMP = 0.5  # share of the steps of recovery in which it gets there


def magnitude(weight: Tensor, input_norm: Tensor | None = None) -> Tensor:
    """|W| (Han et al. 2015, section 3)."""
    return weight.abs()


def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2 (Sun et al. 2023, equation 1)."""
    return weight.abs() * input_norm


SCORERS: dict[str, Scorer] = {"magnitude": magnitude, "wanda": wanda}


def lowest_mask(scores: Tensor, count: int) -> Tensor:
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
    wanted = {
        "all": lambda name: True,
        "attention": is_attention,
        "ffn": lambda name: not is_attention(name),
    }[which]
    return {name: linear for name, linear in encoder_linears(model).items() if wanted(name)}


def compared(linears: dict[str, nn.Linear], scope: str) -> list[dict[str, nn.Linear]]:
    """The Linears whose scores are compared with one another: each alone, or all under `global`."""
    return [linears] if scope == "global" else [{name: linear} for name, linear in linears.items()]


@torch.no_grad()
def prune_(
    linears: dict[str, nn.Linear],
    method: str,
    sparsity: float,
    scope: str,
    norms: dict[str, Tensor],
) -> None:
    """Set the round(sparsity * n) lowest scores to zero, in place: of the n inputs of each output row, of the n weights
    of each layer, or of all n weights, as `scope` says. `norms` holds input norms [in] by layer name (unused by
    magnitude). The scores of one layer are in memory at once; under `global` those of all."""
    for part in compared(linears, scope):
        scores = [
            SCORERS[method](linear.weight, norms[name].to(linear.weight.device) if norms else None)
            for name, linear in part.items()
        ]
        if scope != "row":
            scores = [torch.cat([score.flatten() for score in scores])[None]]
        gone = lowest_mask(scores[0], round(sparsity * scores[0].shape[1]))
        for linear, chosen in zip(
            part.values(),
            gone.flatten().split([one.weight.numel() for one in part.values()]),
            strict=True,
        ):
            linear.weight.masked_fill_(chosen.view_as(linear.weight), 0)


def promised_zeros(linears: dict[str, nn.Linear], sparsity: float, scope: str) -> int:
    """How many zeros `prune_` promises at least."""
    if scope == "row":
        return sum(
            linear.out_features * round(sparsity * linear.in_features)
            for linear in linears.values()
        )
    counts = [
        sum(linear.weight.numel() for linear in part.values()) for part in compared(linears, scope)
    ]
    return sum(round(sparsity * count) for count in counts)


def cubic_sparsity(step: int, ramp: int, final: float) -> float:
    """Zhu & Gupta (2017), equation 1, from 0: s_f - s_f * (1 - t / ramp)^3 after step t, s_f from `ramp` on."""
    return final - final * (1 - min(step / ramp, 1.0)) ** 3


class KeepPruned(KeepZeros):
    """Under the cubic schedule more weights go every few steps of the first half of recovery. What is zero tells what
    is masked, so a killed recovery goes on with the masks that it had."""

    def __init__(self, pruner: "Pruner", gradual: bool):
        super().__init__(pruner.linears)
        self.pruner, self.gradual = pruner, gradual

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Set the zeros back; then prune further if it is time."""
        super().on_optimizer_step(args, state, control, **kwargs)
        step, ramp = state.global_step + 1, ramp_steps(state.max_steps)
        if self.gradual and (
            step == ramp or (step < ramp and step % max(1, ramp // MASK_UPDATES) == 0)
        ):
            self.pruner.prune_to(cubic_sparsity(step, ramp, self.pruner.sparsity))
            self.masks = nonzero_masks(self.linears)

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
        weights = (
            [linear.weight for linear in self.linears.values()] if weights is None else weights
        )
        check_zero_count(
            count_zeros(weights), promised_zeros(self.linears, self.sparsity, self.scope), when
        )


def calibration_norms(
    model: PreTrainedModel,
    linears: dict[str, nn.Linear],
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    options: Options,
) -> dict[str, Tensor]:
    """Input norms that the method needs; none for magnitude."""
    if options.prune_method == "magnitude":
        return {}
    model.to(options.device)
    batches = token_batches_of(texts, tokenizer, options.max_length, options.batch, options.device)
    return input_norms(model, linears, batches)


def saved_weights(directory: Path, names: Iterable[str]) -> list[Tensor]:
    """The weights of the named Linears, as the files in `directory` hold them."""
    tensors: dict[str, Tensor] = {}
    for path in directory.glob("model*.safetensors"):
        tensors |= load_file(path)
    return [tensors[f"{name}.weight"] for name in names]


def prune(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options) -> Path:
    """Score, mask, recover and check; the splits carry `teacher_logits`."""
    set_seed(options.seed)
    model = AutoModelForSequenceClassification.from_pretrained(model_in)
    tokenizer = AutoTokenizer.from_pretrained(model_in)
    texts = calibration_texts(
        labelled_rows(splits["train"]), options.calibration_samples, options.seed
    )
    linears = linears_to_prune(model, options.prune_layers)
    norms = broadcast_from_main(
        lambda: calibration_norms(model, linears, tokenizer, texts, options)
    )
    pruner = Pruner(
        linears, options.prune_method, options.prune_sparsity, options.prune_scope, norms
    )
    gradual = options.prune_schedule == "cubic"
    if not gradual:
        pruner.prune_to(options.prune_sparsity)
        pruner.check("after masking")
    if options.fine_tune_epochs:
        train_(
            model,
            tokenizer,
            splits,
            out_dir,
            options,
            epochs=options.fine_tune_epochs,
            lr=options.lr,
            loss=soft_target_loss(splits, task, options),
            callbacks=(KeepPruned(pruner, gradual),),
            settle=RAMP if gradual else 0.0,
        )
    save_model(model, tokenizer, out_dir)
    if is_main_process():
        pruner.check(f"in {out_dir}", saved_weights(out_dir, linears))
    log.info("sparsity %.4f over %d Linears", sparsity(linears), len(linears))
    return out_dir
