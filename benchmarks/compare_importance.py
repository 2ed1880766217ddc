"""Which neurons of the feed-forward blocks to keep: by activation and weight norms (what `--ffn_width` does), by Fisher
information, by weights alone, or at random.

`python scripts/compare_importance.py MODEL CSV [options of main.py]`, with a fine-tuned MODEL such as a run's teacher.
Narrows it to a half and to a quarter with each, and prints macro-F1 on the validation rows without any training.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import label_array, load_splits
from encoders.calibration import input_norms
from encoders.families import ffn_width, set_ffn_width_
from engines.engine import load_engine, predict_logits
from evaluation import decide
from losses import hard_label_loss
from metrics import macro_f1
from pruning import ffn_linears, keep_neurons_, neuron_importance
from runtime.command_line import parse_options

Scores = dict[str, Tensor]  # second Linear of a block -> importance [neurons]
SAMPLES, BATCH = 512, 32


def fisher(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> Scores:
    """Kwon et al. (2022), equation 8: the squared gradient of the loss with respect to a mask on each neuron, one
    gradient a text, summed over texts."""
    found, masks = {}, {}
    for name, (_, down) in ffn_linears(model).items():
        found[name] = torch.zeros(down.in_features)
        masks[name] = torch.ones(down.in_features, requires_grad=True)
        down.register_forward_pre_hook(lambda _, args, name=name: (args[0] * masks[name],))
    for batch in batches:
        for row in range(len(batch["labels"])):
            length = int(batch["attention_mask"][row].sum())
            inputs = {
                key: value[row : row + 1, :length]
                for key, value in batch.items()
                if key != "labels"
            }
            loss = hard_label_loss(model(**inputs).logits, batch["labels"][row : row + 1])
            for name, gradient in zip(
                masks, torch.autograd.grad(loss, list(masks.values())), strict=True
            ):
                found[name] += gradient**2
    return found


def norms(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> Scores:
    """What the stage `narrow` does."""
    downs = {name: down for name, (_, down) in ffn_linears(model).items()}
    inputs = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    reached = input_norms(model, downs, inputs)
    return {
        name: neuron_importance(down.weight.detach(), reached[name]) for name, down in downs.items()
    }


def weights_alone(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> Scores:
    """The norms of what leads to a neuron and away from it."""
    return {
        name: up.weight.detach().norm(dim=1) * down.weight.detach().norm(dim=0)
        for name, (up, down) in ffn_linears(model).items()
    }


def chance(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> Scores:
    """Drawn with one seed."""
    rng = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(down.in_features, generator=rng)
        for name, (_, down) in ffn_linears(model).items()
    }


WAYS: dict[str, Callable[[PreTrainedModel, list[dict[str, Tensor]]], Scores]] = {
    "activation and weight norms": norms,
    "Fisher": fisher,
    "weights alone": weights_alone,
    "chance": chance,
}


def main() -> None:
    """Compare."""
    model_dir, csv, *words = sys.argv[1:]
    options = parse_options(["--dataset_path", csv, *words])
    splits, task, _ = load_splits(options)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = splits["train"].shuffle(seed=options.seed).select(range(SAMPLES))
    batches = []
    for start in range(0, SAMPLES, BATCH):
        part = rows.select(range(start, start + BATCH))
        batch = tokenizer(
            part[:]["text"],
            truncation=True,
            max_length=options.max_length,
            padding=True,
            return_tensors="pt",
        )
        batches.append(dict(batch) | {"labels": torch.tensor(label_array(part))})
    labels, texts = label_array(splits["validation"]), splits["validation"][:]["text"]
    print("| neurons kept by | a half | a quarter |\n|---|--:|--:|")
    for name, importance in WAYS.items():
        scores = importance(
            AutoModelForSequenceClassification.from_pretrained(model_dir).eval(), batches
        )
        found = []
        for share in (0.5, 0.25):
            model = AutoModelForSequenceClassification.from_pretrained(model_dir)
            width = round(share * ffn_width(model.config))
            for block, (up, down) in ffn_linears(model).items():
                keep_neurons_(up, down, scores[block].topk(width).indices.sort().values)
            set_ffn_width_(model.config, width)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                logits = predict_logits(load_engine(folder, "torch", options.max_length), texts)
            found.append(macro_f1(labels, decide(logits, task.multi_label)))
        print(f"| {name} | {found[0]:.4f} | {found[1]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
