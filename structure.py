"""Stages `start`, `trim` and `narrow`: what a student starts from, with fewer tokens and a narrower feed-forward block.

Both make shapes that plain `from_pretrained` reads, and both come before distillation, so that training is cheaper
too; without distillation they act on the fine-tuned teacher. Kept tokens keep their order.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    set_seed,
)

from calibration import calibration_texts, input_norms, text_batches
from compression_config import NarrowOptions, StudentOptions, TrimOptions, UserError
from data import labelled_rows
from encoders import (
    Task,
    encoder_layers,
    ffn_width,
    is_attention,
    positions_before_text,
    set_ffn_width_,
    start_student,
)
from training import save_model
from vocabulary import bare_backend, chosen_tokens, trimmed_tokenizer, unknown_token, usage

log = logging.getLogger(__name__)

CHUNK = 10_000  # texts that are tokenized together
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id",
             "unk_token_id")  # fmt: skip


def start(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: StudentOptions) -> Path:
    """Stage `start`: what `--student_path` names, as it is before any training."""
    set_seed(options.seed)
    texts = labelled_rows(splits["train"])[:]["text"]
    student, tokenizer = start_student(options.student_path, model_in, task, texts, options.max_length,
                                       own_tokenizer=options.student_tokenizer == "own")  # fmt: skip
    return save_model(student, tokenizer, out_dir)


def texts_of(split: Dataset) -> Iterator[list[str]]:
    """The texts of a split, a chunk at a time."""
    for first in range(0, len(split), CHUNK):
        yield split[first : first + CHUNK]["text"]


@torch.no_grad()
def keep_rows_(model: PreTrainedModel, kept: list[int]) -> None:
    """Keep the rows `kept` of the token embedding, in place; the ids in the config follow."""
    old, new, config = model.get_input_embeddings(), {before: row for row, before in enumerate(kept)}, model.config
    embedding = nn.Embedding(len(kept), old.embedding_dim, padding_idx=new.get(old.padding_idx))
    rows = nn.functional.pad(old.weight, (0, 0, 0, max(0, kept[-1] + 1 - old.num_embeddings)))  # of added tokens
    embedding.weight.copy_(rows[kept])
    model.set_input_embeddings(embedding)
    config.vocab_size = len(kept)
    for name in TOKEN_IDS:
        if (number := getattr(config, name, None)) is not None:
            setattr(config, name, new.get(number))


def unknown_rate(backend: Tokenizer, split: Dataset) -> float:
    """Share of the tokens of a split's texts that stand for what the tokenizer does not know."""
    unknown = backend.token_to_id(unknown_token(backend) or "")
    encodings = (one for texts in texts_of(split) for one in backend.encode_batch_fast(texts, add_special_tokens=False))
    ids = [number for encoding in encodings for number in encoding.ids]
    return ids.count(unknown) / max(1, len(ids))


def check_lossless(before: Tokenizer, after: Tokenizer, kept: list[int], split: Dataset) -> None:
    """Stop where a text of the split is cut into other tokens than before; `kept` are the old ids of the new ones."""
    for texts in texts_of(split):
        pairs = zip(before.encode_batch_fast(texts), after.encode_batch_fast(texts), texts, strict=True)
        differing = [text for one, other, text in pairs if one.ids != [kept[new] for new in other.ids]]
        if differing:
            raise RuntimeError(f"the trimmed vocabulary cuts {len(differing)} texts otherwise: {differing[0]!r}")


def trim(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: TrimOptions) -> Path:
    """Stage `trim`: keep the tokens that the training texts, unlabeled ones among them, need."""
    model, tokenizer = (kind.from_pretrained(model_in) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    backend = bare_backend(tokenizer)
    used = usage(backend, texts_of(splits["train"]))
    always = {*tokenizer.all_special_ids, *range(positions_before_text(model.config))}
    kept = chosen_tokens(backend, used, options.trim_vocab, always)
    trimmed = trimmed_tokenizer(tokenizer, kept)
    if options.trim_vocab == "used":
        check_lossless(backend, bare_backend(trimmed), kept, splits["train"])
    unknown = [unknown_rate(one, splits["validation"]) for one in (backend, bare_backend(trimmed))]
    log.info("vocabulary: %d of %d tokens, %.2f %% of their occurrences in training texts; unknown in validation "
             "texts: %.3f %%, before %.3f %%", len(kept), len(tokenizer), 100 * used.counts[kept].sum() /
             used.counts.sum(), 100 * unknown[1], 100 * unknown[0])  # fmt: skip
    keep_rows_(model, kept)
    return save_model(model, trimmed, out_dir)


def feed_forward(model: PreTrainedModel) -> dict[str, tuple[nn.Linear, nn.Linear]]:
    """Full name of the second Linear of each layer's feed-forward block -> the first [neurons, hidden] and the second
    [hidden, neurons]."""
    prefix, layers = encoder_layers(model)
    found = {}
    for number, layer in enumerate(layers):
        block = {name: module for name, module in layer.named_modules()
                 if isinstance(module, nn.Linear) and not is_attention(f".{name}")}  # fmt: skip
        if len(block) != 2 or any(linear.bias is None for linear in block.values()):
            raise UserError(f"--ffn_width is given, but a {model.config.model_type} layer's feed-forward block is not "
                            "two Linears with biases")  # fmt: skip
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


def narrow_to_(model: PreTrainedModel, norms: dict[str, Tensor], width: int) -> None:
    """Keep the `width` most important neurons of every feed-forward block, in their order; the config follows."""
    for name, (up, down) in feed_forward(model).items():
        importance = neuron_importance(down.weight.detach().cpu(), norms[name])
        keep_neurons_(up, down, importance.topk(width).indices.sort().values.to(down.weight.device))
    set_ffn_width_(model.config, width)


def width_asked(ffn_width: float, whole: int) -> int:
    """`--ffn_width` in neurons: a number as it is, a share below 1 of the `whole` width."""
    return max(1, round(ffn_width * whole)) if ffn_width < 1 else int(ffn_width)


def narrow_blocks(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: NarrowOptions) -> Path:
    """Stage `narrow`: a narrower feed-forward block in every layer, for the training that follows to make good."""
    model = AutoModelForSequenceClassification.from_pretrained(model_in).to(options.device)
    tokenizer = AutoTokenizer.from_pretrained(model_in)
    texts = calibration_texts(labelled_rows(splits["train"]), options.calibration_samples, options.seed)
    batches = text_batches(texts, tokenizer, options.max_length, options.batch, options.device)
    norms = input_norms(model, {name: down for name, (_, down) in feed_forward(model).items()}, batches)
    whole = ffn_width(model.config)
    width = width_asked(options.ffn_width, whole)
    narrow_to_(model, norms, width)
    log.info("feed-forward width: %d of %d neurons a layer", width, whole)
    return save_model(model, tokenizer, out_dir)
