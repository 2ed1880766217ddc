"""Remove tokens from a tokenizer and from the embedding of its model.

`kept_ids` are the old ids of the kept tokens in ascending order. Their positions in this list are
the new ids, so that special tokens at the beginning keep their ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from encoders.vocabulary import merges_of, plain_backend, tokenizer_json, unknown_token

TOKEN_IDS = (  # entries of a model's config
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "cls_token_id",
    "sep_token_id",
    "mask_token_id",
    "unk_token_id",
)


def new_ids_of(kept_ids: list[int]) -> dict[int, int]:
    """Old id -> new id of the kept tokens."""
    return {old_id: new_id for new_id, old_id in enumerate(kept_ids)}


# The tokenizer


def trimmed_tokenizer(
    tokenizer: PreTrainedTokenizerBase, kept_ids: list[int]
) -> PreTrainedTokenizerFast:
    """The tokenizer with the kept tokens only.

    Its class is the general one, which uses `tokenizer.json` unchanged. The class of a family would
    rebuild parts of it, with ids of its own (`XLMRobertaTokenizer` has a fixed `unk_id`).
    """
    spec = restrict_vocabulary(tokenizer_json(plain_backend(tokenizer)), kept_ids)
    backend = Tokenizer.from_str(json.dumps(spec))
    if sorted(backend.get_vocab().values()) != list(range(len(kept_ids))):
        raise RuntimeError("the token ids of the trimmed tokenizer are not 0, 1, 2, ...")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokenizer.special_tokens_map,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )


def restrict_vocabulary(spec: dict[str, Any], kept_ids: list[int]) -> dict[str, Any]:
    """A tokenizer's JSON with the kept tokens only, under their new ids."""
    new_ids = new_ids_of(kept_ids)
    model = dict(spec["model"])
    if model["type"] == "Unigram":
        model["vocab"] = kept_pieces(model["vocab"], kept_ids)
        model["unk_id"] = new_ids[model["unk_id"]]
    else:
        model["vocab"] = kept_vocabulary(model["vocab"], new_ids)
    if "merges" in model:
        model["merges"] = kept_merges(merges_of(spec), model["vocab"])
    added_tokens = []
    for token in spec["added_tokens"]:
        added_tokens.append(token | {"id": new_ids[token["id"]]})
    return spec | {
        "model": model,
        "added_tokens": added_tokens,
        "post_processor": renumber_ids(spec["post_processor"], new_ids),
    }


def kept_pieces(pieces: list[list], kept_ids: list[int]) -> list[list]:
    """The kept [token, score] pairs of a Unigram model; ids beyond the list are added tokens."""
    return [pieces[old_id] for old_id in kept_ids if old_id < len(pieces)]


def kept_vocabulary(vocabulary: dict[str, int], new_ids: dict[int, int]) -> dict[str, int]:
    """Token -> new id of the kept tokens of a WordPiece or BPE model."""
    return {token: new_ids[old_id] for token, old_id in vocabulary.items() if old_id in new_ids}


def kept_merges(merges: Iterable[tuple[str, str]], vocabulary: dict[str, int]) -> list[list[str]]:
    """The BPE merges, in order, whose halves and result are all in the vocabulary."""
    kept = []
    for left, right in merges:
        if left in vocabulary and right in vocabulary and left + right in vocabulary:
            kept.append([left, right])
    return kept


def renumber_ids(value: Any, new_ids: dict[int, int]) -> Any:
    """A post-processor's JSON with new ids, at any depth.

    Ids are in `ids: [...]` of a template, and in `sep: [token, id]` and `cls: [token, id]` of the
    post-processors of BERT and RoBERTa.
    """
    if isinstance(value, list):
        return [renumber_ids(item, new_ids) for item in value]
    if not isinstance(value, dict):
        return value
    renumbered = {}
    for key, item in value.items():
        if key == "ids":
            renumbered[key] = [new_ids[old_id] for old_id in item]
        elif key in ("sep", "cls"):
            token, old_id = item
            renumbered[key] = [token, new_ids[old_id]]
        else:
            renumbered[key] = renumber_ids(item, new_ids)
    return renumbered


# The model


@torch.no_grad()
def keep_embedding_rows_(model: PreTrainedModel, kept_ids: list[int]) -> None:
    """Keep only the embedding rows of `kept_ids`, in place, and renumber the config's token ids."""
    old = model.get_input_embeddings()
    new_ids = new_ids_of(kept_ids)
    embedding = nn.Embedding(
        len(kept_ids), old.embedding_dim, padding_idx=new_ids.get(old.padding_idx)
    )
    embedding.weight.copy_(old.weight[kept_ids])
    model.set_input_embeddings(embedding)
    model.config.vocab_size = len(kept_ids)
    for name in TOKEN_IDS:
        old_id = getattr(model.config, name, None)
        if old_id is not None:
            setattr(model.config, name, new_ids.get(old_id))


# Checks on texts


def unknown_rate(backend: Tokenizer, chunks: Iterable[list[str]]) -> float:
    """Fraction of the texts' tokens that are the unknown token; 0 if there are no tokens."""
    unknown_id = backend.token_to_id(unknown_token(backend) or "")
    unknown_count = 0
    token_count = 0
    for texts in chunks:
        for encoding in backend.encode_batch_fast(texts, add_special_tokens=False):
            unknown_count += encoding.ids.count(unknown_id)
            token_count += len(encoding.ids)
    return unknown_count / max(1, token_count)


def check_same_tokens(
    before: Tokenizer, after: Tokenizer, kept_ids: list[int], chunks: Iterable[list[str]]
) -> None:
    """Raise RuntimeError if the trimmed tokenizer tokenizes a text differently than the original
    one.

    Ids are compared, not tokens: an unknown Unigram token is shown as the text that it replaces.
    """
    for texts in chunks:
        encodings_before = before.encode_batch_fast(texts)
        encodings_after = after.encode_batch_fast(texts)
        differing = []
        for text, old, new in zip(texts, encodings_before, encodings_after, strict=True):
            if old.ids != [kept_ids[new_id] for new_id in new.ids]:
                differing.append(text)
        if differing:
            raise RuntimeError(
                f"the trimmed vocabulary tokenizes {len(differing)} texts differently: "
                f"{differing[0]!r}"
            )
