"""The one training loop, on the Hugging Face Trainer, and the stage `teacher`.

Validation macro-F1 chooses the epoch that is kept; test rows are never seen here. Batches group texts of like length.
"""

from __future__ import annotations

import json
import logging
import math
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
from torch import Tensor, nn
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
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
from transformers.trainer_pt_utils import get_length_grouped_indices

from compression_config import Options
from data import label_array, labelled_rows, read_tokens, token_lengths, write_tokens
from encoders.start import save_model, start_teacher
from engines.engine import load_engine, predict_logits
from losses import balanced_weights, distillation_loss, hard_label_loss
from metrics import macro_f1, tune_thresholds
from runtime.artifacts import CHECKPOINTS, HISTORY
from runtime.distributed import (
    broadcast_from_main,
    is_main_process,
    process_count,
    wait_for_everyone,
)
from runtime.files import write_json
from task import Task, decide, probabilities

log = logging.getLogger(__name__)


def fit_linear(
    model_in: str, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `linear`: TF-IDF of character 2- to 5-grams and logistic regression (C = 10); starts from nothing."""
    import joblib
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    classifier = LogisticRegression(C=10, max_iter=1000, random_state=options.seed)
    pipeline = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True),
        OneVsRestClassifier(classifier) if task.multi_label else classifier,
    )
    pipeline.fit(splits["train"][:]["text"], label_array(splits["train"]))
    joblib.dump(pipeline, out_dir / "linear.joblib")
    return out_dir


Loss = Callable[
    [Tensor, Tensor, Tensor | None], Tensor
]  # (logits, labels, teacher logits) -> scalar

LiveLoss = Callable[[dict[str, Tensor]], Tensor]  # (batch that the model has just run on) -> scalar

REPORTING: ContextVar[tuple[str, str | None]] = ContextVar(
    "REPORTS", default=("none", None)
)  # to whom, as which run


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
        parts = (
            process_count() * self.args.gradient_accumulation_steps
        )  # of a batch, which go out in turn
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


@contextmanager
def reporting(to: str, run: str, folder: Path) -> Iterator[None]:
    """Send the curves of what the block trains where `--report_to` says, as a run of this name; TensorBoard writes
    into `folder`."""
    if to == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)
    before = REPORTING.set((to, run))
    try:
        yield
    finally:
        REPORTING.reset(before)
        if to == "wandb" and "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # else the next training goes on in the same run


class EpochLogger(ProgressCallback):
    """The Trainer's progress bars, and one log line an epoch; stdout stays free for the table."""

    def on_train_begin(self, args, state, control, **kwargs):
        """A bar that starts where a resumed training does, so that the time left is right."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training, steps",
                dynamic_ncols=True,
            )
        self.current_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep the Trainer from printing to stdout."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Say how the epoch went."""
        super().on_evaluate(args, state, control, **kwargs)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        log.info(
            "epoch %g of %d: loss %.4f, validation macro-F1 %.4f",
            round(state.epoch, 2),
            args.num_train_epochs,
            losses[-1] if losses else float("nan"),
            metrics["eval_macro_f1"],
        )


def training_arguments(
    work_dir: Path, options: Options, epochs: int, lr: float
) -> TrainingArguments:
    """The Trainer's settings; `options` hold a resolved device and precision."""
    arguments = TrainingArguments(
        output_dir=str(work_dir / CHECKPOINTS),
        num_train_epochs=epochs,
        learning_rate=lr,
        per_device_train_batch_size=options.batch // (process_count() * options.accumulate),
        gradient_accumulation_steps=options.accumulate,
        per_device_eval_batch_size=2 * options.batch,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_ratio,
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        greater_is_better=True,
        seed=options.seed,
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        use_cpu=options.device == "cpu",
        dataloader_pin_memory=options.device != "cpu",
        label_names=["labels"],
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        disable_tqdm=False,
        report_to=REPORTING.get()[0],
        run_name=REPORTING.get()[1],
        ddp_backend="gloo" if options.device == "cpu" and process_count() > 1 else None,
        ddp_find_unused_parameters=False,  # else a projection that only the loss of states reads breaks the backward
    )
    arguments.mixed_precision = (
        "no" if options.precision == "fp32" else options.precision
    )  # not the launcher's own
    arguments._n_gpu = min(
        1, arguments.n_gpu
    )  # one device, where the Trainer would split each batch over all
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
    states = (
        ["rng_state.pth"] if count == 1 else [f"rng_state_{number}.pth" for number in range(count)]
    )
    files = ("model.safetensors", "optimizer.pt", "scheduler.pt", *states)
    return checkpoint.name == f"checkpoint-{step}" and all(
        (checkpoint / name).is_file() for name in files
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint that a killed run left."""
    complete = [path for path in folder.glob("checkpoint-*") if is_complete(path)]
    return max(complete, key=lambda path: read_state(path)["global_step"], default=None)


def is_finished(checkpoint: Path, epochs: int, patience: int) -> bool:
    """Whether training was over at this checkpoint: all epochs done, or too many without a better one."""
    state = read_state(checkpoint)
    stopping = state["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"]
    return state["epoch"] >= epochs or stopping["early_stopping_patience_counter"] >= patience


def load_best_weights_(model: PreTrainedModel, last: Path) -> None:
    """Load the weights of the best validation epoch, kept beside the `last` checkpoint."""
    best = last.with_name(f"checkpoint-{read_state(last)['best_global_step']}")
    load_model(model, best / "model.safetensors")


def epoch_history(state: dict) -> list[dict]:
    """What the Trainer logged of each epoch: `loss` on training rows, `eval_loss` and `eval_macro_f1` on validation
    rows, and whether its weights were `kept`."""
    epochs: dict[int, dict] = {}
    for entry in state["log_history"]:
        known = {
            name: entry[name]
            for name in ("epoch", "loss", "eval_loss", "eval_macro_f1")
            if name in entry
        }
        epochs.setdefault(
            entry["step"], {"kept": entry["step"] == state["best_global_step"]}
        ).update(known)
    return [epoch for epoch in epochs.values() if "eval_macro_f1" in epoch]


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """What chooses the epoch: macro-F1 of the validation rows."""
    return {
        "macro_f1": macro_f1(
            prediction.label_ids, decide(prediction.predictions, prediction.label_ids.ndim == 2)
        )
    }


def train_(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: DatasetDict,
    work_dir: Path,
    options: Options,
    *,
    epochs: int,
    lr: float,
    loss: Loss,
    live: LiveLoss | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    settle: float = 0.0,
) -> list[dict]:
    """Train `model` in place and leave the weights of the best validation epoch in it, of those that end after the
    share `settle` of all steps; the history of all epochs, which `history.json` keeps."""
    parts = {}
    for name in ("train", "validation"):
        tokens = work_dir / CHECKPOINTS / f"{name}.arrow"
        broadcast_from_main(
            partial(write_tokens, splits[name], tokenizer, options.max_length, tokens)
        )
        parts[name] = read_tokens(tokens)
    by_length = np.argsort(token_lengths(parts["validation"]), kind="stable")
    trainer = ClassifierTrainer(
        loss,
        live,
        settle,
        model=model,
        args=training_arguments(work_dir, options, epochs, lr),
        train_dataset=parts["train"],
        eval_dataset=parts["validation"].select(by_length),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=validation_metrics,
        callbacks=[EarlyStoppingCallback(options.early_stopping_patience), *callbacks],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(EpochLogger())
    last = last_checkpoint(work_dir / CHECKPOINTS)
    log.debug(
        "%d training and %d validation rows, learning rate %g, %s on %s, going on from %s",
        len(parts["train"]),
        len(parts["validation"]),
        lr,
        options.precision,
        options.device,
        last,
    )
    if last is None or not is_finished(last, epochs, options.early_stopping_patience):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        wait_for_everyone()
        last = last_checkpoint(work_dir / CHECKPOINTS)
    load_best_weights_(model, last)
    state = read_state(last)
    if is_main_process():
        write_json(work_dir / HISTORY, epoch_history(state))
    return state["log_history"]


def class_weights(splits: DatasetDict, task: Task, options: Options) -> Tensor | None:
    """`--class_weights` as a tensor [labels] on the training device, or None."""
    if options.class_weights == "none":
        return None
    labels = torch.tensor(label_array(labelled_rows(splits["train"])))
    return balanced_weights(labels, len(task.labels)).float().to(options.device)


def soft_target_loss(splits: DatasetDict, task: Task, options: Options) -> Loss:
    """The loss of distillation and recovery: the teacher's logits and the labels, as the options weigh them."""
    return partial(
        distillation_loss,
        alpha=options.kd_alpha,
        temperature=options.kd_temperature,
        weights=class_weights(splits, task, options),
    )


def fine_tune_teacher(
    model_in: str, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `teacher`: fine-tune what `--teacher_path` names on the hard labels."""
    set_seed(options.seed)
    model, tokenizer = start_teacher(model_in, task, splits["train"][:]["text"], options.max_length)
    if options.teacher_epochs:
        weights = class_weights(splits, task, options)
        train_(
            model,
            tokenizer,
            splits,
            out_dir,
            options,
            epochs=options.teacher_epochs,
            lr=options.teacher_lr,
            loss=lambda logits, labels, _: hard_label_loss(logits, labels, weights),
        )
    return save_model(model, tokenizer, out_dir)


def head_bias(model: PreTrainedModel) -> Tensor:
    """The bias [labels] that is added last: that of the last Linear."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1].bias


def fold_thresholds_(bias: Tensor, thresholds: list[float]) -> None:
    """Move `bias` [labels] so that a probability of one half is what `thresholds` were: one for the second of two
    classes, or one a label. sigmoid(z - logit(t)) > 1/2 just where sigmoid(z) > t; softmax of two classes likewise."""
    for label, threshold in enumerate(thresholds, start=len(bias) - len(thresholds)):
        bias.data[label] -= math.log(threshold / (1 - threshold))


def tune_decision_thresholds(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Choose the thresholds of best macro-F1 on validation; `decision_thresholds` in config.json keeps them."""
    validation = splits["validation"]
    engine = load_engine(model_in, "torch", options.max_length, device=options.device)
    logits = predict_logits(engine, validation[:]["text"], options.batch, "validation")
    labels = label_array(validation).astype(int)
    thresholds = tune_thresholds(probabilities(logits, task.multi_label), labels, task.multi_label)
    model = AutoModelForSequenceClassification.from_pretrained(model_in)
    fold_thresholds_(head_bias(model), thresholds)
    model.config.decision_thresholds = dict(
        zip(task.labels[-len(thresholds) :], thresholds, strict=True)
    )
    return save_model(model, AutoTokenizer.from_pretrained(model_in), out_dir)
