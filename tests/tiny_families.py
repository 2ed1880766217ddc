"""Tiny random models of every supported encoder family, with trained tokenizers of their kinds."""

import json
import random
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from task import Task

TASK = Task(("0", "1"), False)
FAMILIES = ("bert", "electra", "distilbert", "roberta", "xlm-roberta", "albert")

FREQUENT_WORDS = [
    "river",
    "rivers",
    "house",
    "houses",
    "unhappy",
    "happiness",
    "road",
    "roadside",
    "নদী",
    "নদীর",
    "বাড়ি",
    "भाषा",
    "today",
    "yesterday",
    "singing",
    "sings",
    "sang",
    "quickly",
    "quick",
    "slowly",
    "slow",
]
RARE_WORDS = ["walnut", "walnuts", "zebra", "zebras", "ছাতা", "ছাতার", "quietly", "xylem"]

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
BERT_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "mask_token": "<mask>",
}


def random_texts(count: int, seed: int, words: list[str] = FREQUENT_WORDS) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(2, 12))) for _ in range(count)]


# Tokenizers are trained on more words than they are trimmed on.
CORPUS = random_texts(300, 0) + random_texts(300, 1, RARE_WORDS)


def numbered(tokens: list[str]) -> dict[str, int]:
    """Token -> its position in the list."""
    return {token: token_id for token_id, token in enumerate(tokens)}


def wordpiece_backend(tokens: list[str]) -> Tokenizer:
    """A WordPiece tokenizer with these tokens that splits texts at spaces and punctuation."""
    backend = Tokenizer(models.WordPiece(numbered(tokens), unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def wordpiece_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Like BERT's: unused tokens are between the padding token and the other special tokens."""
    special_tokens = list(BERT_SPECIAL_TOKENS.values())
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=special_tokens, show_progress=False
    )
    trained.train_from_iterator(corpus, trainer)
    vocabulary = trained.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    tokens[1:1] = ["[unused0]", "[unused1]"]
    backend = Tokenizer(models.WordPiece(numbered(tokens), unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(special_tokens)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[
            ("[CLS]", backend.token_to_id("[CLS]")),
            ("[SEP]", backend.token_to_id("[SEP]")),
        ],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, **BERT_SPECIAL_TOKENS
    )


def byte_level_tokenizer(corpus: list[str]) -> RobertaTokenizer:
    """Like RoBERTa's: BPE of bytes."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(corpus, trainer)
    model = json.loads(backend.to_str())["model"]
    model["vocab"]["<mask>"] = len(model["vocab"])
    merges = [tuple(merge) for merge in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=64)


def unigram_tokenizer(corpus: list[str]) -> XLMRobertaTokenizer:
    """Like XLM-RoBERTa's: SentencePiece Unigram."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    pieces = [tuple(piece) for piece in json.loads(backend.to_str())["model"]["vocab"]]
    return XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)], model_max_length=64)


def mpnet_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Like MPNet's: the tokens of BERT, after the special tokens of RoBERTa."""
    vocabulary = wordpiece_tokenizer(corpus).get_vocab()
    words = [token for token in sorted(vocabulary) if not token.startswith("[")]
    tokens = ["<s>", "<pad>", "</s>", "[UNK]", *words, "<mask>"]
    backend = Tokenizer(models.WordPiece(numbered(tokens), unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special_tokens = ROBERTA_SPECIAL_TOKENS | {"unk_token": "[UNK]"}
    backend.add_special_tokens(list(special_tokens.values()))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special_tokens)


BYTE_LEVEL_FAMILIES = ("roberta", "data2vec-text", "deberta")
UNIGRAM_FAMILIES = ("xlm-roberta", "xlm-roberta-xl", "camembert", "deberta-v2")


def family_tokenizer(family: str) -> PreTrainedTokenizerBase:
    """A trained tokenizer of the kind that the family's models have."""
    if family in BYTE_LEVEL_FAMILIES:
        return byte_level_tokenizer(CORPUS)
    if family in UNIGRAM_FAMILIES:
        return unigram_tokenizer(CORPUS)
    if family == "mpnet":
        return mpnet_tokenizer(CORPUS)
    return wordpiece_tokenizer(CORPUS)


ONE_SEGMENT = {"type_vocab_size": 1}
DISENTANGLED = {  # as in published DeBERTa models
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "max_relative_positions": -1,
}
FAMILY_ENTRIES = {  # entries of the config that differ from the defaults
    "electra": {"embedding_size": 24},
    "albert": {"embedding_size": 24},
    "roberta": ONE_SEGMENT,
    "xlm-roberta": ONE_SEGMENT,
    "xlm-roberta-xl": ONE_SEGMENT,
    "camembert": ONE_SEGMENT,
    "data2vec-text": ONE_SEGMENT,
    "deberta": DISENTANGLED | {"pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": DISENTANGLED
    | {
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
}


def family_config(
    family: str, vocabulary_size: int, pad_id: int, shape: dict[str, int] = SHAPE
) -> PretrainedConfig:
    """The config of a tiny model of the family."""
    if family == "distilbert":
        shape = {
            "dim": shape["hidden_size"],
            "n_layers": shape["num_hidden_layers"],
            "n_heads": shape["num_attention_heads"],
            "hidden_dim": shape["intermediate_size"],
        }
    return AutoConfig.for_model(
        family,
        vocab_size=vocabulary_size,
        pad_token_id=pad_id,
        max_position_embeddings=80,
        initializer_range=0.2,
        **shape,
        **FAMILY_ENTRIES.get(family, {}),
        **TASK.config(),
    )


def save_family(family: str, folder: Path, shape: dict[str, int] = SHAPE) -> Path:
    """Save a random model of a family and its tokenizer in `folder`."""
    tokenizer = family_tokenizer(family)
    torch.manual_seed(0)
    config = family_config(family, len(tokenizer), tokenizer.pad_token_id, shape)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def splits_of(texts: list[str]) -> DatasetDict:
    """The texts as training and as validation split, with alternating labels."""
    ids = list(range(len(texts)))
    split = Dataset.from_dict({"id": ids, "text": texts, "label": [i % 2 for i in ids]})
    return DatasetDict(train=split, validation=split)
