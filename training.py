"""The one training loop, on the Hugging Face Trainer, and the stage `teacher`.

Validation macro-F1 chooses the epoch that is kept; test rows are never seen here. Batches group texts of like length.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_model
from torch import Tensor
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_pt_utils import get_length_grouped_indices

import processor
from artifacts import CHECKPOINTS, HISTORY, write_json
from compression_config import SoftTargetOptions, TeacherOptions, TrainingOptions, UserError
from data import label_array, labelled_rows, read_tokens, token_lengths, write_tokens
from dropout import draw_bytes_
from encoders import Task, read_config, start_teacher
from evaluation import decide, macro_f1
from losses import balanced_weights, distillation_loss, hard_label_loss
from ranks import is_first, process_count, told_by_first, wait

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (logits, labels, teacher logits) -> scalar
LiveLoss = Callable[[dict[str, Tensor]], Tensor]  # (batch that the model has just run on) -> scalar
REPORTS: ContextVar[tuple[str, str | None]] = ContextVar("REPORTS", default=("none", None))  # to whom, as which run


def resolve_device(device: str) -> str:
    """`auto` as the device that is there; UserError where cuda is asked for and absent."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch finds no CUDA device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def resolve_precision(precision: str, device: str) -> str:
    """`auto` as bf16 where the hardware computes in it, fp16 on older GPUs, fp32 elsewhere."""
    if precision == "fp16" and device == "cpu":
        raise UserError("--precision is fp16, but training in fp16 needs a GPU; use auto, fp32 or bf16")
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    return "fp32" if {"avx512_bf16", "amx_bf16"}.isdisjoint(processor.instruction_sets()) else "bf16"


class LengthGroupedSampler(Sampler[int]):
    """Shuffled batches of texts of like length; the order is a function of seed and epoch alone, so runs resume."""

    def __init__(self, lengths: list[int], batch: int, seed: int):
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class ClassifierTrainer(Trainer):
    """The Trainer with our loss (and `live`, one that runs a second model), and an order of batches that resumes; an
    epoch that ends before the share `settle` of all steps is no candidate for the best."""

    def __init__(self, loss: Loss, live: LiveLoss | None, settle: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.loss, self.live, self.settle = loss, live, settle
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        parts = process_count() * self.args.gradient_accumulation_steps  # of a batch, which go out in turn
        batch = self.args.train_batch_size * parts
        return LengthGroupedSampler(token_lengths(self.train_dataset), batch, self.args.seed)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        settled = self.state.global_step >= self.settle * self.state.max_steps
        return settled and super()._determine_best_metric(metrics, trial)

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        """Our loss of the float32 logits; teacher outputs ride along as a column."""
        labels, teacher_logits = inputs.pop("labels"), inputs.pop("teacher_logits", None)
        outputs = model(**inputs)
        loss = self.loss(outputs.logits.float(), labels, teacher_logits)
        if self.live and model.training:
            loss = loss + self.live(inputs)
        return (loss, outputs) if return_outputs else loss


def check_reporting(to: str) -> None:
    """UserError where `--report_to` names an integration that the Trainer cannot use here."""
    for callback in get_reporting_integration_callbacks(to):
        try:
            callback()
        except Exception as error:  # ImportError, RuntimeError and kinds of their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"--report_to is {to}, but {reason}") from None


@contextmanager
def reporting(to: str, run: str, folder: Path) -> Iterator[None]:
    """Send the curves of what the block trains where `--report_to` says, as a run of this name; TensorBoard writes
    into `folder`."""
    if to == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)
    before = REPORTS.set((to, run))
    try:
        yield
    finally:
        REPORTS.reset(before)
        if to == "wandb" and "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # else the next training goes on in the same run


class EpochLines(ProgressCallback):
    """The Trainer's progress bars, and one log line an epoch; stdout stays free for the table."""

    def on_train_begin(self, args, state, control, **kwargs):
        """A bar that starts where a resumed training does, so that the time left is right."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training, steps",
                                     dynamic_ncols=True)  # fmt: skip
        self.current_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep the Trainer from printing to stdout."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Say how the epoch went."""
        super().on_evaluate(args, state, control, **kwargs)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        log.info("epoch %g of %d: loss %.4f, validation macro-F1 %.4f", round(state.epoch, 2), args.num_train_epochs,
                 losses[-1] if losses else float("nan"), metrics["eval_macro_f1"])  # fmt: skip


def training_arguments(work_dir: Path, options: TrainingOptions, epochs: int, lr: float) -> TrainingArguments:
    """The Trainer's settings; `options` hold a resolved device and precision."""
    arguments = TrainingArguments(
        output_dir=str(work_dir / CHECKPOINTS), num_train_epochs=epochs, learning_rate=lr,
        per_device_train_batch_size=options.batch // (process_count() * options.accumulate),
        gradient_accumulation_steps=options.accumulate, per_device_eval_batch_size=2 * options.batch,
        weight_decay=options.weight_decay, warmup_steps=options.warmup_ratio, lr_scheduler_type="linear",
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch", save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model="macro_f1", greater_is_better=True,
        seed=options.seed, bf16=options.precision == "bf16", fp16=options.precision == "fp16",
        use_cpu=options.device == "cpu", dataloader_pin_memory=options.device != "cpu", label_names=["labels"],
        restore_callback_states_from_checkpoint=True, remove_unused_columns=False, disable_tqdm=False,
        report_to=REPORTS.get()[0], run_name=REPORTS.get()[1],
        ddp_backend="gloo" if options.device == "cpu" and process_count() > 1 else None,
        ddp_find_unused_parameters=False,  # else a projection that only the loss of states reads breaks the backward
    )  # fmt: skip
    arguments.mixed_precision = "no" if options.precision == "fp32" else options.precision  # not the launcher's own
    arguments._n_gpu = min(1, arguments.n_gpu)  # one device, where the Trainer would split each batch over all
    return arguments


def read_state(checkpoint: Path) -> dict:
    """The Trainer's state at a checkpoint."""
    return json.loads((checkpoint / "trainer_state.json").read_text())


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to the end: its state is written last, and resuming needs every file."""
    try:
        step = read_state(checkpoint)["global_step"]
    except (OSError, ValueError):
        return False
    count = process_count()
    states = ["rng_state.pth"] if count == 1 else [f"rng_state_{number}.pth" for number in range(count)]
    files = ("model.safetensors", "optimizer.pt", "scheduler.pt", *states)
    return checkpoint.name == f"checkpoint-{step}" and all((checkpoint / name).is_file() for name in files)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint that a killed run left."""
    complete = [path for path in folder.glob("checkpoint-*") if is_complete(path)]
    return max(complete, key=lambda path: read_state(path)["global_step"], default=None)


def has_ended(checkpoint: Path, epochs: int, patience: int) -> bool:
    """Whether training was over at this checkpoint: all epochs done, or too many without a better one."""
    state = read_state(checkpoint)
    stopping = state["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"]
    return state["epoch"] >= epochs or stopping["early_stopping_patience_counter"] >= patience


def load_best_(model: PreTrainedModel, last: Path) -> None:
    """Load the weights of the best validation epoch, kept beside the `last` checkpoint."""
    best = last.with_name(f"checkpoint-{read_state(last)['best_global_step']}")
    load_model(model, best / "model.safetensors")


def epochs_of(state: dict) -> list[dict]:
    """What the Trainer logged of each epoch: `loss` on training rows, `eval_loss` and `eval_macro_f1` on validation
    rows, and whether its weights were `kept`."""
    epochs: dict[int, dict] = {}
    for entry in state["log_history"]:
        known = {name: entry[name] for name in ("epoch", "loss", "eval_loss", "eval_macro_f1") if name in entry}
        epochs.setdefault(entry["step"], {"kept": entry["step"] == state["best_global_step"]}).update(known)
    return [epoch for epoch in epochs.values() if "eval_macro_f1" in epoch]


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """What chooses the epoch: macro-F1 of the validation rows."""
    return {"macro_f1": macro_f1(prediction.label_ids, decide(prediction.predictions, prediction.label_ids.ndim == 2))}


def train_(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: DatasetDict, work_dir: Path,
    options: TrainingOptions, *, epochs: int, lr: float, loss: Loss, live: LiveLoss | None = None,
    callbacks: tuple[TrainerCallback, ...] = (), settle: float = 0.0,
) -> list[dict]:  # fmt: skip
    """Train `model` in place and leave the weights of the best validation epoch in it, of those that end after the
    share `settle` of all steps; the history of all epochs, which `history.json` keeps."""
    parts = {}
    for name in ("train", "validation"):
        tokens = work_dir / CHECKPOINTS / f"{name}.arrow"
        told_by_first(partial(write_tokens, splits[name], tokenizer, options.max_length, tokens))
        parts[name] = read_tokens(tokens)
    by_length = np.argsort(token_lengths(parts["validation"]), kind="stable")
    if options.device == "cpu":
        draw_bytes_(model)
    trainer = ClassifierTrainer(
        loss, live, settle, model=model, args=training_arguments(work_dir, options, epochs, lr),
        train_dataset=parts["train"], eval_dataset=parts["validation"].select(by_length),
        data_collator=DataCollatorWithPadding(tokenizer), compute_metrics=validation_metrics,
        callbacks=[EarlyStoppingCallback(options.early_stopping_patience), *callbacks],
    )  # fmt: skip
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(EpochLines())
    last = last_checkpoint(work_dir / CHECKPOINTS)
    log.debug("%d training and %d validation rows, learning rate %g, %s on %s, going on from %s", len(parts["train"]),
              len(parts["validation"]), lr, options.precision, options.device, last)  # fmt: skip
    if last is None or not has_ended(last, epochs, options.early_stopping_patience):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        wait()
        last = last_checkpoint(work_dir / CHECKPOINTS)
    load_best_(model, last)
    state = read_state(last)
    if is_first():
        write_json(work_dir / HISTORY, epochs_of(state))
    return state["log_history"]


def hard_weights(splits: DatasetDict, task: Task, options: TrainingOptions) -> Tensor | None:
    """`--class_weights` as a tensor [labels] on the training device, or None."""
    if options.class_weights == "none":
        return None
    labels = torch.tensor(label_array(labelled_rows(splits["train"])))
    return balanced_weights(labels, len(task.labels)).float().to(options.device)


def soft_target_loss(splits: DatasetDict, task: Task, options: SoftTargetOptions) -> Loss:
    """The loss of distillation and recovery: the teacher's logits and the labels, as the options weigh them."""
    return partial(distillation_loss, alpha=options.kd_alpha, temperature=options.kd_temperature,
                   weights=hard_weights(splits, task, options))  # fmt: skip


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out_dir: Path) -> Path:
    """Write a plain Hugging Face checkpoint."""
    if is_first():
        model.save_pretrained(out_dir)
        tokenizer.save_pretrained(out_dir)
    return out_dir


def check_finished_teacher(spec: str, task: Task) -> None:
    """Refuse `--teacher_epochs 0` for a model that was not fine-tuned on these labels."""
    config = None if spec.startswith("scratch:") else read_config(spec, "--teacher_path")
    architecture = (getattr(config, "architectures", None) or ["fresh"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise UserError(f"--teacher_epochs is 0, but {spec} has no fine-tuned head ({architecture})")
    labels = tuple(config.id2label[i] for i in sorted(config.id2label))
    if labels != task.labels:
        raise UserError(f"--teacher_epochs is 0, but {spec} predicts {', '.join(labels)} and the file holds "
                        f"{', '.join(task.labels)}")  # fmt: skip


def teacher(model_in: str, splits: DatasetDict, task: Task, out_dir: Path, options: TeacherOptions) -> Path:
    """Stage `teacher`: fine-tune what `--teacher_path` names on the hard labels."""
    set_seed(options.seed)
    model, tokenizer = start_teacher(model_in, task, splits["train"][:]["text"], options.max_length)
    if options.teacher_epochs:
        weights = hard_weights(splits, task, options)
        train_(model, tokenizer, splits, out_dir, options, epochs=options.teacher_epochs, lr=options.teacher_lr,
               loss=lambda logits, labels, _: hard_label_loss(logits, labels, weights))  # fmt: skip
    return save_model(model, tokenizer, out_dir)
