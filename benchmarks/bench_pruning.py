"""Cost of Wanda pruning and of vocabulary trimming on common model shapes; random weights.

`python -m benchmarks.bench_pruning`. Part 1 compares Wanda over 512 texts on the shape of BERT base
with the bare forward passes over the same texts: time (interleaved, best of three rounds) and peak
memory. Part 2 times the trimming of a WordPiece vocabulary of 119,547 tokens and a Unigram
vocabulary of 250,002, from directory to directory. The exit code is 1 if a limit is exceeded.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    XLMRobertaConfig,
)

from benchmarks.inputs import BINARY_TASK, random_splits, random_unigram, random_wordpiece
from compression_config import Options
from encoders.calibration import input_norms
from pruning import linears_to_prune, prune_, trim_vocabulary
from runtime.worker import measuring_process

MAX_WANDA_RATIO = 1.3  # Wanda / bare forward passes
MAX_TRIM_S = 60
ROUNDS = 3
TEXTS = 512
BATCH = 32
SPARSITY = 0.4
MIB = 2**20
Batch = dict[str, Tensor]


def random_bert() -> PreTrainedModel:
    """BERT base with random weights."""
    torch.manual_seed(0)
    config = BertConfig(**BINARY_TASK.config())
    return AutoModelForSequenceClassification.from_config(config).eval()


def random_batches() -> list[Batch]:
    """TEXTS texts of 8 to 48 tokens, grouped by length and padded within a batch."""
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 49, (TEXTS,), generator=rng).sort().values
    masks = []
    for part in lengths.split(BATCH):
        positions = torch.arange(int(part.max()))
        masks.append((positions < part[:, None]).long())
    batches = []
    for mask in masks:
        ids = torch.randint(1000, 30_000, mask.shape, generator=rng) * mask
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


@torch.inference_mode()
def run_forward(model: PreTrainedModel, batches: list[Batch]) -> None:
    """The forward passes that any calibration needs."""
    for batch in batches:
        model(**batch)


def run_wanda(model: PreTrainedModel, batches: list[Batch]) -> None:
    """Norms, scores and zeros of every Linear of the encoder."""
    linears = linears_to_prune(model, "all")
    prune_(linears, "wanda", SPARSITY, input_norms(model, linears, batches))


CALLS = {"forward": run_forward, "wanda": run_wanda}


def seconds_of(call: Callable[..., object], *arguments: object) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def peak_mib(name: str) -> float:
    """Peak resident memory (MiB) of this process after building the model and making one call."""
    CALLS[name](random_bert(), random_batches())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare_wanda_time(model: PreTrainedModel) -> bool:
    """Print the time of Wanda and of plain forward passes; returns whether the ratio is within
    its limit."""
    batches = random_batches()
    best_s = dict.fromkeys(CALLS, float("inf"))
    for _ in range(ROUNDS):
        for name, call in CALLS.items():
            best_s[name] = min(best_s[name], seconds_of(call, model, batches))
    ratio = best_s["wanda"] / best_s["forward"]
    print(
        f"Wanda over {TEXTS} texts, BERT base: {best_s['wanda']:.2f} s, bare forward passes "
        f"{best_s['forward']:.2f} s, ratio {ratio:.2f} (at most {MAX_WANDA_RATIO})",
        flush=True,
    )
    return ratio <= MAX_WANDA_RATIO


def compare_wanda_memory(model: PreTrainedModel) -> None:
    """Print the peak memory of the bare forward passes, and how much Wanda adds to it."""
    peaks_mib = {}
    for name in CALLS:
        with measuring_process() as call:
            peaks_mib[name] = call(peak_mib, name)
    largest = max(linear.weight.numel() for linear in linears_to_prune(model, "all").values())
    scores_mib = 4 * largest / MIB  # float32
    added_mib = peaks_mib["wanda"] - peaks_mib["forward"]
    print(
        f"peak memory: bare forward passes {peaks_mib['forward']:.0f} MiB, with Wanda "
        f"{added_mib:+.0f} MiB; the scores of the largest layer are {scores_mib:.0f} MiB",
        flush=True,
    )


def directory_mb(directory: Path) -> float:
    """Size of the files of a directory in MB."""
    return sum(path.stat().st_size for path in directory.iterdir()) / 1e6


def compare_trimming(
    name: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, rule: str
) -> bool:
    """Print seconds of the stage `trim` and bytes before and after; returns whether it is fast
    enough."""
    with tempfile.TemporaryDirectory() as folder:
        original_dir = Path(folder) / "original"
        trimmed_dir = Path(folder) / "trimmed"
        trimmed_dir.mkdir()
        AutoModelForSequenceClassification.from_config(config).save_pretrained(original_dir)
        tokenizer.save_pretrained(original_dir)
        splits = random_splits(list(tokenizer.get_vocab()))
        options = Options(trim_vocab=rule)
        seconds = seconds_of(
            trim_vocabulary, original_dir, splits, BINARY_TASK, trimmed_dir, options
        )
        original_mb = directory_mb(original_dir)
        trimmed_mb = directory_mb(trimmed_dir)
        tokens = AutoConfig.from_pretrained(trimmed_dir).vocab_size
        assert len(AutoTokenizer.from_pretrained(trimmed_dir)) == tokens
    print(
        f"{name}, {len(tokenizer)} tokens, --trim_vocab {rule}: {seconds:.1f} s "
        f"(at most {MAX_TRIM_S}), {tokens} tokens remain, {original_mb:.0f} -> {trimmed_mb:.0f} MB",
        flush=True,
    )
    return seconds <= MAX_TRIM_S


def main(argv: list[str] | None = None) -> int:
    """Measure pruning, then trimming."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    model = random_bert()
    is_within_limits = [compare_wanda_time(model)]
    compare_wanda_memory(model)
    distilbert = DistilBertConfig(vocab_size=119_547, **BINARY_TASK.config())
    wordpiece = random_wordpiece(distilbert.vocab_size)
    roberta = XLMRobertaConfig(
        vocab_size=250_002,
        num_hidden_layers=2,
        max_position_embeddings=514,
        pad_token_id=1,
        **BINARY_TASK.config(),
    )
    unigram = random_unigram(roberta.vocab_size)
    for rule in ("used", "auto", "12000"):
        is_within_limits.append(compare_trimming("WordPiece", wordpiece, distilbert, rule))
        is_within_limits.append(compare_trimming("Unigram", unigram, roberta, rule))
    return 0 if all(is_within_limits) else 1


if __name__ == "__main__":
    sys.exit(main())
