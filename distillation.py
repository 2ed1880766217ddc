"""Stage `distill`: a student learns from the teacher's outputs.

The teacher runs once over the texts; its logits then travel as a column joined by row id, and no stage holds it again.
"""

import logging
from functools import partial
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from transformers import set_seed

from compression_config import ComputeOptions, DistillOptions
from encoders import Task, start_student
from inference import load, predict_logits
from losses import distillation_loss, hard_label_loss
from training import hard_weights, save_model, train_

log = logging.getLogger(__name__)


def teacher_outputs(teacher_dir: Path, splits: DatasetDict, options: ComputeOptions) -> dict[int, np.ndarray]:
    """Row id -> the teacher's logits [labels], for training and validation rows."""
    engine = load(teacher_dir, "torch", options.max_length, device=options.device)
    outputs = {}
    for name in ("train", "validation"):
        logits = predict_logits(engine, splits[name][:]["text"], 2 * options.batch, f"teacher outputs, {name}")
        outputs |= dict(zip(splits[name]["id"], logits, strict=True))
    return outputs


def with_teacher_logits(splits: DatasetDict, outputs: dict[int, np.ndarray]) -> DatasetDict:
    """The splits with a `teacher_logits` column on training and validation rows, joined by row id."""
    joined = dict(splits)
    for name in ("train", "validation"):
        rows = [outputs[row_id].tolist() for row_id in splits[name]["id"]]
        joined[name] = splits[name].add_column("teacher_logits", rows)
    return DatasetDict(joined)


def distill(model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: DistillOptions) -> Path:
    """Train what `--student_path` names on the `teacher_logits` and labels of the training rows; on labels alone
    where `kd_alpha` is 0."""
    set_seed(options.seed)
    student, tokenizer = start_student(
        options.student_path, model_in, task, splits["train"][:]["text"], options.max_length)  # fmt: skip
    weights = hard_weights(splits, task, options)
    soft = partial(distillation_loss, alpha=options.kd_alpha, temperature=options.kd_temperature, weights=weights)
    loss = soft if options.kd_alpha else lambda logits, labels, _: hard_label_loss(logits, labels, weights)
    train_(student, tokenizer, splits, out_dir, options, epochs=options.epochs, lr=options.lr, loss=loss)
    return save_model(student, tokenizer, out_dir)
