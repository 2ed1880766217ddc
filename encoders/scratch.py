"""TODO."""

from __future__ import annotations

import re
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

from compression_config import UserError
from task import Task

SCRATCH = re.compile(r"scratch:(\d+)x(\d+)")

SCRATCH_VOCABULARY = 8000

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def is_fresh(spec: str) -> bool:
    """Whether `spec` asks for freshly drawn encoder weights."""
    return bool(SCRATCH.fullmatch(spec))


def continuation_tokens(texts: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    """`##x` for the characters that stand inside words, the most frequent 1,000, in a fixed order."""
    counts: Counter[str] = Counter()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(
            tokenizer.normalizer.normalize_str(text)
        ):
            counts.update(word[1:])
    return [
        f"##{char}"
        for char, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1000]
    ]


def wordpiece_tokenizer(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    """A cased WordPiece tokenizer that normalises to NFC."""
    tokenizer = Tokenizer(
        WordPiece(vocabulary, unk_token="[UNK]") if vocabulary else WordPiece(unk_token="[UNK]")
    )
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


def train_wordpiece(texts: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer learnt from `texts` (at most 8,000 tokens), the same each time.

    Left alone, the trainer numbers the `##x` in the order of a hash map and breaks ties by number, so two runs
    learn two vocabularies; naming them as first tokens fixes the order.
    """
    trained = wordpiece_tokenizer()
    first = [*SPECIAL_TOKENS, *continuation_tokens(texts, trained)]
    trained.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=SCRATCH_VOCABULARY,
            min_frequency=2,
            show_progress=False,
            special_tokens=first,
        ),
    )
    tokenizer = wordpiece_tokenizer(trained.get_vocab())
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = dict(
        zip(
            ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
            SPECIAL_TOKENS,
            strict=True,
        )
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **names)


def scratch_config(spec: str) -> dict:
    """The shape that `scratch:LAYERSxHIDDEN` asks for: heads of 64, feed-forward of four times the width."""
    layers, hidden = (int(part) for part in SCRATCH.fullmatch(spec).groups())
    if layers < 1 or hidden < 64 or hidden % 64:
        raise UserError(f"{spec} must have at least one layer and a width that is a multiple of 64")
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }


def scratch_model(
    spec: str,
    task: Task,
    texts: Sequence[str],
    max_length: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A BERT of freshly drawn weights, and the given tokenizer or one learnt from `texts`."""
    shape = scratch_config(spec)
    tokenizer = tokenizer or train_wordpiece(texts, max_length)
    config = BertConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape, **task.config()
    )
    return AutoModelForSequenceClassification.from_config(config), tokenizer
