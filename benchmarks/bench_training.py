"""Cost of distillation against plain fine-tuning, the Trainer's defaults, and the textbook loop.

`python -m benchmarks.bench_training CSV [--epochs 3] [options of main.py]`. One run measures:

- an epoch of logit distillation against an epoch of plain fine-tuning of the same student, and
  against the Trainer with random sampling in fp32 (interleaved, the faster of two rounds each);
- tokens per second, and the encoder's matrix products as a fraction of the bf16 matmul peak;
- which operators the training steps spend their time in;
- the full distillation against a loop that pads to `--max_length`, computes in fp32 and runs the
  teacher in every step, with the difference in macro-F1.

The exit code is 1 if a ratio misses its limit.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)

from benchmarks.textbook_loop import train_textbook
from compression_config import Options
from data import label_array, load_splits, read_tokens, token_lengths, write_tokens
from distillation import distill, with_teacher_logits, write_teacher_outputs
from encoders.families import encoder_linears
from encoders.start import start_student
from engines.engine import load_engine, predict_logits
from experiments.checks import resolve_defaults
from losses import distillation_loss, hard_label_loss
from metrics import macro_f1, paired_bootstrap
from runtime.command_line import parse_options
from task import Task, decide
from trainer import ClassifierTrainer, Loss, training_arguments, training_settings
from training import fine_tune_teacher

MAX_PLAIN_RATIO = 1.1  # distillation / plain fine-tuning
MIN_DEFAULTS_RATIO = 3.5  # Trainer's defaults / distillation
MIN_TEXTBOOK_RATIO = 10.0  # textbook loop / the full distillation
ROUNDS = 2
PROFILED_STEPS = range(20, 60)
MATMUL_SIZE = 2048
MATMUL_REPEATS = 12
GFLOPS = 1e9


@dataclass(frozen=True)
class Setup:
    """What every measurement starts from; `soft_train` has the column `teacher_logits`."""

    teacher_dir: Path
    splits: DatasetDict
    soft_train: Dataset
    task: Task
    options: Options

    def start_student(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The untrained student and its tokenizer."""
        options = self.options
        return start_student(
            options.student_path, self.teacher_dir, self.task, [], options.max_length
        )


class EpochTimer(TrainerCallback):
    """Seconds per epoch, without evaluation and checkpoints."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self.start)


class StepProfiler(TrainerCallback):
    """Prints the operators that PROFILED_STEPS spend their time in."""

    def on_step_begin(self, args, state, control, **kwargs):
        """Start at the first profiled step."""
        if state.global_step == PROFILED_STEPS.start:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.start()

    def on_step_end(self, args, state, control, **kwargs):
        """Stop the profiler after the last profiled step and print its table."""
        if state.global_step == PROFILED_STEPS.stop:
            self.profiler.stop()
            table = self.profiler.key_averages().table(
                sort_by="self_cpu_time_total",
                row_limit=14,
                max_name_column_width=40,
                header=f"steps {PROFILED_STEPS.start} to {PROFILED_STEPS.stop}",
            )
            print(table)


class RandomOrderTrainer(ClassifierTrainer):
    """Our loss with the Trainer's own random sampling."""

    _get_train_sampler = Trainer._get_train_sampler  # private API of transformers, pinned


def plain_loss(
    logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor | None
) -> torch.Tensor:
    """The hard-label loss only."""
    return hard_label_loss(logits, labels)


def tokenize_train(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, folder: str
) -> Dataset:
    """The tokenized rows, memory-mapped from a file in `folder`."""
    path = Path(folder) / "tokens.arrow"
    write_tokens(rows, tokenizer, max_length, path)
    return read_tokens(path)


def time_epoch(
    setup: Setup,
    rows: Dataset,
    loss: Loss,
    *callbacks: TrainerCallback,
    trainer_class: type[ClassifierTrainer] = ClassifierTrainer,
    precision: str | None = None,
) -> float:
    """Seconds of one epoch of the student on `rows`; `precision` overrides the option."""
    options = replace(setup.options, precision=precision or setup.options.precision)
    set_seed(options.seed)
    student, tokenizer = setup.start_student()
    timer = EpochTimer()
    settings = training_settings(options, epochs=1, learning_rate=options.lr)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(Path(folder), settings)
        arguments.eval_strategy = "no"
        arguments.save_strategy = "no"
        arguments.load_best_model_at_end = False
        trainer = trainer_class(
            loss,
            None,
            settings,
            model=student,
            args=arguments,
            train_dataset=tokenize_train(rows, tokenizer, options.max_length, folder),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[timer, *callbacks],
        )
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    return timer.seconds[0]


def write_outputs(teacher_dir: Path, rows: Dataset, out_dir: Path, options: Options) -> None:
    """Write the teacher's logits of the rows, with the options of a run."""
    write_teacher_outputs(
        teacher_dir,
        rows,
        out_dir,
        max_length=options.max_length,
        batch=options.batch,
        device=options.device,
    )


def run_distillation(setup: Setup, folder: Path) -> float:
    """Write the student into `folder`; seconds, including the teacher's forward passes."""
    start = time.perf_counter()
    soft_splits = DatasetDict()
    for name in ("train", "validation"):
        outputs_dir = folder / f"{name}_outputs"
        outputs_dir.mkdir(parents=True)
        write_outputs(setup.teacher_dir, setup.splits[name], outputs_dir, setup.options)
        soft_splits[name] = with_teacher_logits(setup.splits[name], outputs_dir)
    distill(setup.teacher_dir, soft_splits, setup.task, folder, setup.options)
    return time.perf_counter() - start


def run_textbook(setup: Setup, folder: Path) -> float:
    """Write the student of the textbook loop into `folder`; seconds."""
    start = time.perf_counter()
    set_seed(setup.options.seed)
    student, tokenizer = setup.start_student()
    train_textbook(
        student,
        tokenizer,
        setup.teacher_dir,
        setup.splits,
        setup.task,
        setup.options,
        folder,
    )
    return time.perf_counter() - start


def matmul_peak(dtype: torch.dtype) -> float:
    """The highest FLOP/s of a product of two square matrices."""
    left = torch.randn(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype)
    right = torch.randn(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype)
    best_s = float("inf")
    for _ in range(MATMUL_REPEATS):
        start = time.perf_counter()
        left @ right
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * MATMUL_SIZE**3 / best_s


def print_speed(setup: Setup, epoch_s: float) -> None:
    """Print tokens/s, and the FLOP/s of the encoder's Linears as a fraction of the matmul peak.

    A weight costs 6 FLOP per token: 2 in the forward pass and 4 in the backward pass.
    """
    student, _ = setup.start_student()
    tokenizer = AutoTokenizer.from_pretrained(setup.teacher_dir)
    with tempfile.TemporaryDirectory() as folder:
        max_length = setup.options.max_length
        rows = tokenize_train(setup.splits["train"], tokenizer, max_length, folder)
        tokens = sum(token_lengths(rows))
        tokens_per_text = tokens / len(rows)
    weights = sum(linear.weight.numel() for linear in encoder_linears(student).values())
    rate = 6 * weights * tokens / epoch_s
    bf16_peak = matmul_peak(torch.bfloat16)
    fp32_peak = matmul_peak(torch.float32)
    print(
        f"{tokens_per_text:.1f} tokens per text, {tokens / epoch_s:.0f} tokens/s in training; "
        f"encoder products {rate / GFLOPS:.0f} GFLOP/s, {rate / bf16_peak:.0%} of the bf16 matmul "
        f"peak of {bf16_peak / GFLOPS:.0f} (fp32: {fp32_peak / GFLOPS:.0f})",
        flush=True,
    )


def check_at_most(name: str, ratio: float, limit: float) -> bool:
    """Print a ratio and its limit; returns whether it is met."""
    is_met = ratio <= limit
    print(f"{name}: {ratio:.2f} (at most {limit}) {'ok' if is_met else 'MISSED'}", flush=True)
    return is_met


def check_at_least(name: str, ratio: float, limit: float) -> bool:
    """Print a ratio and its limit; returns whether it is met."""
    is_met = ratio >= limit
    print(f"{name}: {ratio:.2f} (at least {limit}) {'ok' if is_met else 'MISSED'}", flush=True)
    return is_met


def compare_epochs(setup: Setup) -> bool:
    """Distillation against plain fine-tuning and the Trainer's defaults; returns whether the
    limits are met."""
    soft_loss = partial(
        distillation_loss,
        alpha=setup.options.kd_alpha,
        temperature=setup.options.kd_temperature,
    )
    measurements = {
        "distillation": partial(time_epoch, setup, setup.soft_train, soft_loss),
        "plain fine-tuning": partial(time_epoch, setup, setup.splits["train"], plain_loss),
        "Trainer's defaults": partial(
            time_epoch,
            setup,
            setup.soft_train,
            soft_loss,
            trainer_class=RandomOrderTrainer,
            precision="fp32",
        ),
    }
    best_s = dict.fromkeys(measurements, float("inf"))
    for _ in range(ROUNDS):
        for name, measure in measurements.items():
            best_s[name] = min(best_s[name], measure())
            print(f"an epoch of {name}: {best_s[name]:.1f} s", flush=True)
    print_speed(setup, best_s["distillation"])
    time_epoch(setup, setup.soft_train, soft_loss, StepProfiler())
    is_close_to_plain = check_at_most(
        "distillation / plain fine-tuning",
        best_s["distillation"] / best_s["plain fine-tuning"],
        MAX_PLAIN_RATIO,
    )
    is_faster_than_defaults = check_at_least(
        "Trainer's defaults / distillation",
        best_s["Trainer's defaults"] / best_s["distillation"],
        MIN_DEFAULTS_RATIO,
    )
    return is_close_to_plain and is_faster_than_defaults


def compare_loops(setup: Setup, folder: Path) -> bool:
    """Distillation against the textbook loop, in time and macro-F1; returns whether the limit is
    met."""
    directories = {"distillation": folder / "distillation", "textbook": folder / "textbook"}
    distillation_s = run_distillation(setup, directories["distillation"])
    textbook_s = run_textbook(setup, directories["textbook"])
    print(
        f"{setup.options.epochs} epochs: distillation {distillation_s:.0f} s with the teacher's "
        f"forward passes, textbook {textbook_s:.0f} s",
        flush=True,
    )
    test = setup.splits["test"]
    labels = label_array(test)
    decisions = {}
    for name, directory in directories.items():
        engine = load_engine(directory, "torch", setup.options.max_length)
        logits = predict_logits(engine, test[:]["text"])
        decisions[name] = decide(logits, setup.task.multi_label)
    delta = paired_bootstrap(
        labels,
        decisions["distillation"],
        decisions["textbook"],
        len(setup.task.labels),
        setup.options.seed,
    )
    print(
        f"macro-F1: distillation {macro_f1(labels, decisions['distillation']):.4f}, "
        f"textbook {macro_f1(labels, decisions['textbook']):.4f}, "
        f"difference {delta['delta_macro_f1']:+.4f} "
        f"[{delta['delta_macro_f1_low']:+.4f}, {delta['delta_macro_f1_high']:+.4f}]"
    )
    return check_at_least(
        "textbook / distillation", textbook_s / distillation_s, MIN_TEXTBOOK_RATIO
    )


def parse_arguments(argv: list[str] | None) -> Options:
    """CSV and the options of main.py, with the defaults of this benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further options are those of main.py. Here the defaults are --epochs 3, "
        "--teacher_epochs 2 and --student_path teacher:2.",
        allow_abbrev=False,
    )
    parser.add_argument("csv", metavar="CSV", help="labeled file")
    arguments, main_options = parser.parse_known_args(argv)
    defaults = ["--epochs", "3", "--teacher_epochs", "2"]
    options = parse_options(["--dataset_path", arguments.csv, *defaults, *main_options])
    return replace(options, student_path=options.student_path or "teacher:2")


def main(argv: list[str] | None = None) -> int:
    """Fine-tune the teacher, then compare; 1 if a ratio misses its limit."""
    options = parse_arguments(argv)
    splits, task, columns = load_splits(options)
    options = resolve_defaults(options, columns)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher_dir = folder / "teacher"
        outputs_dir = folder / "outputs"
        outputs_dir.mkdir()
        fine_tune_teacher(options.teacher_path, splits, task, teacher_dir, options)
        start = time.perf_counter()
        write_outputs(teacher_dir, splits["train"], outputs_dir, options)
        seconds = time.perf_counter() - start
        print(f"teacher outputs of {len(splits['train'])} rows: {seconds:.1f} s", flush=True)
        soft_train = with_teacher_logits(splits["train"], outputs_dir)
        setup = Setup(teacher_dir, splits, soft_train, task, options)
        are_epochs_fast = compare_epochs(setup)
        is_loop_fast = compare_loops(setup, folder)
    return 0 if are_epochs_fast and is_loop_fast else 1


if __name__ == "__main__":
    sys.exit(main())
