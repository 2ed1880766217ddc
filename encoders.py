"""Where a model starts: a hub name, a directory, fresh weights, or layers of the teacher.

Also the one place that knows how encoder families differ: which Linears belong to the encoder's layers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from socket import create_connection
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub.constants import ENDPOINT
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from compression_config import UserError

SCRATCH = re.compile(r"scratch:(\d+)x(\d+)")
TEACHER_LAYERS = re.compile(r"teacher:(\d+(?:,\d+)*)")
SCRATCH_VOCABULARY = 8000
QUERY_KEY_VALUE = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Task:
    """What is predicted: the labels in the order of the logits, and whether several may hold at once."""

    labels: tuple[str, ...]
    multi_label: bool

    @property
    def problem_type(self) -> str:
        """The name Hugging Face configs use."""
        return "multi_label_classification" if self.multi_label else "single_label_classification"

    def config(self) -> dict:
        """The entries of a model's `config.json` that state the task."""
        return {"num_labels": len(self.labels), "problem_type": self.problem_type,
                "id2label": dict(enumerate(self.labels)),
                "label2id": {label: i for i, label in enumerate(self.labels)}}  # fmt: skip


def encoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the encoder's layers: `encoder.layer` (BERT-like) or `transformer.layer` (DistilBERT)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] in ("layer", "albert_layer_groups"):
            return name, module
    raise UserError(f"{model.config.model_type} is not a supported encoder: no list of layers found in it")


def encoder_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Full name -> Linear, for every Linear of the encoder's layers; no embedding, pooler or head."""
    prefix, layers = encoder_layers(model)
    return {f"{prefix}.{name}": module for name, module in layers.named_modules() if isinstance(module, nn.Linear)}


def query_key_value(layer: nn.Module) -> tuple[nn.Linear, ...]:
    """The Linears of a layer that make queries, keys and values; none where a family names them otherwise."""
    linears = {name.rpartition(".")[2]: module for name, module in layer.named_modules()
               if isinstance(module, nn.Linear)}  # fmt: skip
    for names in QUERY_KEY_VALUE:
        if set(names) <= set(linears):
            return tuple(linears[name] for name in names)
    return ()


def is_attention(linear_name: str) -> bool:
    """Whether an encoder Linear belongs to self-attention (else to the feed-forward block)."""
    return ".attention." in linear_name


def ffn_width(config: PretrainedConfig) -> int:
    """Neurons of a layer's feed-forward block."""
    return getattr(config, ffn_entry(config))


def set_ffn_width_(config: PretrainedConfig, width: int) -> None:
    """Say that blocks have `width` neurons."""
    setattr(config, ffn_entry(config), width)


def ffn_entry(config: PretrainedConfig) -> str:
    """What the family calls the width of its feed-forward block: DistilBERT `hidden_dim`."""
    return "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size"


def is_fresh(spec: str) -> bool:
    """Whether `spec` asks for freshly drawn encoder weights."""
    return bool(SCRATCH.fullmatch(spec))


def spaced_layers(count: int, available: int) -> list[int]:
    """`count` evenly spaced of `available` layers, with the first and the last: 3 of 6 -> [0, 2, 5]."""
    if count == 1:
        return [available - 1]
    return [round(i * (available - 1) / (count - 1)) for i in range(count)]


def teacher_layer_ids(spec: str, available: int) -> list[int]:
    """The layers that `teacher:N` or `teacher:0,2,5` names; UserError where the teacher lacks them."""
    numbers = [int(part) for part in TEACHER_LAYERS.fullmatch(spec)[1].split(",")]
    layers = numbers if "," in spec else None
    if layers is None:
        if not 1 <= numbers[0] <= available:
            raise UserError(f"--student_path is {spec}, but the teacher has {available} layers")
        return spaced_layers(numbers[0], available)
    if max(layers) >= available or sorted(set(layers)) != layers:
        raise UserError(f"--student_path is {spec}, but must name rising layers of the teacher's 0 to {available - 1}")
    return layers


def keep_layers_(model: PreTrainedModel, layer_ids: list[int]) -> None:
    """Drop every encoder layer but `layer_ids`, in place; the config follows. ALBERT's one shared layer stays."""
    name, layers = encoder_layers(model)
    if len(layers) == model.config.num_hidden_layers:
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], nn.ModuleList(layers[i] for i in layer_ids))
    model.config.num_hidden_layers = len(layer_ids)


def continuations(texts: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    """`##x` for the characters that stand inside words, the most frequent 1,000, in a fixed order."""
    counts: Counter[str] = Counter()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            counts.update(word[1:])
    return [f"##{char}" for char, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1000]]


def wordpiece(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    """A cased WordPiece tokenizer that normalises to NFC."""
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]") if vocabulary else WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False)])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def train_wordpiece(texts: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer learnt from `texts` (at most 8,000 tokens), the same each time.

    Left alone, the trainer numbers the `##x` in the order of a hash map and breaks ties by number, so two runs
    learn two vocabularies; naming them as first tokens fixes the order.
    """
    trained = wordpiece()
    first = [*SPECIAL_TOKENS, *continuations(texts, trained)]
    trained.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=SCRATCH_VOCABULARY, min_frequency=2, show_progress=False, special_tokens=first))  # fmt: skip
    tokenizer = wordpiece(trained.get_vocab())
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends)  # fmt: skip
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **names)


def scratch_config(spec: str) -> dict:
    """The shape that `scratch:LAYERSxHIDDEN` asks for: heads of 64, feed-forward of four times the width."""
    layers, hidden = (int(part) for part in SCRATCH.fullmatch(spec).groups())
    if layers < 1 or hidden < 64 or hidden % 64:
        raise UserError(f"{spec} must have at least one layer and a width that is a multiple of 64")
    return {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": hidden // 64,
            "intermediate_size": 4 * hidden}  # fmt: skip


def scratch_model(
    spec: str, task: Task, texts: Sequence[str], max_length: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A BERT of freshly drawn weights, and the given tokenizer or one learnt from `texts`."""
    shape = scratch_config(spec)
    tokenizer = tokenizer or train_wordpiece(texts, max_length)
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape, **task.config())
    return AutoModelForSequenceClassification.from_config(config), tokenizer


def position_limit(config: PretrainedConfig) -> int:
    """The most tokens the model's position embeddings hold; RoBERTa-like ones lose the first few to padding."""
    return config.max_position_embeddings - positions_before_text(config)


def positions_before_text(config: PretrainedConfig) -> int:
    """Position embeddings that no token of a text has: RoBERTa's relatives count from the padding token's id."""
    return config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0


def check_directory(spec: str, flag: str) -> None:
    """Refuse a local directory without config or safetensors weights, or one that brings its own code."""
    directory = Path(spec)
    if not (directory / "config.json").is_file():
        raise UserError(f"{flag} is {spec}, but that directory has no config.json")
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{flag} is {spec}, but that directory has no .safetensors weights (pickle files are refused)")
    if '"auto_map"' in (directory / "config.json").read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{flag} is {spec}, but models that bring their own code (trust_remote_code) are refused")


def check_encoder(config: PretrainedConfig, spec: str, flag: str) -> None:
    """Refuse what is no encoder with a sequence classification head, judging by its structure alone."""
    refusal = UserError(f"{flag} is {spec}, a {config.model_type} model, but must be an encoder that classifies texts")
    if type(config) not in AutoModelForSequenceClassification._model_mapping or config.is_encoder_decoder:
        raise refusal
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    try:
        encoder_layers(model)
    except UserError:
        raise refusal from None


@cache
def is_hub_reachable() -> bool:
    """Whether the hub's host answers; asked once, because the hub's own retries take minutes without a network."""
    if getproxies():
        return True
    address = urlsplit(ENDPOINT)
    try:
        create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def only_local(spec: str) -> bool:
    """Whether `spec` is to be read from disk alone: a directory, or a hub model that only the cache may hold."""
    return Path(spec).exists() or not is_hub_reachable()


@cache
def read_config(spec: str, flag: str) -> PretrainedConfig:
    """The config of a hub name or directory; UserError in one line where there is none or it is no encoder."""
    if Path(spec).exists():
        check_directory(spec, flag)
    try:
        config = AutoConfig.from_pretrained(spec, trust_remote_code=False, local_files_only=only_local(spec))
    except (OSError, ValueError, KeyError) as error:
        what = "whose config.json cannot be read" if Path(spec).exists() else "neither a local directory nor a model " \
            "that the hub gives now"  # fmt: skip
        raise UserError(f"{flag} is {spec}, {what}; give a hub name (with network), a model directory, "
                        "or scratch:4x256") from error  # fmt: skip
    check_encoder(config, spec, flag)
    return config


def pretrained_model(
    spec: str, flag: str, task: Task, max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer of a hub name or directory, with a head for `task`; safetensors only, in float32."""
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            spec, dtype="float32", use_safetensors=True, ignore_mismatched_sizes=True,
            local_files_only=only_local(spec), **task.config())  # fmt: skip
    except OSError as error:
        raise UserError(f"{flag} is {spec}, but it cannot be loaded: {str(error).splitlines()[0]}") from error
    tokenizer = start_tokenizer(spec, flag, [], max_length)
    tokenizer.model_max_length = max_length
    tokenizer.init_kwargs.pop("local_files_only", None)  # else saved, and the bytes would depend on the network
    return model, tokenizer


def start_tokenizer(spec: str, flag: str, texts: Sequence[str], max_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or directory, or a fresh one learnt from `texts`."""
    if is_fresh(spec):
        return train_wordpiece(texts, max_length)
    try:
        return AutoTokenizer.from_pretrained(spec, use_fast=True, local_files_only=only_local(spec))
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} is {spec}, but it has no tokenizer: {str(error).splitlines()[0]}") from error


def start_teacher(
    spec: str, task: Task, texts: Sequence[str], max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `--teacher_path` names, with a head for `task`; `texts` train a fresh tokenizer."""
    if is_fresh(spec):
        return scratch_model(spec, task, texts, max_length)
    return pretrained_model(spec, "--teacher_path", task, max_length)


def start_student(
    spec: str, teacher_dir: Path, task: Task, texts: Sequence[str], max_length: int, own_tokenizer: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `--student_path` names; `teacher:N` starts from layers, embeddings and head of the teacher. A
    fresh one learns a tokenizer of its own from `texts`, or takes the teacher's."""
    if is_fresh(spec):
        shared = None if own_tokenizer else start_tokenizer(str(teacher_dir), "--teacher_path", [], max_length)
        return scratch_model(spec, task, texts, max_length, shared)
    if not TEACHER_LAYERS.fullmatch(spec):
        return pretrained_model(spec, "--student_path", task, max_length)
    model, tokenizer = pretrained_model(str(teacher_dir), "--teacher_path", task, max_length)
    keep_layers_(model, teacher_layer_ids(spec, model.config.num_hidden_layers))
    return model, tokenizer


def check_start(spec: str, flag: str, max_length: int) -> None:
    """Refuse a teacher or student that cannot be loaded or reads less than `max_length`, before training."""
    if spec.startswith("scratch:"):
        if not is_fresh(spec):
            raise UserError(f"{flag} is {spec}, but must read scratch:LAYERSxHIDDEN, such as scratch:4x256")
        scratch_config(spec)
    elif spec.startswith("teacher:"):
        if flag != "--student_path" or not TEACHER_LAYERS.fullmatch(spec):
            raise UserError(f"{flag} is {spec}, but only --student_path takes teacher:N or teacher:0,2,5")
    elif (limit := position_limit(read_config(spec, flag))) < max_length:
        raise UserError(f"--max_length is {max_length}, but {spec} reads at most {limit} tokens")


def knows_queries(spec: str, flag: str) -> bool:
    """Whether the queries and keys of the model that `spec` names can be told."""
    return is_fresh(spec) or bool(query_key_value(encoder_layers(empty_encoder(spec, flag))[1][0]))


def empty_encoder(spec: str, flag: str) -> PreTrainedModel:
    """The architecture of a hub name or directory, without weights or memory."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(read_config(spec, flag))


def shape_of(spec: str, flag: str, name: str) -> int:
    """An entry of the config of the model that `spec` names, such as `num_hidden_layers`."""
    return scratch_config(spec)[name] if is_fresh(spec) else getattr(read_config(spec, flag), name)
