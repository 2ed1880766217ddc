"""Tiny models, their options and soft labels, for tests of stages that train."""

from dataclasses import replace
from pathlib import Path

import torch
from datasets import DatasetDict

from compression_config import Options
from distillation import with_teacher_logits, write_teacher_outputs
from encoders.scratch import scratch_model
from encoders.start import save_model
from task import Task

TASK = Task(("0", "1"), False)
MAX_LENGTH = 32
OPTIONS = Options(device="cpu", precision="fp32", lr=1e-3, max_length=MAX_LENGTH)


def tiny_options(**changes) -> Options:
    """Options of a training on the CPU in fp32 with texts of at most MAX_LENGTH tokens."""
    return replace(OPTIONS, **changes)


def write_scratch_model(spec: str, texts: list[str], directory: Path, *, seed: int = 0) -> Path:
    """A model with random weights and a tokenizer trained on `texts`; returns `directory`."""
    torch.manual_seed(seed)
    model, tokenizer = scratch_model(spec, TASK, texts, MAX_LENGTH)
    return save_model(model, tokenizer, directory)


def soft_splits(teacher_dir: Path, splits: DatasetDict, directory: Path) -> DatasetDict:
    """Training and validation rows with the teacher's logits, which are written to `directory`."""
    soft = DatasetDict()
    for name in ("train", "validation"):
        outputs_dir = directory / name
        outputs_dir.mkdir()
        write_teacher_outputs(
            teacher_dir,
            splits[name],
            outputs_dir,
            max_length=MAX_LENGTH,
            batch=OPTIONS.batch,
            device="cpu",
        )
        soft[name] = with_teacher_logits(splits[name], outputs_dir)
    return soft


def run_arguments(csv: Path, output_dir: Path, options: str) -> list[str]:
    """Arguments of main.py for the run `run` in `output_dir`, and further options in one string."""
    places = ["--dataset_path", str(csv), "--output_dir", str(output_dir), "--experiment", "run"]
    return [*places, *options.split()]
