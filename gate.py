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

from artifacts import write_json
from calibration import calibration_texts, text_batches
from compression_config import GateOptions
from data import label_array
from encoders import Task
from engines import decide, load, predict_logits
from evaluation import macro_f1
from rounding import layers_of, round_input, rounded_weight

log = logging.getLogger(__name__)

RANKED_TEXTS = 64  # texts that layers are ranked on


class Gate:
    """What a model scores on validation, and how much less a form of it may score."""

    def __init__(self, model_dir: Path, splits: DatasetDict, task: Task, options: GateOptions):
        self.model_dir, self.splits, self.task, self.options = model_dir, splits, task, options
        self.least = self.score(model_dir, "torch") - options.max_f1_drop
        self.rankings: dict[int, list[str]] = {}

    def score(self, directory: Path, form: str) -> float:
        """Macro-F1 of a form on validation."""
        validation = self.splits["validation"]
        logits = predict_logits(load(directory, form, self.options.max_length), validation[:]["text"])
        return macro_f1(label_array(validation).astype(int), decide(logits, self.task.multi_label))

    def ranking(self, bits: int) -> list[str]:
        """The layers, most sensitive to `bits` first."""
        if bits not in self.rankings:
            texts = calibration_texts(self.splits["train"], RANKED_TEXTS, self.options.seed)
            found = sensitivities(self.model_dir, texts, self.options.max_length, bits)
            self.rankings[bits] = sorted(found, key=lambda name: -found[name])
        return self.rankings[bits]

    def fit(self, write: Callable[[Sequence[str]], None], out_dir: Path, form: str, bits: int) -> list[str]:
        """Write the form with 0, 1, 2, 4, ... of the most sensitive layers left whole, until it scores enough or none
        is left to quantize; the layers that were left."""
        whole: list[str] = []
        write(whole)
        while self.score(out_dir, form) < self.least and len(whole) < len(self.ranking(bits)):
            whole = self.ranking(bits)[: max(1, 2 * len(whole))]
            log.info("%s loses too much; %d layers are left whole", form, len(whole))
            write(whole)
        return whole


def keep_record(directory: Path, whole: dict[str, list[str]]) -> None:
    """Note in config.json which layers each form left whole, where any did."""
    path = directory / "config.json"
    if any(whole.values()):
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"layers_left_whole": whole})


@torch.inference_mode()
def sensitivities(model_dir: Path, texts: list[str], max_length: int, bits: int) -> dict[str, float]:
    """Linear or Embedding -> mean square change of the logits of `texts` when it alone is rounded to `bits`."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(model_dir, dtype=torch.float32).eval()
    batches = list(text_batches(texts, AutoTokenizer.from_pretrained(model_dir), max_length, 32))
    layers = layers_of(model)

    def logits() -> Tensor:
        return torch.cat([model(**batch).logits for batch in batches])

    expected, found = logits(), {}
    for name, layer in layers.items():
        kept = layer.weight.data
        layer.weight.data = rounded_weight(kept, bits)
        hooks = [layer.register_forward_pre_hook(round_input)] if bits == 8 and isinstance(layer, nn.Linear) else []
        found[name] = float((logits() - expected).square().mean())
        layer.weight.data = kept
        for hook in hooks:
            hook.remove()
    return found
