"""Trimmed vocabularies and narrower feed-forward blocks: the same logits where nothing was lost,
and fresh reloads."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
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
    AlbertConfig,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

import pruning
from compression_config import Options, UserError
from encoders.calibration import input_norms
from encoders.families import encoder_linears, ffn_width, positions_before_text
from encoders.vocabulary import (
    VocabularyUsage,
    choose_tokens,
    count_usage,
    pieces_before_unknown,
    plain_backend,
    required_tokens,
    restrict_vocabulary,
    trimmed_tokenizer,
)
from engines.engine import load_engine, predict_logits
from pruning import (
    ffn_linears,
    keep_important_neurons_,
    keep_neurons_,
    neuron_importance,
    target_width,
    trim_vocabulary,
)
from task import Task

TASK = Task(("0", "1"), False)
WORDS = [
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
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
NAMES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "mask_token": "<mask>",
}
FAMILIES = ("bert", "electra", "distilbert", "roberta", "xlm-roberta", "albert")
ODD = "☃ quietly 雪 [MASK] ☃river"


def sentences(count: int, seed: int, words: list[str] = WORDS) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(2, 12))) for _ in range(count)]


def wordpiece(corpus: list[str]) -> PreTrainedTokenizerFast:
    """As BERT's: unused tokens stand between padding and the other special ones."""
    special = list(NAMES.values())
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator(
        corpus,
        trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False),
    )
    tokens = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    tokens[1:1] = ["[unused0]", "[unused1]"]
    backend = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    backend.add_special_tokens(special)
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ids
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **NAMES)


def byte_level(corpus: list[str]) -> RobertaTokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    spec = json.loads(backend.to_str())["model"]
    spec["vocab"]["<mask>"] = len(spec["vocab"])
    return RobertaTokenizer(
        vocab=spec["vocab"], merges=[tuple(merge) for merge in spec["merges"]], model_max_length=64
    )


def unigram(corpus: list[str]) -> XLMRobertaTokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        corpus,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    pieces = [tuple(piece) for piece in json.loads(backend.to_str())["model"]["vocab"]]
    return XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)], model_max_length=64)


RARE = ["walnut", "walnuts", "zebra", "zebras", "ছাতা", "ছাতার", "quietly", "xylem"]
CORPUS = sentences(300, 0) + sentences(300, 1, RARE)


def config(family: str, tokens: int, pad: int):
    common = {
        "vocab_size": tokens,
        "pad_token_id": pad,
        "max_position_embeddings": 80,
        "initializer_range": 0.2,
        **TASK.config(),
    }
    return {
        "bert": lambda: BertConfig(**SHAPE, **common),
        "electra": lambda: ElectraConfig(**SHAPE, **common, embedding_size=24),
        "distilbert": lambda: DistilBertConfig(
            dim=32, n_layers=2, n_heads=2, hidden_dim=48, **common
        ),
        "roberta": lambda: RobertaConfig(**SHAPE, **common, type_vocab_size=1),
        "xlm-roberta": lambda: XLMRobertaConfig(**SHAPE, **common, type_vocab_size=1),
        "albert": lambda: AlbertConfig(**SHAPE, **common, embedding_size=24),
    }[family]()


def saved(family: str, folder: Path) -> Path:
    """A random model of a family with a tokenizer of its kind, learnt from more texts than it is
    trimmed on."""
    tokenizer = {"roberta": byte_level, "xlm-roberta": unigram}.get(family, wordpiece)(CORPUS)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(
        config(family, len(tokenizer), tokenizer.pad_token_id)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(texts: list[str]) -> DatasetDict:
    ids = list(range(len(texts)))
    split = Dataset.from_dict({"id": ids, "text": texts, "label": [i % 2 for i in ids]})
    return DatasetDict(train=split, validation=split)


def trimmed(folder: Path, rule: str, texts: list[str]) -> Path:
    out = folder.with_name(f"{folder.name}-{rule}")
    out.mkdir()
    return trim_vocabulary(folder, rows(texts), TASK, out, Options(trim_vocab=rule))


@pytest.mark.parametrize("family", FAMILIES)
def test_used_changes_no_logit_on_any_training_text(family, tmp_path):
    texts = [*sentences(60, 2), ODD, "", "☃", "নদীর <mask> </s>"]
    whole = saved(family, tmp_path / family)
    small = trimmed(whole, "used", texts)
    before, after = (predict_logits(load_engine(one, "torch", 64), texts) for one in (whole, small))
    assert np.array_equal(before, after)
    sizes = [
        AutoModelForSequenceClassification.from_pretrained(one).config.vocab_size
        for one in (whole, small)
    ]
    tokenizer = AutoTokenizer.from_pretrained(small)
    assert sizes[1] == len(tokenizer) < sizes[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", ["auto", "350"])
def test_fewer_tokens_still_read_every_text(family, rule, tmp_path):
    small = trimmed(saved(family, tmp_path / family), rule, sentences(60, 2))
    tokenizer, whole = (
        AutoTokenizer.from_pretrained(small),
        AutoTokenizer.from_pretrained(tmp_path / family),
    )
    model = AutoModelForSequenceClassification.from_pretrained(small)
    assert len(tokenizer) == model.config.vocab_size <= (350 if rule == "350" else len(whole))
    for text in (*CORPUS[-20:], ODD):
        ids = tokenizer(text)["input_ids"]
        assert (
            max(ids) < len(tokenizer)
            and ids[0] == tokenizer.cls_token_id
            and ids[-1] == tokenizer.sep_token_id
        )
    unknown = tokenizer("雪")["input_ids"][1:-1]
    assert family == "roberta" or unknown[-1] == tokenizer.unk_token_id  # bytes know everything
    assert (
        tokenizer.decode(tokenizer("river")["input_ids"], skip_special_tokens=True).strip()
        == "river"
    )


def test_a_tokenizer_that_moved_keeps_special_tokens_in_place(tmp_path):
    small = AutoTokenizer.from_pretrained(
        trimmed(saved("bert", tmp_path / "bert"), "auto", sentences(60, 2))
    )
    assert {name: getattr(small, name) for name in NAMES} == NAMES
    assert [small.pad_token_id, small.convert_tokens_to_ids("[unused0]")] == [0, small.unk_token_id]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert-auto")
    assert model.config.pad_token_id == 0 and model.get_input_embeddings().padding_idx == 0


def test_every_kept_row_is_the_embedding_of_its_own_token(tmp_path):
    whole = saved("xlm-roberta", tmp_path / "xlm")
    small = trimmed(whole, "auto", sentences(60, 2))
    vocabularies = [AutoTokenizer.from_pretrained(one).get_vocab() for one in (whole, small)]
    tables = [
        AutoModelForSequenceClassification.from_pretrained(one).get_input_embeddings().weight
        for one in (whole, small)
    ]
    assert set(vocabularies[1]) < set(vocabularies[0])
    for token, number in vocabularies[1].items():
        assert torch.equal(tables[1][number], tables[0][vocabularies[0][token]])


def test_wordpiece_keeps_what_an_unknown_word_was_matched_with():
    vocabulary = {token: i for i, token in enumerate(["ab", "a", "##bc", "##b", "x"])}
    taken = lambda word, longest=100: pieces_before_unknown(word, vocabulary, "##", longest)  # noqa: E731
    assert taken("abc") == ["ab"]  # without it a + ##bc would be known
    assert taken("ab") == [] == taken("yx") == taken("abc", longest=2)


def test_auto_keeps_the_fewest_tokens_that_cover_what_is_used():
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "aa", "bb", "cc", "dd"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    used = count_usage(backend, [["aa " * 9000 + "cc " * 995 + "bb " * 5]])
    assert used.counts.tolist() == [0, 0, 9000, 5, 995, 0]
    assert choose_tokens(backend, used, "auto", [0]) == [0, 1, 2, 4]  # 0.9995 of 10,000
    assert choose_tokens(backend, used, "used", [0]) == [0, 1, 2, 3, 4]
    assert choose_tokens(backend, used, "3", [0]) == [0, 1, 2]


def test_bpe_keeps_what_a_token_is_merged_from():
    backend = plain_backend(byte_level(CORPUS))
    vocabulary = backend.get_vocab()
    used = VocabularyUsage(backend)
    used.add(["river"])
    kept = {
        token
        for token, number in vocabulary.items()
        if number in choose_tokens(backend, used, "used")
    }
    after = plain_backend(
        trimmed_tokenizer(
            PreTrainedTokenizerFast(tokenizer_object=backend, **ROBERTA),
            choose_tokens(backend, used, "used"),
        )
    )
    assert "river" in kept and after.encode("river").tokens == backend.encode("river").tokens
    assert (
        set(pre_tokenizers.ByteLevel.alphabet()) <= kept
        and "Ġzebras" in vocabulary
        and "Ġzebras" not in kept
    )


def test_importance_is_the_norm_of_what_a_neuron_adds_by_hand():
    down = torch.tensor([[3.0, 0.0, 1.0], [4.0, 1.0, 0.0]])
    assert neuron_importance(down, torch.tensor([1.0, 10.0, 2.0])).tolist() == [5.0, 10.0, 2.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_neuron_is_a_masked_one(family, tmp_path):
    folder = saved(family, tmp_path / family)
    masked, narrow = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval() for _ in range(2)
    )
    batch = AutoTokenizer.from_pretrained(folder)(
        sentences(8, 5), padding=True, return_tensors="pt"
    )
    downs = {name: down for name, (_, down) in ffn_linears(narrow).items()}
    norms = input_norms(narrow, downs, [batch])
    for name, (_, down) in ffn_linears(masked).items():
        gone = neuron_importance(down.weight.detach(), norms[name]).argsort()[:24]
        down.weight.data[:, gone] = 0
    keep_important_neurons_(narrow, norms, 24)
    narrow.save_pretrained(tmp_path / "narrow")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "narrow").eval()
    assert ffn_width(again.config) == 24 and {
        up.out_features for up, _ in ffn_linears(again).values()
    } == {24}
    with torch.no_grad():
        assert torch.allclose(masked(**batch).logits, again(**batch).logits, atol=1e-6)


def test_neurons_keep_their_order_and_their_bias():
    up, down = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)
    whole = down.weight.clone(), up.bias.clone(), down.bias.clone()
    keep_neurons_(up, down, torch.tensor([0, 2]))
    assert torch.equal(down.weight, whole[0][:, [0, 2]]) and torch.equal(up.bias, whole[1][[0, 2]])
    assert torch.equal(down.bias, whole[2])


def test_importance_does_not_look_at_padding(tmp_path):
    folder = saved("bert", tmp_path / "bert")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    downs = {name: down for name, (_, down) in ffn_linears(model).items()}
    alone = input_norms(model, downs, [tokenizer(["river road"], return_tensors="pt")])
    padded = tokenizer(["river road"], padding="max_length", max_length=40, return_tensors="pt")
    beside = input_norms(model, downs, [padded])
    assert all(torch.allclose(alone[name], beside[name], rtol=1e-4) for name in downs)


def test_a_width_is_a_number_or_a_share():
    assert [target_width(value, 48) for value in (0.5, 24.0, 48.0, 0.001)] == [24, 24, 48, 1]


def test_the_stage_narrows_every_layer(tmp_path):
    options = replace(
        Options(), ffn_width=0.25, device="cpu", max_length=32, calibration_samples=20
    )
    (tmp_path / "out").mkdir()
    pruning.narrow_ffn(
        saved("distilbert", tmp_path / "d"),
        rows(sentences(40, 3)),
        TASK,
        tmp_path / "out",
        Options(**{name: getattr(options, name) for name in Options.__dataclass_fields__}),
    )
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again.config.hidden_dim == 12
    assert {tuple(linear.weight.shape) for linear in encoder_linears(again).values()} == {
        (32, 32),
        (12, 32),
        (32, 12),
    }


def test_a_word_that_fewer_tokens_would_make_known_stays_unknown_as_otherwise_known(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "a", "##bc", "x", "b", "c"]
    backend = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    used = count_usage(backend, [["abc xbc"]])
    kept = choose_tokens(backend, used, "used")
    after = Tokenizer.from_str(json.dumps(restrict_vocabulary(json.loads(backend.to_str()), kept)))
    assert (
        after.encode("abc xbc").tokens == backend.encode("abc xbc").tokens == ["[UNK]", "x", "##bc"]
    )


def test_unigrams_least_score_and_mark_of_words_stay():
    backend = plain_backend(unigram(CORPUS))
    pieces = json.loads(backend.to_str())["model"]["vocab"]
    least = min(range(len(pieces)), key=lambda number: pieces[number][1])
    assert {least, backend.token_to_id("▁")} <= required_tokens(backend)


def test_roberta_keeps_the_ids_up_to_padding_because_it_counts_positions_from_there(tmp_path):
    folder = saved("roberta", tmp_path / "r")
    spec = json.loads((folder / "config.json").read_text())
    assert (
        positions_before_text(AutoConfig.from_pretrained(folder)) == spec["pad_token_id"] + 1 == 2
    )
    tokens = ["unused", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "road"]
    backend = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES).save_pretrained(folder)
    AutoModelForSequenceClassification.from_config(config("roberta", 8, 1)).save_pretrained(folder)
    small = AutoConfig.from_pretrained(trimmed(folder, "auto", ["river"] * 20))
    assert (small.pad_token_id, small.vocab_size) == (1, 7)
    assert positions_before_text(BertConfig(pad_token_id=7)) == 0


def test_a_token_without_a_row_gets_one_of_zeros():
    model = AutoModelForSequenceClassification.from_config(config("bert", 10, 0))
    pruning.keep_embedding_rows_(model, [0, 3, 11])
    assert model.get_input_embeddings().weight[2].eq(0).all() and model.config.vocab_size == 3


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"a": 0}, unk_token="a"),
        models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"),
        models.WordPiece({"a": 0}, unk_token="a"),
        models.Unigram([("a", 0.0)], None),
    ],
    ids=["WordLevel", "BPE with suffixes", "WordPiece without words", "Unigram without unknown"],
)
def test_another_kind_of_tokenizer_is_refused(model):
    with pytest.raises(UserError, match="this tokenizer is another kind of"):
        plain_backend(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)))


def test_a_block_of_another_kind_is_refused():
    model = AutoModelForSequenceClassification.from_config(config("bert", 10, 0))
    model.bert.encoder.layer[1].output.dense.bias = None
    with pytest.raises(
        UserError, match="a bert layer's feed-forward block is not two Linears with biases"
    ):
        ffn_linears(model)


def test_the_check_of_what_is_lossless_notices_a_piece_that_became_unknown():
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁x", -1.0), ("x", -1.0)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    after = Tokenizer.from_str(
        json.dumps(restrict_vocabulary(json.loads(backend.to_str()), [0, 1]))
    )
    assert (
        backend.encode("xx").tokens == after.encode("xx").tokens == ["▁x", "x"]
    )  # an unknown piece shows its text
    pruning.check_same_tokens(backend, backend, [0, 1, 2], rows(["xx"])["train"])
    with pytest.raises(RuntimeError, match="cuts 1 texts otherwise: 'xx'"):
        pruning.check_same_tokens(backend, after, [0, 1], rows(["x", "xx"])["train"])
