"""The quality gate: what a form may lose on validation, and which layers are left whole so that it loses less.

Nothing here looks at the test split. Layers are ranked by measurement: each alone is rounded, and the change of the
logits tells how much the model depends on it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import DatasetDict
from torch import Tensor, nn

from compression_config import Options
from data import label_array
from encoders.calibration import calibration_texts, token_batches_of
from engines.engine import load_engine, predict_logits
from engines.fake_quantization import fake_quantize_weight, quantizable_layers, quantize_input_hook
from metrics import macro_f1
from runtime.files import write_json
from task import Task, decide

log = logging.getLogger(__name__)

RANKING_TEXTS = 64  # texts that layers are ranked on


class QualityGate:
    """What a model scores on validation, and how much less a form of it may score."""

    def __init__(self, model_dir: Path, splits: DatasetDict, task: Task, options: Options):
        self.model_dir, self.splits, self.task, self.options = model_dir, splits, task, options
        self.least = self.score(model_dir, "torch") - options.max_f1_drop
        self.rankings: dict[int, list[str]] = {}

    def score(self, directory: Path, form: str) -> float:
        """Macro-F1 of a form on validation."""
        validation = self.splits["validation"]
        logits = predict_logits(
            load_engine(directory, form, self.options.max_length), validation[:]["text"]
        )
        return macro_f1(label_array(validation).astype(int), decide(logits, self.task.multi_label))

    def ranking(self, bits: int) -> list[str]:
        """The layers, most sensitive to `bits` first."""
        if bits not in self.rankings:
            texts = calibration_texts(self.splits["train"], RANKING_TEXTS, self.options.seed)
            found = layer_sensitivities(self.model_dir, texts, self.options.max_length, bits)
            self.rankings[bits] = sorted(found, key=lambda name: -found[name])
        return self.rankings[bits]

    def fit(
        self, write: Callable[[Sequence[str]], None], out_dir: Path, form: str, bits: int
    ) -> list[str]:
        """Write the form with 0, 1, 2, 4, ... of the most sensitive layers left whole, until it scores enough or none
        is left to quantize; the layers that were left."""
        whole: list[str] = []
        write(whole)
        while self.score(out_dir, form) < self.least and len(whole) < len(self.ranking(bits)):
            whole = self.ranking(bits)[: max(1, 2 * len(whole))]
            log.info("%s loses too much; %d layers are left whole", form, len(whole))
            write(whole)
        return whole


def record_skipped_layers(directory: Path, whole: dict[str, list[str]]) -> None:
    """Note in config.json which layers each form left whole, where any did."""
    path = directory / "config.json"
    if any(whole.values()):
        write_json(
            path, json.loads(path.read_text(encoding="utf-8")) | {"layers_left_whole": whole}
        )


@torch.inference_mode()
def layer_sensitivities(
    model_dir: Path, texts: list[str], max_length: int, bits: int
) -> dict[str, float]:
    """Linear or Embedding -> mean square change of the logits of `texts` when it alone is rounded to `bits`."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(
        model_dir, dtype=torch.float32
    ).eval()
    batches = list(
        token_batches_of(texts, AutoTokenizer.from_pretrained(model_dir), max_length, 32)
    )
    layers = quantizable_layers(model)

    def logits() -> Tensor:
        return torch.cat([model(**batch).logits for batch in batches])

    expected, found = logits(), {}
    for name, layer in layers.items():
        kept = layer.weight.data
        layer.weight.data = fake_quantize_weight(kept, bits)
        hooks = (
            [layer.register_forward_pre_hook(quantize_input_hook)]
            if bits == 8 and isinstance(layer, nn.Linear)
            else []
        )
        found[name] = float((logits() - expected).square().mean())
        layer.weight.data = kept
        for hook in hooks:
            hook.remove()
    return found
