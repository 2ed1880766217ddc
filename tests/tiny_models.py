"""Tiny models of six encoder families with random weights, a tokenizer, and random sentences."""

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from encoders.families import encoder_linears
from engines.engine import load_engine, predict_logits
from quantization import QUANTIZERS, QuantizationRequest

MAX_LENGTH = 64
SPECIAL_TOKENS = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
CONSONANTS = "bdfgklmnprst"
ENDINGS = ("a", "e", "i", "o", "u", "ay", "ee", "oo", "an", "en", "in", "on", "un")
WORDS = [consonant + ending for consonant, ending in itertools.product(CONSONANTS, ENDINGS)]
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
COMMON = {
    "vocab_size": len(SPECIAL_TOKENS + WORDS),
    "pad_token_id": 1,
    "max_position_embeddings": 80,
    "num_labels": 3,
    "problem_type": "single_label_classification",
    "initializer_range": 0.12,
}
CONFIGS = {
    "bert": BertConfig(**SHAPE, **COMMON),
    "electra": ElectraConfig(**SHAPE, **COMMON, embedding_size=48),
    "distilbert": DistilBertConfig(dim=64, n_layers=2, n_heads=2, hidden_dim=128, **COMMON),
    "roberta": RobertaConfig(**SHAPE, **COMMON, type_vocab_size=1),
    "xlm-roberta": XLMRobertaConfig(**SHAPE, **COMMON, type_vocab_size=1),
    "albert": AlbertConfig(**SHAPE, **COMMON, embedding_size=32),
}
FAMILIES = [name for name in CONFIGS if name != "albert"]  # ALBERT shares one layer
HEADS = {  # family -> the Linears of the classification head
    "bert": ["classifier", "bert.pooler.dense"],
    "electra": ["classifier.dense", "classifier.out_proj"],
    "distilbert": ["classifier", "pre_classifier"],
    "roberta": ["classifier.dense", "classifier.out_proj"],
    "xlm-roberta": ["classifier.dense", "classifier.out_proj"],
}
# method -> largest mean |difference| of the logits from the parent's; mean |logit| is 0.2-0.7
TOLERANCE = {"fp16": 0.002, "dynamic": 0.03, "static": 0.06, "int4": 0.15}


def sentences(count: int, seed: int) -> list[str]:
    """`count` random sequences of 1 to 30 words of the vocabulary."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]


TEXTS = sentences(40, seed=1)


def replace_config(family: str, **changes) -> PretrainedConfig:
    """A copy of a family's config with changes."""
    return type(CONFIGS[family])(**{**CONFIGS[family].to_dict(), **changes})


def save_tokenizer(family: str, path: Path) -> None:
    """A tokenizer whose tokens are the words."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL_TOKENS + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    input_names = ["input_ids", "attention_mask"]
    if family in ("bert", "electra", "albert"):
        input_names.insert(1, "token_type_ids")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        pad_token="[PAD]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=input_names,
    ).save_pretrained(path)


def save_pruned_model(family: str, path: Path, config: PretrainedConfig | None = None) -> None:
    """A model of random weights, half of each encoder Linear zero.

    Biases are random too, so that no two tensors are equal: the exporter would store them once.
    """
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config or CONFIGS[family])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
        for linear in encoder_linears(model).values():
            linear.weight[linear.weight.abs() <= linear.weight.abs().median()] = 0
    model.save_pretrained(path)


def quantize_all(method: str, parent: Path, out_dir: Path) -> None:
    """Write every format of a method, without the stage around it."""
    request = QuantizationRequest(parent, out_dir, sentences(32, seed=2), MAX_LENGTH)
    for quantizer in QUANTIZERS[method].values():
        quantizer(request)


def logits_on_disk(
    directory: Path, format_name: str, texts: list[str] = TEXTS, threads: int | None = 1
) -> np.ndarray:
    """The logits [rows, labels] of a format."""
    return predict_logits(load_engine(directory, format_name, MAX_LENGTH, threads), texts)


@dataclass
class TinyModels:
    """Full-precision checkpoints and their quantized directories, each built on first use."""

    folder: Path

    def parent(self, family: str) -> Path:
        """The full-precision checkpoint of a family."""
        path = self.folder / family
        if not path.exists():
            save_pruned_model(family, path)
            save_tokenizer(family, path)
        return path

    def quantized(self, family: str, method: str) -> Path:
        """The directory with every format of a method."""
        path = self.folder / f"{family}-{method}"
        if not path.exists():
            quantize_all(method, self.parent(family), path)
        return path

    def parent_tensors(self, family: str) -> dict[str, torch.Tensor]:
        """The tensors of the full-precision checkpoint."""
        return load_file(self.parent(family) / "model.safetensors")

    def quantized_tensors(self, family: str, method: str) -> dict[str, torch.Tensor]:
        """The tensors of the torch format of a method."""
        return load_file(self.quantized(family, method) / "model.safetensors")

    def quantized_model(self, family: str, method: str) -> torch.nn.Module:
        """The torch format of a method, loaded by transformers."""
        path = self.quantized(family, method)
        return AutoModelForSequenceClassification.from_pretrained(path).eval()
