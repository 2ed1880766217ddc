"""Structured pruning: trimmed vocabularies and narrower feed-forward blocks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_families import (
    BERT_SPECIAL_TOKENS,
    CORPUS,
    FAMILIES,
    ROBERTA_SPECIAL_TOKENS,
    TASK,
    byte_level_tokenizer,
    family_config,
    random_texts,
    save_family,
    splits_of,
    unigram_tokenizer,
    wordpiece_backend,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
)

from compression_config import Options
from encoders.calibration import input_norms
from encoders.families import encoder_linears, ffn_width, positions_before_text
from encoders.trimming import check_same_tokens, restrict_vocabulary, trimmed_tokenizer
from encoders.vocabulary import (
    VocabularyUsage,
    choose_tokens,
    count_usage,
    pieces_before_unknown,
    plain_backend,
    required_tokens,
)
from engines.engine import load_engine, predict_logits
from pruning import (
    ffn_linears,
    keep_important_neurons_,
    keep_neurons_,
    narrow_ffn,
    neuron_importance,
    target_width,
    trim_vocabulary,
)
from runtime.errors import UserError

UNUSUAL_TEXT = "☃ quietly 雪 [MASK] ☃river"


def trimmed(folder: Path, rule: str, texts: list[str]) -> Path:
    """The directory of the model in `folder` with the vocabulary trimmed to `texts`."""
    out_dir = folder.with_name(f"{folder.name}-{rule}")
    out_dir.mkdir()
    return trim_vocabulary(folder, splits_of(texts), TASK, out_dir, Options(trim_vocab=rule))


def load_model(folder: Path):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def embedding_rows(folder: Path) -> torch.Tensor:
    return load_model(folder).get_input_embeddings().weight


def restricted(backend: Tokenizer, kept_ids: list[int]) -> Tokenizer:
    spec = restrict_vocabulary(json.loads(backend.to_str()), kept_ids)
    return Tokenizer.from_str(json.dumps(spec))


@pytest.mark.parametrize("family", FAMILIES)
def test_used_changes_no_logit_of_any_training_text(family, tmp_path):
    texts = [*random_texts(60, 2), UNUSUAL_TEXT, "", "☃", "নদীর <mask> </s>"]
    original_dir = save_family(family, tmp_path / family)
    trimmed_dir = trimmed(original_dir, "used", texts)
    before = predict_logits(load_engine(original_dir, "torch", 64), texts)
    after = predict_logits(load_engine(trimmed_dir, "torch", 64), texts)
    assert np.array_equal(before, after)
    size_before = load_model(original_dir).config.vocab_size
    size_after = load_model(trimmed_dir).config.vocab_size
    assert size_after == len(AutoTokenizer.from_pretrained(trimmed_dir)) < size_before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", ["auto", "350"])
def test_a_trimmed_tokenizer_still_reads_every_text(family, rule, tmp_path):
    original_dir = save_family(family, tmp_path / family)
    trimmed_dir = trimmed(original_dir, rule, random_texts(60, 2))
    tokenizer = AutoTokenizer.from_pretrained(trimmed_dir)
    limit = 350 if rule == "350" else len(AutoTokenizer.from_pretrained(original_dir))
    assert len(tokenizer) == load_model(trimmed_dir).config.vocab_size <= limit
    for text in (*CORPUS[-20:], UNUSUAL_TEXT):
        ids = tokenizer(text)["input_ids"]
        assert max(ids) < len(tokenizer)
        assert ids[0] == tokenizer.cls_token_id
        assert ids[-1] == tokenizer.sep_token_id
    if family != "roberta":  # its tokenizer knows every byte
        assert tokenizer("雪")["input_ids"][-2] == tokenizer.unk_token_id
    river = tokenizer.decode(tokenizer("river")["input_ids"], skip_special_tokens=True)
    assert river.strip() == "river"


def test_special_tokens_keep_their_roles_when_their_ids_change(tmp_path):
    trimmed_dir = trimmed(save_family("bert", tmp_path / "bert"), "auto", random_texts(60, 2))
    tokenizer = AutoTokenizer.from_pretrained(trimmed_dir)
    roles = {role: getattr(tokenizer, role) for role in BERT_SPECIAL_TOKENS}
    assert roles == BERT_SPECIAL_TOKENS
    assert tokenizer.pad_token_id == 0
    assert tokenizer.convert_tokens_to_ids("[unused0]") == tokenizer.unk_token_id
    model = load_model(trimmed_dir)
    assert model.config.pad_token_id == 0
    assert model.get_input_embeddings().padding_idx == 0


def test_every_kept_row_is_the_embedding_of_its_own_token(tmp_path):
    original_dir = save_family("xlm-roberta", tmp_path / "xlm")
    trimmed_dir = trimmed(original_dir, "auto", random_texts(60, 2))
    ids_before = AutoTokenizer.from_pretrained(original_dir).get_vocab()
    ids_after = AutoTokenizer.from_pretrained(trimmed_dir).get_vocab()
    rows_before = embedding_rows(original_dir)
    rows_after = embedding_rows(trimmed_dir)
    assert set(ids_after) < set(ids_before)
    for token, new_id in ids_after.items():
        assert torch.equal(rows_after[new_id], rows_before[ids_before[token]])


def test_wordpiece_keeps_the_tokens_matched_before_a_word_is_unknown():
    vocabulary = {"ab": 0, "a": 1, "##bc": 2, "##b": 3, "x": 4}
    # Without "ab" the word would be known: a + ##bc.
    assert pieces_before_unknown("abc", vocabulary, "##", 100) == ["ab"]
    assert pieces_before_unknown("ab", vocabulary, "##", 100) == []  # known
    assert pieces_before_unknown("yx", vocabulary, "##", 100) == []  # nothing matches
    assert pieces_before_unknown("abc", vocabulary, "##", 2) == []  # too long to be tried


def test_auto_keeps_the_fewest_tokens_that_cover_the_occurrences():
    backend = wordpiece_backend(["[PAD]", "[UNK]", "aa", "bb", "cc", "dd"])
    usage = count_usage(backend, [["aa " * 9000 + "cc " * 995 + "bb " * 5]])
    assert usage.counts.tolist() == [0, 0, 9000, 5, 995, 0]
    assert choose_tokens(backend, usage, "auto", [0]) == [0, 1, 2, 4]  # 0.9995 of 10,000
    assert choose_tokens(backend, usage, "used", [0]) == [0, 1, 2, 3, 4]
    assert choose_tokens(backend, usage, "3", [0]) == [0, 1, 2]


def test_bpe_keeps_the_tokens_that_a_token_is_merged_from():
    backend = plain_backend(byte_level_tokenizer(CORPUS))
    vocabulary = backend.get_vocab()
    usage = VocabularyUsage(backend)
    usage.add(["river"])
    kept_ids = choose_tokens(backend, usage, "used")
    kept_tokens = {token for token, token_id in vocabulary.items() if token_id in kept_ids}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **ROBERTA_SPECIAL_TOKENS)
    after = plain_backend(trimmed_tokenizer(tokenizer, kept_ids))
    assert "river" in kept_tokens
    assert after.encode("river").tokens == backend.encode("river").tokens
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= kept_tokens
    assert "Ġzebras" in vocabulary and "Ġzebras" not in kept_tokens


def test_importance_is_the_norm_of_a_neurons_contribution_by_hand():
    down = torch.tensor([[3.0, 0.0, 1.0], [4.0, 1.0, 0.0]])
    assert neuron_importance(down, torch.tensor([1.0, 10.0, 2.0])).tolist() == [5.0, 10.0, 2.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_neurons_gives_the_logits_of_masking_them(family, tmp_path):
    folder = save_family(family, tmp_path / family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(random_texts(8, 5), padding=True, return_tensors="pt")
    narrow = load_model(folder)
    down_linears = {name: down for name, (_up, down) in ffn_linears(narrow).items()}
    norms = input_norms(narrow, down_linears, [batch])
    keep_important_neurons_(narrow, norms, 24)
    narrow.save_pretrained(tmp_path / "narrow")
    reloaded = load_model(tmp_path / "narrow")

    masked = load_model(folder)
    for name, (_up, down) in ffn_linears(masked).items():
        least_important = neuron_importance(down.weight.detach(), norms[name]).argsort()[:24]
        down.weight.data[:, least_important] = 0

    assert ffn_width(reloaded.config) == 24
    assert {up.out_features for up, _down in ffn_linears(reloaded).values()} == {24}
    with torch.no_grad():
        assert torch.allclose(masked(**batch).logits, reloaded(**batch).logits, atol=1e-6)


def test_kept_neurons_keep_their_order_and_their_biases():
    up = torch.nn.Linear(2, 3)
    down = torch.nn.Linear(3, 2)
    down_weight = down.weight.clone()
    up_bias = up.bias.clone()
    down_bias = down.bias.clone()
    keep_neurons_(up, down, torch.tensor([0, 2]))
    assert torch.equal(down.weight, down_weight[:, [0, 2]])
    assert torch.equal(up.bias, up_bias[[0, 2]])
    assert torch.equal(down.bias, down_bias)


def test_importance_ignores_padding(tmp_path):
    folder = save_family("bert", tmp_path / "bert")
    model = load_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    down_linears = {name: down for name, (_up, down) in ffn_linears(model).items()}
    batch = tokenizer(["river road"], return_tensors="pt")
    padded = tokenizer(["river road"], padding="max_length", max_length=40, return_tensors="pt")
    norms = input_norms(model, down_linears, [batch])
    norms_of_padded = input_norms(model, down_linears, [padded])
    assert set(norms) == set(down_linears)
    for name in down_linears:
        assert torch.allclose(norms[name], norms_of_padded[name], rtol=1e-4)


def test_a_width_is_a_number_of_neurons_or_a_fraction():
    assert [target_width(value, 48) for value in (0.5, 24.0, 48.0, 0.001)] == [24, 24, 48, 1]


def test_the_narrow_stage_narrows_every_layer(tmp_path):
    options = Options(ffn_width=0.25, device="cpu", max_length=32, calibration_samples=20)
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    model_in = save_family("distilbert", tmp_path / "distilbert")
    narrow_ffn(model_in, splits_of(random_texts(40, 3)), TASK, out_dir, options)
    narrow = load_model(out_dir)
    assert narrow.config.hidden_dim == 12
    shapes = {tuple(linear.weight.shape) for linear in encoder_linears(narrow).values()}
    assert shapes == {(32, 32), (12, 32), (32, 12)}


def test_an_unknown_word_stays_unknown_although_fewer_tokens_would_make_it_known():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "a", "##bc", "x", "b", "c"]
    backend = wordpiece_backend(tokens)
    usage = count_usage(backend, [["abc xbc"]])
    after = restricted(backend, choose_tokens(backend, usage, "used"))
    assert backend.encode("abc xbc").tokens == ["[UNK]", "x", "##bc"]
    assert after.encode("abc xbc").tokens == ["[UNK]", "x", "##bc"]


def test_unigram_keeps_the_token_of_the_least_score_and_the_word_start():
    backend = plain_backend(unigram_tokenizer(CORPUS))
    scores = [score for _, score in json.loads(backend.to_str())["model"]["vocab"]]
    least = scores.index(min(scores))
    assert {least, backend.token_to_id("▁")} <= required_tokens(backend)


def test_roberta_keeps_the_ids_up_to_padding_because_positions_are_counted_from_there(tmp_path):
    folder = save_family("roberta", tmp_path / "roberta")
    config = json.loads((folder / "config.json").read_text())
    positions = positions_before_text(AutoConfig.from_pretrained(folder))
    assert positions == config["pad_token_id"] + 1 == 2
    tokens = ["unused", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "road"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=wordpiece_backend(tokens), **BERT_SPECIAL_TOKENS
    )
    tokenizer.save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_config(family_config("roberta", 8, 1))
    model.save_pretrained(folder)
    trimmed_config = AutoConfig.from_pretrained(trimmed(folder, "auto", ["river"] * 20))
    assert (trimmed_config.pad_token_id, trimmed_config.vocab_size) == (1, 7)
    assert positions_before_text(BertConfig(pad_token_id=7)) == 0


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"a": 0}, unk_token="a"),
        models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"),
        models.WordPiece({"a": 0}, unk_token="a"),
        models.Unigram([("a", 0.0)], None),
    ],
    ids=[
        "WordLevel",
        "BPE with suffixes",
        "WordPiece without a pre-tokenizer",
        "Unigram without an unknown token",
    ],
)
def test_an_unsupported_tokenizer_is_refused(model):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    message = f"this {type(model).__name__} tokenizer is of another kind"
    with pytest.raises(UserError, match=f"--trim_vocab is given, but .* {message}"):
        plain_backend(tokenizer)


def test_an_unsupported_feed_forward_block_is_refused():
    model = AutoModelForSequenceClassification.from_config(family_config("bert", 10, 0))
    model.bert.encoder.layer[1].output.dense.bias = None
    with pytest.raises(
        UserError, match="a bert layer's feed-forward block is not two Linears with biases"
    ):
        ffn_linears(model)


def test_the_check_of_trimmed_tokens_notices_a_token_that_became_unknown():
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁x", -1.0), ("x", -1.0)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    after = restricted(backend, [0, 1])
    # An unknown token is shown as the text that it replaces.
    assert backend.encode("xx").tokens == after.encode("xx").tokens == ["▁x", "x"]
    check_same_tokens(backend, backend, [0, 1, 2], [["xx"]])
    with pytest.raises(RuntimeError, match="tokenizes 1 texts differently: 'xx'"):
        check_same_tokens(backend, after, [0, 1], [["x", "xx"]])
