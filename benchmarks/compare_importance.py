"""Which neurons of the feed-forward blocks to keep: a comparison of four importance scores.

`python -m benchmarks.compare_importance MODEL CSV [options of main.py]`. MODEL is a fine-tuned
model, such as the teacher of a run. The scores are activation and weight norms (as `--ffn_width`
uses), Fisher information, weight norms only, and random. Halves and quarters the feed-forward width
with each score and prints macro-F1 on the validation rows without any training.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from datasets import DatasetDict
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from compression_config import Options
from data import label_array, load_splits
from encoders.calibration import input_norms
from encoders.families import ffn_width, set_ffn_width_
from engines.engine import load_engine, predict_logits
from losses import hard_label_loss
from metrics import macro_f1
from pruning import ffn_linears, keep_neurons_, neuron_importance
from runtime.command_line import parse_options
from task import Task, decide

SAMPLES = 512  # training texts that the scores are computed on
BATCH = 32
KEPT_FRACTIONS = (0.5, 0.25)

Batch = dict[
    str, Tensor
]  # input_ids, attention_mask [rows, tokens], labels [rows] or [rows, labels]
Scores = dict[str, Tensor]  # name of the second Linear of a block -> importance [neurons]


def without_labels(batch: Batch) -> Batch:
    """The inputs of the model."""
    return {name: values for name, values in batch.items() if name != "labels"}


def apply_mask(mask: Tensor, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A forward pre-hook that multiplies the neurons by `mask` [neurons]."""
    return (inputs[0] * mask,)


def fisher_information(model: PreTrainedModel, batches: list[Batch]) -> Scores:
    """Kwon et al. (2022), equation 8: squared gradients of the loss for a mask on each neuron.

    One gradient per text, summed over the texts.
    """
    scores: Scores = {}
    masks: dict[str, Tensor] = {}
    for name, (_, down) in ffn_linears(model).items():
        scores[name] = torch.zeros(down.in_features)
        masks[name] = torch.ones(down.in_features, requires_grad=True)
        down.register_forward_pre_hook(partial(apply_mask, masks[name]))
    for batch in batches:
        for row in range(len(batch["labels"])):
            length = int(batch["attention_mask"][row].sum())
            text = {
                name: values[row : row + 1, :length]
                for name, values in without_labels(batch).items()
            }
            loss = hard_label_loss(model(**text).logits, batch["labels"][row : row + 1])
            gradients = torch.autograd.grad(loss, list(masks.values()))
            for name, gradient in zip(masks, gradients, strict=True):
                scores[name] += gradient**2
    return scores


def activation_and_weight_norms(model: PreTrainedModel, batches: list[Batch]) -> Scores:
    """The score of the stage `narrow`."""
    downs = {name: down for name, (_, down) in ffn_linears(model).items()}
    norms = input_norms(model, downs, [without_labels(batch) for batch in batches])
    scores = {}
    for name, down in downs.items():
        scores[name] = neuron_importance(down.weight.detach(), norms[name])
    return scores


def weight_norms(model: PreTrainedModel, batches: list[Batch]) -> Scores:
    """Norm of a neuron's incoming weights times the norm of its outgoing weights."""
    scores = {}
    for name, (up, down) in ffn_linears(model).items():
        scores[name] = up.weight.detach().norm(dim=1) * down.weight.detach().norm(dim=0)
    return scores


def random_scores(model: PreTrainedModel, batches: list[Batch]) -> Scores:
    """Uniform, with a fixed seed."""
    rng = torch.Generator().manual_seed(0)
    scores = {}
    for name, (_, down) in ffn_linears(model).items():
        scores[name] = torch.rand(down.in_features, generator=rng)
    return scores


METHODS: dict[str, Callable[[PreTrainedModel, list[Batch]], Scores]] = {
    "activation and weight norms": activation_and_weight_norms,
    "Fisher information": fisher_information,
    "weight norms only": weight_norms,
    "random": random_scores,
}


def calibration_batches(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, options: Options
) -> list[Batch]:
    """Up to SAMPLES labeled training texts."""
    train = splits["train"].shuffle(seed=options.seed)
    rows = train.select(range(min(SAMPLES, len(train))))
    batches = []
    for start in range(0, len(rows), BATCH):
        part = rows.select(range(start, min(start + BATCH, len(rows))))
        batch = tokenizer(
            part[:]["text"],
            truncation=True,
            max_length=options.max_length,
            padding=True,
            return_tensors="pt",
        )
        batches.append({**batch, "labels": torch.tensor(label_array(part))})
    return batches


def narrow_(model: PreTrainedModel, scores: Scores, fraction: float) -> None:
    """Keep the `fraction` of neurons with the highest scores in every block."""
    width = round(fraction * ffn_width(model.config))
    for name, (up, down) in ffn_linears(model).items():
        neurons = scores[name].topk(width).indices.sort().values
        keep_neurons_(up, down, neurons)
    set_ffn_width_(model.config, width)


def validation_macro_f1(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: DatasetDict,
    task: Task,
    max_length: int,
) -> float:
    """Macro-F1 of the saved model on the validation rows."""
    validation = splits["validation"]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        engine = load_engine(folder, "torch", max_length)
        logits = predict_logits(engine, validation[:]["text"])
    return macro_f1(label_array(validation), decide(logits, task.multi_label))


def main(argv: list[str] | None = None) -> None:
    """Print a Markdown table with a row per importance score."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further options are those of main.py.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="directory of a fine-tuned model")
    parser.add_argument("csv", metavar="CSV", help="labeled file")
    arguments, main_options = parser.parse_known_args(argv)
    options = parse_options(["--dataset_path", arguments.csv, *main_options])
    splits, task, _ = load_splits(options)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    batches = calibration_batches(splits, tokenizer, options)
    print("| neurons kept by | a half | a quarter |")
    print("|---|--:|--:|")
    for name, method in METHODS.items():
        original = AutoModelForSequenceClassification.from_pretrained(arguments.model).eval()
        scores = method(original, batches)
        cells = []
        for fraction in KEPT_FRACTIONS:
            model = AutoModelForSequenceClassification.from_pretrained(arguments.model)
            narrow_(model, scores, fraction)
            f1 = validation_macro_f1(model, tokenizer, splits, task, options.max_length)
            cells.append(f"{f1:.4f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
