"""What distillation costs here, against plain fine-tuning, the Trainer's defaults, and the textbook loop.

`python scripts/bench_training.py CSV [--epochs 3] [options of main.py]`. One run prints: an epoch of logit distillation
against an epoch of plain fine-tuning of the same student, and against the Trainer with random sampling in fp32 (in
turn, the faster of two rounds each); the whole distillation against a loop that pads to `--max_length`, computes in
fp32 and runs the teacher at each step, with the difference in macro-F1; tokens per second, their share of the bf16
matmul peak, and where the rest goes. Exit code 1 where a ratio falls short.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from datasets import DatasetDict
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    get_linear_schedule_with_warmup,
    set_seed,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from compression_config import COMPUTE_OPTIONS, Options, select
from data import label_array, load_splits, read_tokens, token_lengths, write_tokens
from distillation import distill, with_teacher_logits, write_teacher_outputs
from encoders.families import encoder_linears
from encoders.start import start_student
from engines.engine import load_engine, predict_logits
from evaluation import decide
from experiments.checks import resolve_defaults
from losses import distillation_loss, hard_label_loss
from metrics import macro_f1, paired_bootstrap
from runtime.command_line import parse_options
from task import Task
from training import ClassifierTrainer, Loss, fine_tune_teacher, training_arguments

PLAIN_MOST, TEXTBOOK_LEAST, DEFAULTS_LEAST = 1.1, 10.0, 3.5
PROFILED = range(20, 60)  # steps


class Clock(TrainerCallback):
    """Seconds of each epoch, evaluation and checkpoints left out."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Start."""
        self.began = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        """Stop."""
        self.seconds.append(time.perf_counter() - self.began)


class Profiler(TrainerCallback):
    """Which operators PROFILED steps spend their time in."""

    def on_step_begin(self, args, state, control, **kwargs):
        """Start at the first of them."""
        if state.global_step == PROFILED.start:
            self.profile = profile(activities=[ProfilerActivity.CPU]).__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        """Print at the last of them."""
        if state.global_step == PROFILED.stop:
            self.profile.__exit__(None, None, None)
            averages = self.profile.key_averages()
            print(
                averages.table(
                    sort_by="self_cpu_time_total",
                    row_limit=14,
                    max_name_column_width=40,
                    header=f"steps {PROFILED.start} to {PROFILED.stop}",
                )
            )


class RandomOrder(ClassifierTrainer):
    """Our loss with the Trainer's own sampling, and torch's own dropout."""

    _get_train_sampler = Trainer._get_train_sampler


def epoch(
    kind: type[ClassifierTrainer],
    loss: Loss,
    splits: DatasetDict,
    teacher_dir: Path,
    task: Task,
    options: Options,
    *callbacks: TrainerCallback,
) -> float:
    """Seconds of one epoch of the student under a Trainer."""
    set_seed(options.seed)
    student, tokenizer = start_student(
        options.student_path, teacher_dir, task, [], options.max_length
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(splits["train"], tokenizer, options.max_length, Path(folder) / "tokens.arrow")
        rows = read_tokens(Path(folder) / "tokens.arrow")
        arguments = training_arguments(Path(folder), options, 1, options.lr)
        arguments.eval_strategy = arguments.save_strategy = "no"
        arguments.load_best_model_at_end = False
        trainer = kind(
            loss,
            None,
            model=student,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[clock, *callbacks],
        )
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    return clock.seconds[0]


def ours(
    teacher_dir: Path, splits: DatasetDict, task: Task, folder: Path, options: Options
) -> float:
    """Seconds of a whole distillation, the teacher's pass included."""
    start, soft = time.perf_counter(), {}
    for name in ("train", "validation"):
        (folder / name).mkdir()
        write_teacher_outputs(
            teacher_dir, splits[name], folder / name, select(options, COMPUTE_OPTIONS)
        )
        soft[name] = with_teacher_logits(splits[name], folder / name)
    distill(teacher_dir, DatasetDict(soft), task, folder / "ours", options)
    return time.perf_counter() - start


def textbook(
    teacher_dir: Path, splits: DatasetDict, task: Task, folder: Path, options: Options
) -> float:
    """Seconds of the usual loop: everything padded to the full length, fp32, the teacher live at each step."""
    start = time.perf_counter()
    set_seed(options.seed)
    student, tokenizer = start_student(
        options.student_path, teacher_dir, task, [], options.max_length
    )
    judge = AutoModelForSequenceClassification.from_pretrained(teacher_dir).eval()
    padded = partial(
        tokenizer,
        padding="max_length",
        truncation=True,
        max_length=options.max_length,
        return_tensors="pt",
    )

    def batches(name: str, shuffle: bool) -> DataLoader:
        return DataLoader(
            splits[name],
            options.batch,
            shuffle=shuffle,
            collate_fn=lambda rows: (
                padded([row["text"] for row in rows]),
                torch.tensor([row["label"] for row in rows]),
            ),
        )

    train, best = batches("train", True), -1.0
    optimizer = torch.optim.AdamW(
        student.parameters(), options.lr, weight_decay=options.weight_decay
    )
    steps = options.epochs * len(train)
    schedule = get_linear_schedule_with_warmup(
        optimizer, round(options.warmup_ratio * steps), steps
    )
    for _ in range(options.epochs):
        student.train()
        for batch, labels in train:
            with torch.no_grad():
                taught = judge(**batch).logits
            loss = distillation_loss(
                student(**batch).logits, labels, taught, options.kd_alpha, options.kd_temperature
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        student.eval()
        with torch.no_grad():
            logits = torch.cat(
                [student(**batch).logits for batch, _ in batches("validation", False)]
            )
        found = macro_f1(
            label_array(splits["validation"]), decide(logits.numpy(), task.multi_label)
        )
        if found > best:
            best = found
            student.save_pretrained(folder / "textbook")
    tokenizer.save_pretrained(folder / "textbook")
    return time.perf_counter() - start


def matmul_peak(dtype: torch.dtype) -> float:
    """Best FLOP/s of a square product."""
    one, other = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        one @ other
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def report_speed(
    seconds: float, splits: DatasetDict, teacher_dir: Path, task: Task, options: Options
) -> None:
    """Tokens per second, and the share of the bf16 peak that the encoder's products alone come to."""
    student, _ = start_student(options.student_path, teacher_dir, task, [], options.max_length)
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(splits["train"], tokenizer, options.max_length, Path(folder) / "tokens.arrow")
        rows = read_tokens(Path(folder) / "tokens.arrow")
        tokens = sum(token_lengths(rows))
    weights = sum(linear.weight.numel() for linear in encoder_linears(student).values())
    rate, peak = 6 * weights * tokens / seconds, matmul_peak(torch.bfloat16)
    print(
        f"{tokens / len(rows):.1f} tokens a text, {tokens / seconds:.0f} tokens/s in training; encoder products "
        f"{rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of the bf16 matmul peak of {peak / 1e9:.0f} (fp32: "
        f"{matmul_peak(torch.float32) / 1e9:.0f})",
        flush=True,
    )


def check(what: str, ratio: float, holds: bool, limit: str) -> bool:
    """Print a ratio beside its limit."""
    print(f"{what}: {ratio:.2f} ({limit}) {'ok' if holds else 'SHORT'}", flush=True)
    return holds


def compare_epochs(
    teacher_dir: Path, splits: DatasetDict, soft: DatasetDict, task: Task, options: Options
) -> bool:
    """Distillation against plain fine-tuning and against the Trainer's defaults."""
    soft_loss = partial(
        distillation_loss, alpha=options.kd_alpha, temperature=options.kd_temperature
    )
    hard: Loss = lambda logits, labels, _: hard_label_loss(logits, labels)  # noqa: E731
    run: dict[str, Callable[[], float]] = {
        "distillation": lambda: epoch(
            ClassifierTrainer, soft_loss, soft, teacher_dir, task, options
        ),
        "plain fine-tuning": lambda: epoch(
            ClassifierTrainer, hard, splits, teacher_dir, task, options
        ),
        "Trainer's defaults": lambda: epoch(
            RandomOrder, soft_loss, soft, teacher_dir, task, replace(options, precision="fp32")
        ),
    }
    times: dict[str, float] = {}
    for _ in range(2):
        for name, measure in run.items():
            times[name] = min(times.get(name, float("inf")), measure())
            print(f"an epoch of {name}: {times[name]:.1f} s", flush=True)
    report_speed(times["distillation"], splits, teacher_dir, task, options)
    epoch(ClassifierTrainer, soft_loss, soft, teacher_dir, task, options, Profiler())
    over, gained = (
        times["distillation"] / times["plain fine-tuning"],
        times["Trainer's defaults"] / times["distillation"],
    )
    return check(
        "distillation / plain fine-tuning", over, over <= PLAIN_MOST, f"at most {PLAIN_MOST}"
    ) & check(
        "Trainer's defaults / distillation",
        gained,
        gained >= DEFAULTS_LEAST,
        f"at least {DEFAULTS_LEAST}",
    )


def compare_whole(
    teacher_dir: Path, splits: DatasetDict, task: Task, folder: Path, options: Options
) -> bool:
    """The whole distillation against the textbook loop, and what each student knows."""
    mine, theirs = (run(teacher_dir, splits, task, folder, options) for run in (ours, textbook))
    print(
        f"{options.epochs} epochs: ours {mine:.0f} s with the teacher's pass, textbook {theirs:.0f} s",
        flush=True,
    )
    labels, texts = label_array(splits["test"]), splits["test"][:]["text"]
    decisions = [
        decide(
            predict_logits(load_engine(folder / name, "torch", options.max_length), texts),
            task.multi_label,
        )
        for name in ("ours", "textbook")
    ]
    found = paired_bootstrap(labels, *decisions, len(task.labels), options.seed)
    print(
        f"macro-F1: ours {macro_f1(labels, decisions[0]):.4f}, textbook {macro_f1(labels, decisions[1]):.4f}, "
        "difference {delta_macro_f1:+.4f} [{delta_macro_f1_low:+.4f}, {delta_macro_f1_high:+.4f}]".format(
            **found
        )
    )
    return check(
        "textbook / ours",
        theirs / mine,
        theirs / mine >= TEXTBOOK_LEAST,
        f"at least {TEXTBOOK_LEAST}",
    )


def main() -> int:
    """Train a teacher for two epochs, then compare."""
    csv, *words = sys.argv[1:]
    options = parse_options(
        ["--dataset_path", csv, "--epochs", "3", "--teacher_epochs", "2", *words]
    )
    options = replace(options, student_path=options.student_path or "teacher:2")
    splits, task, columns = load_splits(options)
    options = resolve_defaults(options, columns)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher_dir = folder / "teacher"
        fine_tune_teacher(options.teacher_path, splits, task, teacher_dir, options)
        (folder / "soft").mkdir()
        start = time.perf_counter()
        write_teacher_outputs(
            teacher_dir, splits["train"], folder / "soft", select(options, COMPUTE_OPTIONS)
        )
        print(
            f"the teacher's pass over {len(splits['train'])} rows: {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        soft = DatasetDict(train=with_teacher_logits(splits["train"], folder / "soft"))
        fine = compare_epochs(teacher_dir, splits, soft, task, options)
        return 0 if fine & compare_whole(teacher_dir, splits, task, folder, options) else 1


if __name__ == "__main__":
    sys.exit(main())
