"""Write a checkpoint as one fp32 ONNX graph that takes any batch size and length.

Node names keep the module's path (`/model/bert/encoder/layer.0/...`), by which the weights are found again later.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPSET = 17
EXAMPLE_TEXTS = ["a", "a b c d e f g h"]  # of different lengths, so that the traced batch holds padding


def write_onnx(model_dir: Path | str, path: Path | str) -> None:
    """Export `model_dir` to `path`; the graph's inputs are what its tokenizer gives, its output is `logits`."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )
    batch = AutoTokenizer.from_pretrained(model_dir)(EXAMPLE_TEXTS, padding=True, return_tensors="pt")
    names = list(batch)
    axes = {name: {0: "batch", 1: "length"} for name in names} | {"logits": {0: "batch"}}
    with quiet():
        torch.onnx.export(
            _logits_only(model, names).eval(),
            tuple(batch.values()),
            str(path),
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    _fold_identities(str(path))


def _fold_identities(path: str) -> None:
    """Read shared weights directly: quantizers pass over a weight that reaches its product through an Identity."""
    import onnx

    model = onnx.load(path)
    source = {tensor.name: tensor.name for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        node.input[:] = [source.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.input[0] in source:
            source[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _logits_only(model: Any, names: list[str]) -> Any:
    """`model` as a module of positional inputs, because the exporter takes the inputs' order from them."""
    import torch

    class LogitsOnly(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(names, inputs, strict=True))).logits

    return LogitsOnly()


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings and log lines below ERROR that exporters and quantizers emit by the dozen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
