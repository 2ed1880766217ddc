"""Distillation as in a textbook: full-length padding, fp32, the teacher runs in every step."""

from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from compression_config import Options
from data import label_array
from losses import distillation_loss
from metrics import macro_f1
from task import Task, decide


def padded_loader(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, options: Options, *, shuffle: bool
) -> DataLoader:
    """Batches of (inputs, labels), every text padded to `--max_length`."""

    def collate(part: list[dict]) -> tuple[BatchEncoding, torch.Tensor]:
        inputs = tokenizer(
            [row["text"] for row in part],
            padding="max_length",
            truncation=True,
            max_length=options.max_length,
            return_tensors="pt",
        )
        return inputs, torch.tensor([row["label"] for row in part])

    return DataLoader(rows, options.batch, shuffle=shuffle, collate_fn=collate)


def train_epoch_(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    train: DataLoader,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    options: Options,
) -> None:
    """One epoch of the textbook loop, in place."""
    student.train()
    for inputs, labels in train:
        with torch.no_grad():
            teacher_logits = teacher(**inputs).logits
        loss = distillation_loss(
            student(**inputs).logits,
            labels,
            teacher_logits,
            options.kd_alpha,
            options.kd_temperature,
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@torch.no_grad()
def loader_logits(model: PreTrainedModel, loader: DataLoader) -> torch.Tensor:
    """Logits [rows, labels]."""
    model.eval()
    return torch.cat([model(**inputs).logits for inputs, _ in loader])


def train_textbook(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    teacher_dir: Path,
    splits: DatasetDict,
    task: Task,
    options: Options,
    out_dir: Path,
) -> None:
    """Distill and write the student of the best validation epoch into `out_dir`."""
    teacher = AutoModelForSequenceClassification.from_pretrained(teacher_dir).eval()
    train = padded_loader(splits["train"], tokenizer, options, shuffle=True)
    validation = padded_loader(splits["validation"], tokenizer, options, shuffle=False)
    labels = label_array(splits["validation"])
    steps = options.epochs * len(train)
    optimizer = torch.optim.AdamW(
        student.parameters(), options.lr, weight_decay=options.weight_decay
    )
    schedule = get_linear_schedule_with_warmup(
        optimizer, round(options.warmup_ratio * steps), steps
    )
    best_f1 = float("-inf")
    for _ in range(options.epochs):
        train_epoch_(student, teacher, train, optimizer, schedule, options)
        logits = loader_logits(student, validation).numpy()
        f1 = macro_f1(labels, decide(logits, task.multi_label))
        if f1 > best_f1:
            best_f1 = f1
            student.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
