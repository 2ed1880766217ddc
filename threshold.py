"""Stage `tune`: decision thresholds chosen on validation rows and folded into the head's bias.

Every engine and a plain `pipeline` then decide alike, with nothing to configure; probabilities move with the bias.
"""

import math
from pathlib import Path

from datasets import DatasetDict
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from compression_config import ComputeOptions, UserError
from data import label_array
from encoders import Task
from engines import load, predict_logits
from evaluation import probabilities
from training import save_model
from uncertainty import tune_thresholds


def check_tunable(task: Task) -> None:
    """Refuse three or more classes, where one threshold decides nothing."""
    if len(task.labels) > 2 and not task.multi_label:
        raise UserError(f"--tune_threshold is given, but the file has {len(task.labels)} classes; it needs two, or "
                        "several 0/1 columns")  # fmt: skip


def head_bias(model: PreTrainedModel) -> Tensor:
    """The bias [labels] that is added last: that of the last Linear."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1].bias


def fold_in_(bias: Tensor, thresholds: list[float]) -> None:
    """Move `bias` [labels] so that a probability of one half is what `thresholds` were: one for the second of two
    classes, or one a label. sigmoid(z - logit(t)) > 1/2 just where sigmoid(z) > t; softmax of two classes likewise."""
    for label, threshold in enumerate(thresholds, start=len(bias) - len(thresholds)):
        bias.data[label] -= math.log(threshold / (1 - threshold))


def tune(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: ComputeOptions) -> Path:
    """Choose the thresholds of best macro-F1 on validation; `decision_thresholds` in config.json keeps them."""
    validation = splits["validation"]
    engine = load(model_in, "torch", options.max_length, device=options.device)
    logits = predict_logits(engine, validation[:]["text"], options.batch, "validation")
    labels = label_array(validation).astype(int)
    thresholds = tune_thresholds(probabilities(logits, task.multi_label), labels, task.multi_label)
    model = AutoModelForSequenceClassification.from_pretrained(model_in)
    fold_in_(head_bias(model), thresholds)
    model.config.decision_thresholds = dict(zip(task.labels[-len(thresholds) :], thresholds, strict=True))
    return save_model(model, AutoTokenizer.from_pretrained(model_in), out_dir)
