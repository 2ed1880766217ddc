"""Every form of a tiny model, five families: it reloads, decides as its parent does, and weighs
what it promises."""

import json
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
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

import compression_config
import quantization
from compression_config import UserError, check_installed
from encoders.families import encoder_linears
from engines.engine import (
    Engine,
    formats_in,
    load_engine,
    make_collate,
    predict_logits,
    serving_files,
)
from engines.graphs import write_graphs
from engines.parameter_counts import count_parameters
from quantization import QUANTIZERS, REQUIREMENTS

SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
ENDINGS = ("a", "e", "i", "o", "u", "ay", "ee", "oo", "an", "en", "in", "on", "un")
WORDS = [start + ending for start in "bdfgklmnprst" for ending in ENDINGS]
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
COMMON = {
    "vocab_size": len(SPECIAL + WORDS),
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
FAMILIES = [name for name in CONFIGS if name != "albert"]
HEADS = {
    "bert": ["classifier", "bert.pooler.dense"],
    "electra": ["classifier.dense", "classifier.out_proj"],
    "distilbert": ["classifier", "pre_classifier"],
    "roberta": ["classifier.dense", "classifier.out_proj"],
    "xlm-roberta": ["classifier.dense", "classifier.out_proj"],
}
FORMS = [(method, engine) for method in QUANTIZERS for engine in QUANTIZERS[method]]
TOLERANCE = {
    "fp16": 0.002,
    "dynamic": 0.03,
    "static": 0.06,
    "int4": 0.15,
}  # mean |difference|; mean |logit| is 0.2-0.7
AGREEMENT = {"fp16": 0.95, "dynamic": 0.9, "static": 0.9, "int4": 0.9}
NF4 = [
    -1.0,
    -0.6962,
    -0.5251,
    -0.3949,
    -0.2844,
    -0.1848,
    -0.0911,
    0.0,
    0.0796,
    0.1609,
    0.2461,
    0.3379,
    0.4407,
    0.5626,
    0.7230,
    1.0,
]
MAX_LENGTH = 64


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]


TEXTS = sentences(40, seed=1)


def save_tokenizer(family: str, path: Path) -> None:
    vocabulary = {token: i for i, token in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    segments = ["token_type_ids"] if family in ("bert", "electra", "albert") else []
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        pad_token="[PAD]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", *segments, "attention_mask"],
    ).save_pretrained(path)


def save_pruned_model(family: str, path: Path, config: PretrainedConfig | None = None) -> None:
    """Random weights, half of each encoder Linear zero; random biases too, so that none equals
    another."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config or CONFIGS[family])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
        for linear in encoder_linears(model).values():
            linear.weight[linear.weight.abs() <= linear.weight.abs().median()] = 0
    model.save_pretrained(path)


@dataclass
class Lab:
    """Parents and their quantized directories, each made once a session."""

    folder: Path

    def parent(self, family: str) -> Path:
        path = self.folder / family
        if not path.exists():
            save_pruned_model(family, path)
            save_tokenizer(family, path)
        return path

    def quantized(self, family: str, method: str) -> Path:
        path = self.folder / f"{family}-{method}"
        if not path.exists():
            for quantizer in QUANTIZERS[method].values():
                quantizer(self.parent(family), path, sentences(32, seed=2), MAX_LENGTH)
        return path

    def tensors(self, family: str, method: str | None = None) -> dict[str, torch.Tensor]:
        path = self.quantized(family, method) if method else self.parent(family)
        return load_file(path / "model.safetensors")

    def model(self, family: str, method: str) -> torch.nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(
            self.quantized(family, method)
        ).eval()


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("quantization"))


def encoder_weights(lab: Lab, family: str) -> dict[str, torch.Tensor]:
    model = AutoModelForSequenceClassification.from_pretrained(lab.parent(family))
    return {name: linear.weight.detach() for name, linear in encoder_linears(model).items()}


def onnx_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Initializers by name, and the inputs of every node by its name."""
    import onnx

    graph = onnx.load(next((path / "onnx").glob("*.onnx"))).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return arrays, {node.name: list(node.input) for node in graph.node}


@pytest.mark.parametrize("method, engine", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_form_reloads_and_its_logits_agree_with_its_parents(lab, family, method, engine):
    expected = predict_logits(
        load_engine(lab.parent(family), "torch", MAX_LENGTH, threads=1), TEXTS
    )
    logits = predict_logits(
        load_engine(lab.quantized(family, method), engine, MAX_LENGTH, threads=1), TEXTS
    )
    assert logits.dtype == np.float32 and logits.shape == (40, 3)
    assert np.abs(logits - expected).mean() < TOLERANCE[method]
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= AGREEMENT[method]


@pytest.mark.parametrize("method, engine", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_logical_weights(lab, family, method, engine):
    parameters = list(
        AutoModelForSequenceClassification.from_pretrained(lab.parent(family)).parameters()
    )
    counts = count_parameters(lab.quantized(family, method), engine)
    assert counts.parameters == sum(parameter.numel() for parameter in parameters)
    assert counts.nonzeros <= sum(int(parameter.count_nonzero()) for parameter in parameters)
    assert 0.5 <= counts.sparsity < 0.6


def test_counts_by_hand_of_a_full_precision_checkpoint_and_its_graph(lab, tmp_path):
    layer = 4 * (64 * 64 + 64) + (64 * 128 + 128) + (128 * 64 + 64) + 2 * 2 * 64
    embeddings = (len(SPECIAL + WORDS) + 80 + 2) * 64 + 2 * 64
    parameters = embeddings + 2 * layer + (64 * 64 + 64) + (64 * 3 + 3)
    zeros = 2 * (4 * 64 * 64 + 2 * 64 * 128) // 2
    counts = count_parameters(lab.parent("bert"), "torch")
    assert counts.parameters == parameters
    assert counts.sparsity == 0.5
    assert parameters - counts.nonzeros == zeros + 64  # and the embedding of [PAD]
    graphs = with_graphs(lab, "bert", tmp_path)
    assert count_parameters(graphs, "onnx") == counts
    without_ones = count_parameters(
        graphs, "openvino"
    )  # the norms' weights are all one, and OpenVINO leaves them out
    assert without_ones == replace(
        counts, parameters=parameters - 5 * 64, nonzeros=counts.nonzeros - 5 * 64
    )


def with_graphs(lab: Lab, family: str, folder: Path) -> Path:
    """A copy of the family's checkpoint with its fp32 graphs."""
    for path in serving_files(lab.parent(family), "torch"):
        (folder / path.name).symlink_to(path)
    write_graphs(folder)
    return folder


@pytest.mark.parametrize("family", CONFIGS)
def test_a_graph_gives_the_checkpoints_logits_at_any_batch_and_length(lab, family, tmp_path):
    directory = with_graphs(lab, family, tmp_path)
    served = [load_engine(directory, form, MAX_LENGTH, threads=1) for form in formats_in(directory)]
    assert len(served) == 3
    for texts in (["ba"], ["ba", "ba be bi"], [" ".join(WORDS[:70]), "ba", "?"], TEXTS[:17]):
        torch_logits, *others = (engine.forward(engine.encode(texts)) for engine in served)
        for logits in others:
            assert np.abs(logits - torch_logits).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_fp16_halves_the_weights_and_computes_in_fp32(lab, family):
    half, full = (
        lab.quantized(family, "fp16") / "model.safetensors",
        lab.parent(family) / "model.safetensors",
    )
    assert half.stat().st_size / full.stat().st_size == pytest.approx(0.5, abs=0.02)
    assert {tensor.dtype for tensor in lab.tensors(family, "fp16").values()} == {torch.float16}
    assert {parameter.dtype for parameter in lab.model(family, "fp16").parameters()} == {
        torch.float32
    }


def test_fp16_computes_in_fp32_whatever_its_parents_config_says(lab, tmp_path):
    parent = Path(shutil.copytree(lab.parent("bert"), tmp_path / "parent"))
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    QUANTIZERS["fp16"]["torch"](parent, tmp_path / "fp16", TEXTS, MAX_LENGTH)
    assert (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "fp16").dtype == torch.float32
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_weights_are_off_by_half_a_step_of_their_channel_at_most(lab, family):
    stored = lab.tensors(family, "dynamic")
    for name, weight in encoder_weights(lab, family).items():
        values, scale = stored[f"{name}._weight_qdata"], stored[f"{name}._weight_scale"]
        assert values.dtype == torch.int8 and scale.shape == (weight.shape[0], 1)
        assert torch.allclose(scale[:, 0], weight.abs().amax(1) / 127.5)
        assert ((weight - values * scale).abs() <= scale / 2 * 1.0001).all()
        assert (values[weight == 0] == 0).all()


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_onnx_weights_are_int8_per_channel_and_off_by_half_a_step_at_most(lab, method):
    arrays, inputs = onnx_tensors(lab.quantized("bert", method))
    for name, weight in encoder_weights(lab, "bert").items():
        scope = "/model/" + name.replace(".", "/").replace("/layer/", "/layer.")
        read = next(
            names
            for node, names in inputs.items()
            if node in (f"{scope}/MatMul", f"{scope}/MatMul_quant")
        )
        base = read[1].removesuffix("_DequantizeLinear_Output").removesuffix("_quantized")
        values, scale = arrays[f"{base}_quantized"], arrays[f"{base}_scale"]
        assert (
            values.dtype == np.int8
            and scale.shape == (weight.shape[0],)
            and not arrays[f"{base}_zero_point"].any()
        )
        assert (np.abs(weight.numpy().T - values * scale) <= scale / 2 * 1.0001).all()
        assert (values[weight.numpy().T == 0] == 0).all()


def test_a_weight_shared_by_layers_is_quantized_once(lab):
    arrays, _ = onnx_tensors(lab.quantized("albert", "dynamic"))
    assert not [
        name for name, array in arrays.items() if array.dtype == np.float32 and array.ndim == 2
    ]
    shared = AutoModelForSequenceClassification.from_pretrained(lab.parent("albert"))
    parameters = sum(parameter.numel() for parameter in shared.parameters())
    assert count_parameters(lab.quantized("albert", "dynamic"), "onnx").parameters == parameters


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_a_quantized_graph_multiplies_integers(lab, method, tmp_path):
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    (source,) = (lab.quantized("bert", method) / "onnx").glob("*.onnx")
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    floats = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == tensor.FLOAT and len(tensor.dims) == 2
    }
    assert not [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and floats & set(node.input)
    ]
    assert (
        sum(
            node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul") for node in graph.node
        )
        >= 12
    )


def test_int8_weights_are_still_int8_after_a_forward(lab):
    model = lab.model("bert", "dynamic")
    with torch.inference_mode():
        model(input_ids=torch.tensor([[0, 5, 6, 2]]))
    assert {linear.weight.qdata.dtype for linear in encoder_linears(model).values()} == {torch.int8}


@pytest.mark.parametrize("family", FAMILIES)
def test_nf4_weights_are_off_by_half_the_largest_gap_of_the_code_at_most(lab, family):
    from bitsandbytes.functional import dequantize_4bit

    half_gap = max(np.diff(NF4)) / 2
    loaded = encoder_linears(lab.model(family, "int4"))
    for name, weight in encoder_weights(lab, family).items():
        packed = loaded[name].weight
        assert (
            packed.dtype == torch.uint8
            and packed.numel() == weight.numel() / 2
            and packed.quant_state.nested
        )
        blocks, restored = (
            weight.view(-1, 64),
            dequantize_4bit(packed.data, packed.quant_state).view(-1, 64),
        )
        largest = blocks.abs().amax(1, keepdim=True)
        slack = 0.01 * largest.max()  # the scales are themselves stored in 8 bits
        assert ((blocks - restored).abs() <= half_gap * largest + slack).all()
        assert (restored[blocks == 0] == 0).all()


@pytest.mark.parametrize("method", ["dynamic", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_not_quantized_and_no_encoder_linear_is_left_in_full_precision(
    lab, family, method
):
    before, after = lab.tensors(family), lab.tensors(family, method)
    for name in HEADS[family]:
        assert torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
    full = {name for name, tensor in after.items() if tensor.dtype == torch.float32}
    assert full.isdisjoint({f"{name}.weight" for name in encoder_weights(lab, family)})


@pytest.mark.parametrize("method", QUANTIZERS)
def test_a_directory_holds_what_serving_needs_and_nothing_else(lab, method):
    path = lab.quantized("bert", method)
    served = {file for engine in QUANTIZERS[method] for file in serving_files(path, engine)}
    assert served == {file for file in path.rglob("*") if file.is_file()}
    assert {file.name for file in served} >= {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_nf4_leaves_widths_that_are_no_multiple_of_its_block(tmp_path):
    config = replace_config("bert", intermediate_size=100)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    left = quantization.skipped_modules(tmp_path, width_multiple=64)
    assert sorted(left) == [
        "bert.encoder.layer.0.output.dense",
        "bert.encoder.layer.1.output.dense",
        "bert.pooler.dense",
        "classifier",
    ]


def test_nf4_refuses_a_model_of_which_nothing_fits(tmp_path):
    config = replace_config("bert", hidden_size=40, intermediate_size=100)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--quant_method is int4, but .* multiple of 64"):
        QUANTIZERS["int4"]["torch"](tmp_path, tmp_path / "out", TEXTS, MAX_LENGTH)


def replace_config(family: str, **changes):
    return type(CONFIGS[family])(**{**CONFIGS[family].to_dict(), **changes})


def test_logits_come_back_in_the_order_of_the_texts():
    lengths = Engine(
        list, lambda texts: [len(text) for text in texts], lambda batch: np.array([batch]).T
    )
    assert predict_logits(lengths, TEXTS, batch=7)[:, 0].tolist() == [len(text) for text in TEXTS]


def test_rows_are_padded_on_their_side_and_padding_is_masked():
    for side, ids, mask in (
        ("right", [[5, 6, 7], [8, 1, 1]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[5, 6, 7], [1, 1, 8]], [[1, 1, 1], [0, 0, 1]]),
    ):
        batch = make_collate(1, side)([[5, 6, 7], [8]])
        assert batch["input_ids"].tolist() == ids and batch["attention_mask"].tolist() == mask


def test_batching_does_not_change_a_rows_logits(lab):
    engine = load_engine(lab.parent("roberta"), "torch", MAX_LENGTH)
    alone = np.concatenate([predict_logits(engine, [text]) for text in TEXTS])
    assert np.abs(predict_logits(engine, TEXTS, batch=16) - alone).max() < 1e-5


@pytest.fixture
def linear_forms(tmp_path) -> dict[str, Path]:
    """A binary and a multi-label pipeline on four texts over three words; the first word counts
    for nothing."""
    import joblib
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    texts = ["red green", "red", "blue", "green blue"]
    targets = {"single": [0, 0, 1, 1], "multi": np.array([[1, 0], [1, 1], [0, 1], [0, 0]])}
    classifiers = {
        "single": LogisticRegression(),
        "multi": OneVsRestClassifier(LogisticRegression()),
    }
    for name, classifier in classifiers.items():
        (tmp_path / name).mkdir()
        pipeline = make_pipeline(TfidfVectorizer(), classifier).fit(texts, targets[name])
        for fitted in getattr(pipeline[-1], "estimators_", [pipeline[-1]]):
            fitted.coef_[0, 0] = 0
        joblib.dump(pipeline, tmp_path / name / "linear.joblib")
    return {name: tmp_path / name for name in classifiers}


def test_linear_logits_are_log_probabilities_or_log_odds(linear_forms):
    import joblib

    for name, to_probabilities in (
        ("single", lambda x: torch.softmax(x, 1)),
        ("multi", torch.sigmoid),
    ):
        logits = predict_logits(
            load_engine(linear_forms[name], "linear", MAX_LENGTH), ["red", "blue green"]
        )
        expected = joblib.load(linear_forms[name] / "linear.joblib").predict_proba(
            ["red", "blue green"]
        )
        assert np.allclose(to_probabilities(torch.from_numpy(logits)), expected, atol=1e-6)


def test_linear_counts_by_hand(linear_forms):
    single, multi = (count_parameters(linear_forms[name], "linear") for name in ("single", "multi"))
    assert single.parameters == 3 + 1 + 3 and multi.parameters == 2 * (3 + 1) + 3
    assert single.nonzeros == single.parameters - 1 and multi.nonzeros == multi.parameters - 2
    assert single.sparsity == pytest.approx(1 / 3) and multi.sparsity == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    "method, package", [(m, package) for m, needed in REQUIREMENTS.items() for package in needed]
)
def test_a_missing_package_is_refused_in_one_line(monkeypatch, method, package):
    found = compression_config.find_spec
    monkeypatch.setattr(
        compression_config, "find_spec", lambda name: None if name == package else found(name)
    )
    with pytest.raises(UserError) as refusal:
        check_installed("--quant_method", method, REQUIREMENTS[method])
    assert (
        str(refusal.value)
        == f"--quant_method is {method}, but must have {package}: pip install {package}"
    )


def test_nothing_is_missing_here():
    assert REQUIREMENTS.keys() == QUANTIZERS.keys()
    for method in QUANTIZERS:
        check_installed("--quant_method", method, REQUIREMENTS[method])
