"""Tiny models as a finished run leaves them: a checkpoint, graphs, and a record."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, save_pruned_model, save_tokenizer, sentences
from transformers import BertConfig

from engines.engine import load_engine, predict_logits
from engines.graphs import write_graphs, write_onnx
from runtime.artifacts import write_record

FORMAT_NAMES = ("torch", "onnx/model.onnx", "openvino/openvino_model.xml")
MAX_TOKENS = 48
TEXTS = sentences(90, seed=5)
CLASSES = ("fair", "foul")
FLAGS = ("ad", "rude", "sad")  # labels of the multi-label model


def tiny_config(labels: tuple[str, ...], *, multi_label: bool) -> BertConfig:
    """The config of the tiny BERT for these labels."""
    shape = CONFIGS["bert"].to_dict()
    for name in ("id2label", "label2id", "num_labels", "problem_type", "model_type"):
        shape.pop(name, None)
    kind = "multi_label_classification" if multi_label else "single_label_classification"
    return BertConfig(
        **shape,
        problem_type=kind,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )


def balance(model_dir: Path) -> None:
    """Shift the bias of the head so that each label is predicted for some of the texts."""
    weights = load_file(model_dir / "model.safetensors")
    logits = predict_logits(load_engine(model_dir, "torch", MAX_TOKENS, threads=1), TEXTS)
    weights["classifier.bias"] -= torch.from_numpy(logits.mean(axis=0))
    save_file(weights, model_dir / "model.safetensors", {"format": "pt"})


def build_model(path: Path, config: BertConfig, *, every_format: bool) -> Path:
    """A model directory with the formats FORMAT_NAMES, or only torch and ONNX."""
    save_pruned_model("bert", path, config)
    save_tokenizer("bert", path)
    tokenizer_config = json.loads((path / "tokenizer_config.json").read_text())
    tokenizer_config["model_max_length"] = MAX_TOKENS
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    balance(path)
    if every_format:
        write_graphs(path)
    else:
        (path / "onnx").mkdir()
        write_onnx(path, path / "onnx" / "model.onnx")
    write_record(path, stage="artifact", fingerprint="0", forms={})
    return path


def build_two_class_model(path: Path, *, every_format: bool) -> Path:
    """Two classes, CLASSES."""
    return build_model(path, tiny_config(CLASSES, multi_label=False), every_format=every_format)


def build_multi_label_model(path: Path) -> Path:
    """Three labels, FLAGS, of which any number may apply; torch and ONNX."""
    return build_model(path, tiny_config(FLAGS, multi_label=True), every_format=False)
