"""The Hugging Face Trainer with our losses, batch order, log lines and settings."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from compression_config import Options
from data import token_lengths
from runtime.checkpoints import CHECKPOINTS, seal
from runtime.distributed import is_true_anywhere, process_count, wait_for_everyone
from runtime.errors import UserError

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits, labels, teacher logits) -> scalar loss."""

LiveLoss = Callable[[dict[str, Tensor]], Tensor]
"""(the batch that the model has just processed) -> extra scalar loss, from a second
model that runs on the same batch."""


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of one training, with a resolved device and precision."""

    epochs: int
    learning_rate: float
    batch: int  # texts per optimizer step, over all processes
    max_length: int
    seed: int
    device: str
    precision: str  # fp32, fp16 or bf16
    weight_decay: float
    warmup_ratio: float
    gradient_accumulation_steps: int
    early_stopping_patience: int
    learning_rate_flag: str = "--lr"  # the option that sets the learning rate
    # of all steps: an epoch that ends earlier cannot be the best
    min_best_fraction: float = 0.0


def training_settings(
    options: Options,
    *,
    epochs: int,
    learning_rate: float,
    learning_rate_flag: str = "--lr",
    min_best_fraction: float = 0.0,
) -> TrainingSettings:
    """The settings that a stage's options ask for."""
    return TrainingSettings(
        epochs=epochs,
        learning_rate=learning_rate,
        batch=options.batch,
        max_length=options.max_length,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        weight_decay=options.weight_decay,
        warmup_ratio=options.warmup_ratio,
        gradient_accumulation_steps=options.accumulate,
        early_stopping_patience=options.early_stopping_patience,
        learning_rate_flag=learning_rate_flag,
        min_best_fraction=min_best_fraction,
    )


def divergence_advice(settings: TrainingSettings) -> str:
    """What to do if a loss or a logit of a training is not finite."""
    advice = (
        f"lower {settings.learning_rate_flag} (the learning rate is {settings.learning_rate:g})"
    )
    if settings.precision != "fp32":
        advice += f", or use --precision fp32 (it is {settings.precision})"
    return advice


class LengthGroupedSampler(Sampler[int]):
    """Shuffled batches of texts of similar length.

    The order depends only on seed and epoch, so that an interrupted training resumes in the same
    order.
    """

    def __init__(self, lengths: list[int], batch: int, seed: int):
        self.lengths = lengths
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class ClassifierTrainer(Trainer):
    """The Trainer with our losses, batch order and choice of the best epoch.

    The one place that uses private names of transformers (`_n_gpu`, `_get_train_sampler`,
    `_determine_best_metric`); the pinned version has them, and no public name does the same.
    """

    def __init__(
        self,
        loss: Loss,
        live_loss: LiveLoss | None,
        settings: TrainingSettings,
        *,
        args: TrainingArguments,
        **kwargs: Any,
    ):
        args._n_gpu = min(1, args.n_gpu)  # otherwise DataParallel splits each batch over all GPUs
        super().__init__(args=args, **kwargs)
        self.loss = loss
        self.live_loss = live_loss
        self.settings = settings
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        # the effective batch: its parts are consecutive, one per process and accumulation step
        parts = process_count() * self.args.gradient_accumulation_steps
        batch = self.args.train_batch_size * parts
        return LengthGroupedSampler(token_lengths(self.train_dataset), batch, self.args.seed)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self.state.global_step < self.settings.min_best_fraction * self.state.max_steps:
            return False
        return super()._determine_best_metric(metrics, trial)

    def training_step(self, *args, **kwargs) -> Tensor:
        """One forward and backward pass; UserError if the loss is not finite in any process.

        Nothing has been written since the last epoch, whose checkpoint is finite.
        """
        loss = super().training_step(*args, **kwargs)
        if not is_true_anywhere(not torch.isfinite(loss).item()):
            return loss
        step = self.state.global_step + 1
        advice = divergence_advice(self.settings)
        if step == 1:
            advice = f"before any update: the initial model or the teacher overflows; {advice}"
        raise UserError(
            f"the loss is not finite (nan or inf) at step {step} of {self.state.max_steps}; "
            f"{advice}"
        )

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        """The loss of the float32 logits; `teacher_logits` is a column of the batch, if present."""
        labels = inputs.pop("labels")
        teacher_logits = inputs.pop("teacher_logits", None)
        outputs = model(**inputs)
        loss = self.loss(outputs.logits.float(), labels, teacher_logits)
        if self.live_loss and model.training:
            loss = loss + self.live_loss(inputs)
        return (loss, outputs) if return_outputs else loss


class CheckpointSealer(TrainerCallback):
    """Lists the files of each checkpoint when all processes have written theirs."""

    def on_save(self, args, state, control, **kwargs):
        """Seal the checkpoint that was just saved."""
        wait_for_everyone()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class EpochLogger(ProgressCallback):
    """The Trainer's progress bars and one log line per epoch; nothing is printed to stdout."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the bar at the step of a resumed training; the remaining time is then correct."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training, steps",
                dynamic_ncols=True,
            )
        self.current_step = state.global_step

    def close_bars(self) -> None:
        """End the lines of the bars of a training that an error has ended."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep the Trainer from printing to stdout."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Log the metrics of the epoch."""
        super().on_evaluate(args, state, control, **kwargs)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        log.info(
            "epoch %g of %d: loss %.4f, validation macro-F1 %.4f",
            round(state.epoch, 2),
            args.num_train_epochs,
            losses[-1] if losses else math.nan,
            metrics["eval_macro_f1"],
        )


@dataclass(frozen=True)
class Tracker:
    """Where training curves are sent, and the name of the run there."""

    name: str = "none"
    run_name: str | None = None


NO_TRACKER = Tracker()
CURRENT_TRACKER: ContextVar[Tracker] = ContextVar("CURRENT_TRACKER", default=NO_TRACKER)


@contextmanager
def reporting(tracker: str, run_name: str, directory: Path) -> Iterator[None]:
    """Send the training curves of the block to a tracker; TensorBoard writes into `directory`."""
    if tracker == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(directory)
    token = CURRENT_TRACKER.set(Tracker(tracker, run_name))
    try:
        yield
    finally:
        CURRENT_TRACKER.reset(token)
        if tracker == "wandb" and "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # otherwise the next training continues the same run


def training_arguments(work_dir: Path, settings: TrainingSettings) -> TrainingArguments:
    """The Trainer's arguments for these settings; checkpoints are written into `work_dir`."""
    parts = process_count() * settings.gradient_accumulation_steps
    on_cpu = settings.device == "cpu"
    tracker = CURRENT_TRACKER.get()
    arguments = TrainingArguments(
        output_dir=str(work_dir / CHECKPOINTS),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch // parts,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        per_device_eval_batch_size=2 * settings.batch,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_ratio,  # below 1, a fraction of all steps
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        greater_is_better=True,
        seed=settings.seed,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        label_names=["labels"],
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        disable_tqdm=False,
        logging_nan_inf_filter=False,  # it would replace a loss that is not finite by the mean
        report_to=tracker.name,
        run_name=tracker.run_name,
        ddp_backend="gloo" if on_cpu and process_count() > 1 else None,
        # the search would not find `kd_project`: it is used by the live loss, not by the logits
        ddp_find_unused_parameters=False,
    )
    # the settings override the mixed precision of `accelerate launch`
    arguments.mixed_precision = "no" if settings.precision == "fp32" else settings.precision
    return arguments
