"""`scratch:LAYERSxHIDDEN`: a randomly initialized BERT and a WordPiece tokenizer for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from encoders.specs import scratch_config
from task import Task

VOCABULARY_SIZE = 8000  # at most

CONTINUATION_LIMIT = 1000  # `##x` tokens of one character, at most

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def wordpiece_tokenizer(model: WordPiece) -> Tokenizer:
    """A cased tokenizer around a WordPiece model; it normalizes texts to NFC."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.BertNormalizer(
                clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
            ),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def most_frequent_first(entry: tuple[str, int]) -> tuple[int, str]:
    """Sort key of (character, count): by descending count, then by code point."""
    character, count = entry
    return -count, character


def continuation_tokens(texts: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    """`##x` for the most frequent characters inside words, most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        normalized = tokenizer.normalizer.normalize_str(text)
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized):
            counts.update(word[1:])
    by_frequency = sorted(counts.items(), key=most_frequent_first)
    return [f"##{character}" for character, _ in by_frequency[:CONTINUATION_LIMIT]]


def train_wordpiece(texts: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer trained on `texts`; the same texts always give the same tokenizer.

    By default the trainer numbers the `##x` tokens in the order of a hash map and breaks ties by
    token id, so that two runs would learn different vocabularies. Passing the `##x` tokens as
    special tokens fixes their order.
    """
    trained = wordpiece_tokenizer(WordPiece(unk_token="[UNK]"))
    first_tokens = [*SPECIAL_TOKENS.values(), *continuation_tokens(texts, trained)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        show_progress=False,
        special_tokens=first_tokens,
    )
    trained.train_from_iterator(texts, trainer)
    # A new tokenizer, in which the `##x` are no longer special tokens.
    tokenizer = wordpiece_tokenizer(WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[
            ("[CLS]", tokenizer.token_to_id("[CLS]")),
            ("[SEP]", tokenizer.token_to_id("[SEP]")),
        ],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, **SPECIAL_TOKENS
    )


def scratch_model(
    spec: str,
    task: Task,
    texts: Sequence[str],
    max_length: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A randomly initialized BERT, with `tokenizer` or else one trained on `texts`."""
    shape = scratch_config(spec)
    if tokenizer is None:
        tokenizer = train_wordpiece(texts, max_length)
    config = BertConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape, **task.config()
    )
    model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    return model, tokenizer
