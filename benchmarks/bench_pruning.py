"""What scoring and trimming cost, on the shapes people use: random weights, no network.

`python scripts/bench_pruning.py`. One run prints: Wanda over 512 texts on a BERT-base shape against the bare forward
passes over the same texts (in turn, the faster of three rounds each) and the memory it needs beyond them; how long it
takes to trim a WordPiece of 119,547 tokens and a Unigram of 250,002, from directory to directory. Exit code 1 where a
limit is passed.
"""

import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from compression_config import Options
from encoders.calibration import input_norms
from pruning import linears_to_prune, prune_, trim_vocabulary
from runtime.worker import measuring_process
from task import Task

WANDA_MOST, TRIM_MOST_S = 1.3, 60
TASK = Task(("0", "1"), False)
TEXTS, BATCH = 512, 32
LETTERS = "abcdefghijklmnopqrstuvwxyzঅআইউএওকখগঘচছজটডতদনপবমযরলশসহািীুেো"
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def base_model() -> torch.nn.Module:
    """A BERT-base of random weights."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(BertConfig(**TASK.config())).eval()


def batches() -> list[dict[str, Tensor]]:
    """Texts of 8 to 48 tokens, like lengths together, padded within a batch."""
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 49, (TEXTS,), generator=rng).sort().values.split(BATCH)
    masks = [(torch.arange(int(part.max())) < part[:, None]).long() for part in lengths]
    return [
        {
            "input_ids": torch.randint(1000, 30000, mask.shape, generator=rng) * mask,
            "attention_mask": mask,
        }
        for mask in masks
    ]


@torch.inference_mode()
def forward(model: torch.nn.Module, chunks: list[dict[str, Tensor]]) -> None:
    """The passes that any calibration needs."""
    for batch in chunks:
        model(**batch)


def wanda(model: torch.nn.Module, chunks: list[dict[str, Tensor]]) -> None:
    """Norms, scores and zeros of every encoder Linear."""
    linears = linears_to_prune(model, "all")
    prune_(linears, "wanda", 0.4, "row", input_norms(model, linears, chunks))


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_mb(prunes: bool) -> float:
    """The highest resident memory (MiB) of this process, which has made the model and run it."""
    (wanda if prunes else forward)(base_model(), batches())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare_wanda() -> bool:
    """Wanda against bare passes, in time and memory."""
    model, chunks = base_model(), batches()
    times = {name: [] for name in ("forward", "wanda")}
    for _ in range(3):
        times["forward"].append(seconds_of(lambda: forward(model, chunks)))
        times["wanda"].append(seconds_of(lambda: wanda(model, chunks)))
    bare, pruning = (min(found) for found in times.values())
    print(
        f"Wanda over {TEXTS} texts, BERT-base: {pruning:.2f} s, bare passes {bare:.2f} s, ratio {pruning / bare:.2f} "
        f"(at most {WANDA_MOST})",
        flush=True,
    )
    peaks = {}
    for prunes in (False, True):
        with measuring_process() as elsewhere:
            peaks[prunes] = elsewhere(peak_mb, prunes)
    weights = max(linear.weight.numel() for linear in linears_to_prune(model, "all").values())
    more, scores = peaks[True] - peaks[False], 4 * weights / 2**20
    print(
        f"peak memory: bare passes {peaks[False]:.0f} MiB, with Wanda {more:+.0f} MiB; the scores of the largest "
        f"layer are {scores:.0f} MiB",
        flush=True,
    )
    return pruning / bare <= WANDA_MOST


def words(count: int) -> list[str]:
    """Different made-up words."""
    rng, found = random.Random(0), {}
    while len(found) < count:
        found["".join(rng.choices(LETTERS, k=rng.randint(3, 9)))] = None
    return list(found)


def wordpiece(size: int) -> PreTrainedTokenizerFast:
    """A cased WordPiece of so many tokens: characters, words and endings of words."""
    made = words(size)
    tokens = dict.fromkeys([*BERT_SPECIAL, *LETTERS, *(f"##{one}" for one in LETTERS)])
    tokens = list(
        tokens | dict.fromkeys(word if i % 3 else f"##{word}" for i, word in enumerate(made))
    )[:size]
    backend = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = zip(
        ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
        BERT_SPECIAL,
        strict=True,
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=128, **dict(names))


def unigram(size: int) -> XLMRobertaTokenizer:
    """XLM-R's own kind of so many pieces."""
    rng = random.Random(1)
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [
        (token, -12.0)
        for one in ["▁", *LETTERS]
        for token in dict.fromkeys((one, f"▁{one.strip('▁')}"))
    ][1:]
    made = words(size)
    pieces += [
        (word if i % 3 == 0 else f"▁{word}", rng.uniform(-14, -7)) for i, word in enumerate(made)
    ]
    return XLMRobertaTokenizer(vocab=[*pieces[: size - 1], ("<mask>", 0.0)], model_max_length=128)


def texts(vocabulary: list[str], count: int = 20_000) -> DatasetDict:
    """Texts of words, a few thousand of which make up most of what is said."""
    rng = random.Random(2)
    plain = [token.strip("▁") for token in vocabulary if token.strip("▁").isalpha()]
    said = [
        " ".join(
            plain[min(int(rng.expovariate(1 / 3000)), len(plain) - 1)]
            for _ in range(rng.randint(5, 25))
        )
        for _ in range(count)
    ]
    split = Dataset.from_dict({"id": list(range(count)), "text": said, "label": [0] * count})
    return DatasetDict(train=split, validation=split.select(range(count // 10)))


def compare_trim(
    name: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, rule: str
) -> bool:
    """Seconds that stage `trim` takes, and the bytes before and after."""
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole", Path(folder) / "small"
        AutoModelForSequenceClassification.from_config(config).save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        small.mkdir()
        splits = texts(list(tokenizer.get_vocab()))
        taken = seconds_of(
            lambda: trim_vocabulary(whole, splits, TASK, small, Options(trim_vocab=rule))
        )
        sizes = [sum(path.stat().st_size for path in one.iterdir()) / 1e6 for one in (whole, small)]
        kept = AutoConfig.from_pretrained(small).vocab_size
        assert len(AutoTokenizer.from_pretrained(small)) == kept
    print(
        f"{name}, {len(tokenizer)} tokens, --trim_vocab {rule}: {taken:.1f} s (at most {TRIM_MOST_S}), {kept} left, "
        f"{sizes[0]:.0f} -> {sizes[1]:.0f} MB",
        flush=True,
    )
    return taken <= TRIM_MOST_S


def main() -> int:
    """Compare all."""
    fine = compare_wanda()
    bert = DistilBertConfig(vocab_size=119_547, **TASK.config())
    roberta = XLMRobertaConfig(
        vocab_size=250_002,
        num_hidden_layers=2,
        max_position_embeddings=514,
        pad_token_id=1,
        **TASK.config(),
    )
    for rule in ("used", "auto", "12000"):
        fine &= compare_trim("WordPiece", wordpiece(119_547), bert, rule)
        fine &= compare_trim("Unigram", unigram(250_002), roberta, rule)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
