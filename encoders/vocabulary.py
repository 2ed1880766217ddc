"""A tokenizer's vocabulary: what texts use of it, which tokens to keep, and the tokenizer with those alone.

Kept tokens keep their order, so special tokens that stand first keep their ids. A text made of kept tokens is cut as
before: greedy matching (WordPiece), the best path (Unigram) and merges in order (BPE) are left what they need for it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from compression_config import UserError

COVERAGE = 0.999  # share of the occurrences that `--trim_vocab auto` keeps

BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's backend that neither cuts nor pads; UserError for kinds that cannot be trimmed."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(backend.model).__name__ if backend else "slow"
    model = json.loads(backend.to_str())["model"] if backend else {}
    fits = {
        "WordPiece": backend and backend.pre_tokenizer,
        "Unigram": model.get("unk_id") is not None,
        "BPE": not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")),
    }
    if not fits.get(kind):
        raise UserError(
            "--trim_vocab is given, but it trims WordPiece and Unigram that know an unknown token, and BPE "
            f"of bytes or plain characters; this tokenizer is another kind of {kind} one"
        )
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def normalize(backend: Tokenizer, text: str) -> str:
    """The text as the tokenizer's model meets it."""
    return backend.normalizer.normalize_str(text) if backend.normalizer else text


def pieces_before_unknown(
    word: str, vocabulary: dict[str, int], prefix: str, longest: int
) -> list[str]:
    """What WordPiece's longest match takes of an unknown `word` before it fails; nothing of a word that it knows, or
    that has more than the `longest` characters that it tries."""
    taken: list[str] = []
    begin = 0 if len(word) <= longest else len(word)
    while begin < len(word):
        ends = range(len(word), begin, -1)
        pieces = ((prefix if begin else "") + word[begin:end] for end in ends)
        piece = next((piece for piece in pieces if piece in vocabulary), None)
        if piece is None:
            return taken
        taken.append(piece)
        begin += len(piece) - (len(prefix) if begin else 0)
    return []


class VocabularyUsage:
    """What texts use of a vocabulary: how often each token occurs (`counts` [tokens]), which characters, and what
    WordPiece takes of words that it ends up not knowing (without it, it might know them)."""

    def __init__(self, backend: Tokenizer):
        self.backend, self.vocabulary = backend, backend.get_vocab(with_added_tokens=True)
        self.counts = np.zeros(1 + max(self.vocabulary.values()), dtype=np.int64)
        self.characters: Counter[str] = Counter()
        self.taken: set[int] = set()
        self.unknown = self.vocabulary.get(unknown_token(backend))

    def add(self, texts: list[str]) -> None:
        """Count a chunk of texts, whole."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = np.array([number for one in encodings for number in one.ids], dtype=np.int64)
        self.counts += np.bincount(ids, minlength=len(self.counts))
        for text, encoding in zip(texts, encodings, strict=True):
            seen = normalize(self.backend, text)
            self.characters.update(seen)
            if type(self.backend.model).__name__ == "WordPiece" and self.unknown in encoding.ids:
                self.add_taken(seen)

    def add_taken(self, text: str) -> None:
        """Add what is taken of the unknown words of a normalised text."""
        model = self.backend.model
        for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text):
            pieces = pieces_before_unknown(
                word,
                self.vocabulary,
                model.continuing_subword_prefix,
                model.max_input_chars_per_word,
            )
            self.taken |= {self.vocabulary[piece] for piece in pieces}


def count_usage(backend: Tokenizer, chunks: Iterable[list[str]]) -> VocabularyUsage:
    """What the texts use."""
    found = VocabularyUsage(backend)
    for texts in chunks:
        found.add(texts)
    return found


def unknown_token(backend: Tokenizer) -> str | None:
    """What stands for a text that the tokenizer does not know; none where it knows every byte."""
    model = (
        json.loads(backend.to_str())["model"] if type(backend.model).__name__ == "Unigram" else None
    )
    return model["vocab"][model["unk_id"]][0] if model else backend.model.unk_token


def continuation_mark(backend: Tokenizer) -> str:
    """What marks a token that goes on with a word (WordPiece), else that begins one (Unigram); else nothing."""
    kind = type(backend.model).__name__
    return (
        backend.model.continuing_subword_prefix
        if kind == "WordPiece"
        else "▁"
        if kind == "Unigram"
        else ""
    )


def single_characters(backend: Tokenizer, characters: Iterable[str] | None = None) -> list[int]:
    """Ids of the tokens that are one character, with or without its mark: all, or those of `characters`, in order."""
    vocabulary, mark = backend.get_vocab(with_added_tokens=False), continuation_mark(backend)
    if characters is None:
        return [
            number for token, number in vocabulary.items() if len(token.removeprefix(mark)) <= 1
        ]
    return [
        vocabulary[token]
        for one in characters
        for token in (one, mark + one)
        if token in vocabulary
    ]


def required_tokens(backend: Tokenizer) -> set[int]:
    """Ids that stay whatever the texts use: added tokens, special ones among them, and bytes; of Unigram its mark of
    words, and the least score, from which it derives that of an unknown character."""
    spec = json.loads(backend.to_str())
    kept = {token["id"] for token in spec["added_tokens"]}
    vocabulary = backend.get_vocab(with_added_tokens=False)
    kept |= {number for token, number in vocabulary.items() if BYTE_FALLBACK.fullmatch(token)}
    if spec["model"]["type"] == "Unigram":
        scores = [score for _, score in spec["model"]["vocab"]]
        kept |= {
            spec["model"]["unk_id"],
            int(np.argmin(scores)),
            vocabulary.get("▁", spec["model"]["unk_id"]),
        }
    elif (token := spec["model"].get("unk_token")) in vocabulary:
        kept.add(vocabulary[token])
    if spec["model"]["type"] == "BPE":
        kept |= set(single_characters(backend))
    return kept


def merges_of(spec: dict) -> list[tuple[str, str]]:
    """The merges of a BPE tokenizer's JSON, in order; none of other kinds."""
    merges = spec["model"].get("merges", [])
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]


class MergeAncestors:
    """The tokens that BPE needs to make a token: both halves of every merge that gives it, and theirs."""

    def __init__(self, backend: Tokenizer):
        vocabulary = backend.get_vocab(with_added_tokens=False)
        self.halves: dict[int, set[int]] = {}
        for one, other in merges_of(json.loads(backend.to_str())):
            if (made := vocabulary.get(one + other)) is not None:
                self.halves.setdefault(made, set()).update((vocabulary[one], vocabulary[other]))

    def of(self, number: int) -> set[int]:
        """The token itself and all that it is made of."""
        found, open_ = {number}, [number]
        while open_:
            new = self.halves.get(open_.pop(), set()) - found
            found |= new
            open_ += new
        return found


def choose_tokens(
    backend: Tokenizer, used: VocabularyUsage, rule: str, always: Iterable[int] = ()
) -> list[int]:
    """Old ids of the tokens that `--trim_vocab` keeps, rising; `always` and the indispensable ones are among them.

    `used`: all that occur, and every single character. `auto`: the characters of the texts, and the fewest tokens
    that make up COVERAGE of the occurrences. A number: those characters, then the most frequent tokens, at most so
    many in all.
    """
    kept, ancestors = required_tokens(backend) | set(always), MergeAncestors(backend)
    by_count = np.argsort(-used.counts, kind="stable")[: np.count_nonzero(used.counts)]
    if rule == "used":
        return sorted(
            kept.union(*map(ancestors.of, [*by_count, *used.taken, *single_characters(backend)]))
        )
    if rule == "auto":
        covered = np.cumsum(used.counts[by_count]) / used.counts.sum()
        by_count = by_count[: np.searchsorted(covered, COVERAGE) + 1]
    characters = single_characters(
        backend, [character for character, _ in used.characters.most_common()]
    )
    most = int(rule) if rule.isdecimal() else len(used.counts)
    for number in [*characters, *by_count]:
        new = ancestors.of(number) - kept
        if len(kept) + len(new) <= most:
            kept |= new
    return sorted(kept)


def restrict_vocabulary(spec: dict, kept: list[int]) -> dict:
    """A tokenizer's JSON with the tokens of the old ids `kept` alone, numbered anew in that order."""
    new, model = {old: number for number, old in enumerate(kept)}, dict(spec["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
    if "merges" in model:
        model["merges"] = [
            [one, other]
            for one, other in merges_of(spec)
            if {one, other, one + other} <= model["vocab"].keys()
        ]
    added = [token | {"id": new[token["id"]]} for token in spec["added_tokens"]]
    return spec | {
        "model": model,
        "added_tokens": added,
        "post_processor": renumber_ids(spec["post_processor"], new),
    }


def renumber_ids(part: object, new: dict[int, int]) -> object:
    """A post-processor's JSON with new ids: `ids: [..]` of a template, `sep: [token, id]` and `cls` of BERT's and
    RoBERTa's."""
    if isinstance(part, list):
        return [renumber_ids(one, new) for one in part]
    if not isinstance(part, dict):
        return part
    found = {}
    for name, value in part.items():
        if name == "ids":
            value = [new[old] for old in value]
        elif name in ("sep", "cls"):
            value = [value[0], new[value[1]]]
        found[name] = renumber_ids(value, new)
    return found


def trimmed_tokenizer(
    tokenizer: PreTrainedTokenizerBase, kept: list[int]
) -> PreTrainedTokenizerFast:
    """The tokenizer with the tokens `kept` alone. Its class is the general one, which reads `tokenizer.json` as it
    stands: a family's own builds parts of it anew, with ids of its own."""
    backend = Tokenizer.from_str(
        json.dumps(restrict_vocabulary(json.loads(plain_backend(tokenizer).to_str()), kept))
    )
    if sorted(backend.get_vocab().values()) != list(range(len(kept))):
        raise RuntimeError(
            "the trimmed tokenizer numbers its tokens otherwise than the rows of the embedding"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokenizer.special_tokens_map,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )
