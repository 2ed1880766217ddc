"""The quality gate: how much validation macro-F1 a format may lose, and how to lose less.

Formats are compared on the validation split; the test split is never read. A format that loses too
much is written again with its most sensitive layers in full precision. The sensitivity of a layer
is measured: only that layer is fake-quantized, and the change of the logits is its sensitivity.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict
from torch import Tensor, nn

from compression_config import Options
from encoders.calibration import calibration_texts, token_batches_of
from encoders.saved_models import load_saved_model, load_saved_tokenizer
from engines.engine import load_engine, predict_logits
from engines.fake_quantization import (
    fake_quantize_input_hook,
    fake_quantize_weight,
    quantizable_layers,
)
from metrics import macro_f1
from runtime.files import write_json
from runtime.finite import FORMAT_ADVICE, check_logits
from task import Task, decide

log = logging.getLogger(__name__)

RANKING_TEXTS = 64  # training texts on which the sensitivity of the layers is measured

RANKING_BATCH = 32


class QualityGate:
    """The lowest accepted validation macro-F1 of the formats of one model.

    `labels` are the validation labels: class ids [rows] or 0/1 [rows, labels]. `ranking_texts` are
    training texts on which the sensitivity of the layers is measured, once per bit width.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        validation_texts: list[str],
        labels: np.ndarray,
        ranking_texts: list[str],
        multi_label: bool,
        max_f1_drop: float,
        max_length: int,
    ):
        self.model_dir = model_dir
        self.validation_texts = validation_texts
        self.labels = labels
        self.ranking_texts = ranking_texts
        self.multi_label = multi_label
        self.max_length = max_length
        self.rankings: dict[int, list[str]] = {}  # bits -> layers, most sensitive first
        self.min_macro_f1 = self.score(model_dir, "torch") - max_f1_drop

    def score(self, directory: Path, format_name: str) -> float:
        """Validation macro-F1 of a format."""
        engine = load_engine(directory, format_name, self.max_length)
        logits = predict_logits(engine, self.validation_texts)
        check_logits(logits, f"{format_name} of {self.model_dir}", FORMAT_ADVICE)
        return macro_f1(self.labels, decide(logits, self.multi_label))

    def ranking(self, bits: int) -> list[str]:
        """The names of the layers, most sensitive to `bits` first."""
        if bits not in self.rankings:
            sensitivities = layer_sensitivities(
                self.model_dir, self.ranking_texts, self.max_length, bits
            )
            self.rankings[bits] = sorted(sensitivities, key=sensitivities.get, reverse=True)
        return self.rankings[bits]

    def write_until_accepted(
        self,
        write: Callable[[Sequence[str]], None],
        out_dir: Path,
        format_name: str,
        bits: int,
    ) -> list[str]:
        """Write a format with an increasing number of layers in full precision until its score is
        accepted.

        `write(skipped_layers)` writes the format to `out_dir`. It is called with the 0, 1, 2, 4, 8,
        ... most sensitive layers, until the score is high enough or all layers are skipped. Returns
        the layers that were skipped.
        """
        skipped_layers: list[str] = []
        write(skipped_layers)
        while self.score(out_dir, format_name) < self.min_macro_f1:
            ranking = self.ranking(bits)
            if len(skipped_layers) == len(ranking):
                break
            skipped_layers = ranking[: max(1, 2 * len(skipped_layers))]
            log.info(
                "%s loses too much macro-F1; keeping %d layers in full precision",
                format_name,
                len(skipped_layers),
            )
            write(skipped_layers)
        return skipped_layers


def quality_gate(
    model_dir: Path, splits: DatasetDict, labels: np.ndarray, task: Task, options: Options
) -> QualityGate:
    """The gate of a stage: `labels` are those of the validation rows."""
    return QualityGate(
        model_dir,
        validation_texts=splits["validation"][:]["text"],
        labels=labels.astype(int),
        ranking_texts=calibration_texts(splits["train"], RANKING_TEXTS, options.seed),
        multi_label=task.multi_label,
        max_f1_drop=options.max_f1_drop,
        max_length=options.max_length,
    )


def record_skipped_layers(directory: Path, skipped_layers: dict[str, list[str]]) -> None:
    """Record in config.json the layers kept in full precision per results row, if there are any."""
    path = directory / "config.json"
    if any(skipped_layers.values()):
        config = json.loads(path.read_text(encoding="utf-8"))
        config["layers_left_whole"] = skipped_layers
        write_json(path, config)


@torch.inference_mode()
def layer_sensitivities(
    model_dir: Path, texts: list[str], max_length: int, bits: int
) -> dict[str, float]:
    """Name -> sensitivity of every Linear and Embedding.

    The sensitivity is the mean squared change of the logits of `texts` if only that layer is
    quantized to `bits`.
    """
    model = load_saved_model(model_dir, dtype=torch.float32)
    model.eval()
    tokenizer = load_saved_tokenizer(model_dir)
    batches = list(token_batches_of(texts, tokenizer, max_length, RANKING_BATCH))

    def compute_logits() -> Tensor:
        return torch.cat([model(**batch).logits for batch in batches])

    expected = compute_logits()
    sensitivities = {}
    for name, layer in quantizable_layers(model).items():
        with fake_quantized(layer, bits):
            change = compute_logits() - expected
        sensitivities[name] = float(change.square().mean())
    return sensitivities


@contextmanager
def fake_quantized(layer: nn.Linear | nn.Embedding, bits: int) -> Iterator[None]:
    """Fake-quantize the weights of `layer` in the block; with 8 bits also the inputs of a
    Linear."""
    weight = layer.weight.data
    layer.weight.data = fake_quantize_weight(weight, bits)
    hooks = []
    if bits == 8 and isinstance(layer, nn.Linear):
        hooks.append(layer.register_forward_pre_hook(fake_quantize_input_hook))
    try:
        yield
    finally:
        layer.weight.data = weight
        for hook in hooks:
            hook.remove()
