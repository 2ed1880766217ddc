"""Which tokens of a vocabulary `--trim_vocab` keeps; `encoders/trimming.py` removes the others.

A text whose tokens are all kept must be tokenized as before. Each tokenizer model needs more than
those tokens for that:

- WordPiece (Schuster & Nakajima 2012; in BERT the greedy longest match from the left) also needs
  the tokens that matched the beginning of a word that turned out to be unknown. Without them a
  shorter match might succeed, and the word would be known.
- Unigram (Kudo 2018; the path of tokens with the highest sum of scores) also needs the token with
  the least score: the score of an unknown character is that score minus a constant. Removing tokens
  that are not on the best path cannot make another path better.
- BPE (Sennrich et al. 2016; merges in the order in which they were learned) also needs the tokens
  that a kept token is merged from, and the single characters that all merges start from.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from runtime.errors import UserError

COVERAGE = 0.999  # fraction of token occurrences that `--trim_vocab auto` keeps

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # byte fallback of SentencePiece

WORD_START = "▁"  # SentencePiece's mark of a token that begins a word


# Tokenizer models


def model_kind(backend: Tokenizer) -> str:
    """WordPiece, Unigram, BPE or WordLevel."""
    return type(backend.model).__name__


def tokenizer_json(backend: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`: `model`, `added_tokens`, `post_processor` and more."""
    return json.loads(backend.to_str())


def is_trimmable(backend: Tokenizer) -> bool:
    """Whether `--trim_vocab` supports the tokenizer's model and its settings."""
    kind = model_kind(backend)
    model = tokenizer_json(backend)["model"]
    if kind == "WordPiece":
        return backend.pre_tokenizer is not None
    if kind == "Unigram":
        return model.get("unk_id") is not None
    if kind == "BPE":
        return not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix")
    return False


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's backend without truncation and padding.

    UserError if `--trim_vocab` does not support the tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not is_trimmable(backend):
        kind = "slow" if backend is None else model_kind(backend)
        raise UserError(
            "--trim_vocab is given, but it supports only WordPiece with a pre-tokenizer, Unigram "
            f"with an unknown token, and BPE without prefixes and suffixes; this {kind} tokenizer "
            "is of another kind"
        )
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def unknown_token(backend: Tokenizer) -> str | None:
    """The token for unknown text; None if the tokenizer knows every byte."""
    if model_kind(backend) == "Unigram":
        model = tokenizer_json(backend)["model"]
        token, _score = model["vocab"][model["unk_id"]]
        return token
    return backend.model.unk_token


def token_mark(backend: Tokenizer) -> str:
    """The prefix of tokens inside a word (WordPiece) or at its beginning (Unigram)."""
    kind = model_kind(backend)
    if kind == "WordPiece":
        return backend.model.continuing_subword_prefix
    if kind == "Unigram":
        return WORD_START
    return ""


def merges_of(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges in a tokenizer's JSON, in order; [] if the model is not BPE."""
    merges = []
    for merge in spec["model"].get("merges", []):
        # Older files have "left right", newer ones ["left", "right"].
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merges.append((left, right))
    return merges


# What texts use of a vocabulary


def pieces_before_unknown(
    word: str, vocabulary: dict[str, int], prefix: str, max_characters: int
) -> list[str]:
    """The tokens that WordPiece matches in an unknown word before it finds no match.

    `prefix` marks tokens inside a word. [] for a known word, and for one of more than
    `max_characters` characters, which WordPiece does not try to match.
    """
    if len(word) > max_characters:
        return []
    pieces: list[str] = []
    begin = 0
    while begin < len(word):
        match = longest_match(word, begin, vocabulary, prefix)
        if match is None:
            return pieces
        piece, begin = match
        pieces.append(piece)
    return []


def longest_match(
    word: str, begin: int, vocabulary: dict[str, int], prefix: str
) -> tuple[str, int] | None:
    """The longest token that matches `word` from `begin` on, and its end; None if none matches."""
    mark = prefix if begin > 0 else ""
    for end in range(len(word), begin, -1):
        piece = mark + word[begin:end]
        if piece in vocabulary:
            return piece, end
    return None


class VocabularyUsage:
    """How often texts use each token of a vocabulary; `add` counts further texts.

    `counts` [tokens] are the occurrences of each token, `characters` those of each character of the
    normalized texts, `unknown_word_pieces` the ids of the tokens that WordPiece matches in words
    that turn out to be unknown.
    """

    def __init__(self, backend: Tokenizer):
        self.backend = backend
        self.vocabulary = backend.get_vocab(with_added_tokens=True)
        self.counts = np.zeros(1 + max(self.vocabulary.values()), dtype=np.int64)
        self.characters: Counter[str] = Counter()
        self.unknown_word_pieces: set[int] = set()
        self.unknown_id = self.vocabulary.get(unknown_token(backend))
        self.is_wordpiece = model_kind(backend) == "WordPiece"

    def add(self, texts: list[str]) -> None:
        """Count a chunk of texts, without truncation."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        ids: list[int] = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids += encoding.ids
            normalized = self.normalize(text)
            self.characters.update(normalized)
            if self.is_wordpiece and self.unknown_id in encoding.ids:
                self.add_unknown_words(normalized)
        self.counts += np.bincount(np.array(ids, dtype=np.int64), minlength=len(self.counts))

    def normalize(self, text: str) -> str:
        """The text after the tokenizer's normalizer."""
        if self.backend.normalizer is None:
            return text
        return self.backend.normalizer.normalize_str(text)

    def add_unknown_words(self, normalized: str) -> None:
        """Add the tokens that WordPiece matches in the unknown words of a normalized text."""
        model = self.backend.model
        for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(normalized):
            pieces = pieces_before_unknown(
                word,
                self.vocabulary,
                model.continuing_subword_prefix,
                model.max_input_chars_per_word,
            )
            self.unknown_word_pieces.update(self.vocabulary[piece] for piece in pieces)


def count_usage(backend: Tokenizer, chunks: Iterable[list[str]]) -> VocabularyUsage:
    """The `VocabularyUsage` of the texts in all chunks."""
    usage = VocabularyUsage(backend)
    for texts in chunks:
        usage.add(texts)
    return usage


# What a tokenizer model needs


def all_character_ids(backend: Tokenizer) -> list[int]:
    """Ids of all tokens that are one character, with or without a mark, or the mark only."""
    mark = token_mark(backend)
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return [
        token_id for token, token_id in vocabulary.items() if len(token.removeprefix(mark)) <= 1
    ]


def character_ids(backend: Tokenizer, characters: Iterable[str]) -> list[int]:
    """Ids of the tokens that are one of `characters`, without and with a mark, in that order."""
    mark = token_mark(backend)
    vocabulary = backend.get_vocab(with_added_tokens=False)
    ids = []
    for character in characters:
        for token in (character, mark + character):
            if token in vocabulary:
                ids.append(vocabulary[token])
    return ids


def required_tokens(backend: Tokenizer) -> set[int]:
    """Ids of the tokens that are kept regardless of the texts.

    These are added tokens, special ones among them, byte tokens, the unknown token, and what the
    tokenizer model needs (see above).
    """
    spec = tokenizer_json(backend)
    kind = model_kind(backend)
    vocabulary = backend.get_vocab(with_added_tokens=False)
    required = {token["id"] for token in spec["added_tokens"]}
    for token, token_id in vocabulary.items():
        if BYTE_TOKEN.fullmatch(token):
            required.add(token_id)
    if kind == "Unigram":
        scores = [score for _token, score in spec["model"]["vocab"]]
        required.add(spec["model"]["unk_id"])
        required.add(int(np.argmin(scores)))
        if WORD_START in vocabulary:
            required.add(vocabulary[WORD_START])
    elif backend.model.unk_token in vocabulary:
        required.add(vocabulary[backend.model.unk_token])
    if kind == "BPE":
        required.update(all_character_ids(backend))
    return required


def merge_halves(backend: Tokenizer) -> dict[int, set[int]]:
    """Id of a BPE token -> ids of both halves of every merge that gives it; {} for other models."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    halves: dict[int, set[int]] = {}
    for left, right in merges_of(tokenizer_json(backend)):
        merged_id = vocabulary.get(left + right)
        if merged_id is not None:
            halves.setdefault(merged_id, set()).update((vocabulary[left], vocabulary[right]))
    return halves


def with_ancestors(token_id: int, halves: dict[int, set[int]]) -> set[int]:
    """The token and all tokens that it is merged from, directly or indirectly."""
    ids = {token_id}
    pending = [token_id]
    while pending:
        new_ids = halves.get(pending.pop(), set()) - ids
        ids |= new_ids
        pending += new_ids
    return ids


# The choice


def choose_tokens(
    backend: Tokenizer, usage: VocabularyUsage, rule: str, always: Iterable[int] = ()
) -> list[int]:
    """Ids of the tokens that `--trim_vocab` keeps, in ascending order.

    `rule` is `used` (every token that occurs, and every single character), `auto` (the characters
    of the texts, and the fewest tokens that make up COVERAGE of the occurrences), or a number
    (those characters, then the most frequent tokens, until that many tokens are kept). `always` and
    the required tokens are kept too.
    """
    halves = merge_halves(backend)
    required = required_tokens(backend) | set(always)
    frequent = ids_by_frequency(usage.counts)
    if rule == "used":
        candidates = [*frequent, *usage.unknown_word_pieces, *all_character_ids(backend)]
        return sorted(add_tokens(required, candidates, halves))
    by_frequency = [character for character, _count in usage.characters.most_common()]
    characters = character_ids(backend, by_frequency)
    if rule == "auto":
        frequent = fewest_for_coverage(frequent, usage.counts)
        return sorted(add_tokens(required, [*characters, *frequent], halves))
    return sorted(add_tokens(required, [*characters, *frequent], halves, limit=int(rule)))


def ids_by_frequency(counts: np.ndarray) -> list[int]:
    """Ids of the tokens that occur, most frequent first; ties in the order of ids."""
    order = np.argsort(-counts, kind="stable")
    return order[: np.count_nonzero(counts)].tolist()


def fewest_for_coverage(ids: Sequence[int], counts: np.ndarray) -> Sequence[int]:
    """The shortest beginning of `ids` that makes up COVERAGE of all occurrences."""
    covered = np.cumsum(counts[ids]) / counts.sum()
    return ids[: np.searchsorted(covered, COVERAGE) + 1]


def add_tokens(
    required: set[int],
    candidates: Iterable[int],
    halves: dict[int, set[int]],
    limit: int | None = None,
) -> set[int]:
    """`required` and the candidates, each with the tokens that it is merged from.

    With a `limit`, a candidate that would exceed this number of tokens is skipped.
    """
    kept = set(required)
    for candidate in candidates:
        new_ids = with_ancestors(candidate, halves) - kept
        if limit is None or len(kept) + len(new_ids) <= limit:
            kept |= new_ids
    return kept
