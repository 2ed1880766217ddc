"""The training loop on the Hugging Face Trainer, and the stages `teacher`, `tune` and `linear`.

Validation macro-F1 chooses the epoch that is kept; test rows are never read here. Batches group
texts of similar length.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_model
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
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
from data import label_array, labeled_rows, read_tokens, token_lengths, write_tokens
from encoders.start import save_model, start_teacher
from engines.engine import load_engine, predict_logits
from losses import balanced_weights, distillation_loss, hard_label_loss
from metrics import macro_f1, tune_thresholds
from runtime.checkpoints import (
    CHECKPOINTS,
    best_checkpoint,
    epoch_history,
    is_finished,
    last_checkpoint,
    read_state,
)
from runtime.distributed import (
    broadcast_from_main,
    is_main_process,
    process_count,
    wait_for_everyone,
)
from runtime.files import HISTORY_NAME, write_json
from task import Task, decide, probabilities

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits, labels, teacher logits) -> scalar loss."""

LiveLoss = Callable[[dict[str, Tensor]], Tensor]
"""(the batch that the model has just processed) -> scalar loss that runs a second model."""


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
    # of all steps: an epoch that ends earlier cannot be the best
    min_best_fraction: float = 0.0


def training_settings(
    options: Options, *, epochs: int, learning_rate: float, min_best_fraction: float = 0.0
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
        min_best_fraction=min_best_fraction,
    )


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
        min_best_fraction: float = 0.0,
        *,
        args: TrainingArguments,
        **kwargs: Any,
    ):
        args._n_gpu = min(1, args.n_gpu)  # otherwise DataParallel splits each batch over all GPUs
        super().__init__(args=args, **kwargs)
        self.loss = loss
        self.live_loss = live_loss
        self.min_best_fraction = min_best_fraction
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        # the effective batch: its parts are consecutive, one per process and accumulation step
        parts = process_count() * self.args.gradient_accumulation_steps
        batch = self.args.train_batch_size * parts
        return LengthGroupedSampler(token_lengths(self.train_dataset), batch, self.args.seed)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self.state.global_step < self.min_best_fraction * self.state.max_steps:
            return False
        return super()._determine_best_metric(metrics, trial)

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        """The loss of the float32 logits; `teacher_logits` is a column of the batch, if present."""
        labels = inputs.pop("labels")
        teacher_logits = inputs.pop("teacher_logits", None)
        outputs = model(**inputs)
        loss = self.loss(outputs.logits.float(), labels, teacher_logits)
        if self.live_loss and model.training:
            loss = loss + self.live_loss(inputs)
        return (loss, outputs) if return_outputs else loss


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
        report_to=tracker.name,
        run_name=tracker.run_name,
        ddp_backend="gloo" if on_cpu and process_count() > 1 else None,
        # the search would not find `kd_project`: it is used by the live loss, not by the logits
        ddp_find_unused_parameters=False,
    )
    # the settings override the mixed precision of `accelerate launch`
    arguments.mixed_precision = "no" if settings.precision == "fp32" else settings.precision
    return arguments


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The metric that chooses the epoch: macro-F1 of the validation rows."""
    labels = prediction.label_ids
    decisions = decide(prediction.predictions, multi_label=labels.ndim == 2)
    return {"macro_f1": macro_f1(labels, decisions)}


def tokenized_splits(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, work_dir: Path, max_length: int
) -> tuple[Dataset, Dataset]:
    """Tokenized training rows, and validation rows in order of length; both are on disk."""
    tokens = {}
    for name in ("train", "validation"):
        path = work_dir / CHECKPOINTS / f"{name}.arrow"
        broadcast_from_main(partial(write_tokens, splits[name], tokenizer, max_length, path))
        tokens[name] = read_tokens(path)
    by_length = np.argsort(token_lengths(tokens["validation"]), kind="stable")
    return tokens["train"], tokens["validation"].select(by_length)


def train_(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: DatasetDict,
    work_dir: Path,
    settings: TrainingSettings,
    *,
    loss: Loss,
    live_loss: LiveLoss | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> list[dict]:
    """Train `model` in place; its final weights are those of the best validation epoch.

    Resumes from the checkpoints in `work_dir`. `live_loss` is added to `loss` in training only.
    Returns the Trainer's log; `history.json` in `work_dir` has the metrics of each epoch.
    """
    train_tokens, validation_tokens = tokenized_splits(
        splits, tokenizer, work_dir, settings.max_length
    )
    trainer = ClassifierTrainer(
        loss,
        live_loss,
        settings.min_best_fraction,
        model=model,
        args=training_arguments(work_dir, settings),
        train_dataset=train_tokens,
        eval_dataset=validation_tokens,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=validation_metrics,
        callbacks=[EarlyStoppingCallback(settings.early_stopping_patience), *callbacks],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(EpochLogger())
    last = last_checkpoint(work_dir / CHECKPOINTS)
    log.debug(
        "%d training and %d validation rows, learning rate %g, %s on %s, resuming from %s",
        len(train_tokens),
        len(validation_tokens),
        settings.learning_rate,
        settings.precision,
        settings.device,
        last,
    )
    if last is None or not is_finished(last, settings.epochs, settings.early_stopping_patience):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        wait_for_everyone()
        last = last_checkpoint(work_dir / CHECKPOINTS)
    load_model(model, best_checkpoint(last) / "model.safetensors")
    state = read_state(last)
    if is_main_process():
        write_json(work_dir / HISTORY_NAME, epoch_history(state))
    return state["log_history"]


def class_weights(splits: DatasetDict, task: Task, scheme: str, device: str) -> Tensor | None:
    """Weights [labels] from the labeled training rows, on `device`; None for the scheme `none`."""
    if scheme == "none":
        return None
    labels = torch.tensor(label_array(labeled_rows(splits["train"])))
    return balanced_weights(labels, len(task.labels)).float().to(device)


def hard_target_loss(weights: Tensor | None = None) -> Loss:
    """The hard-label loss with class weights [labels]; the teacher's logits are ignored."""

    def loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        return hard_label_loss(logits, labels, weights)

    return loss


def soft_target_loss(alpha: float, temperature: float, weights: Tensor | None = None) -> Loss:
    """The distillation loss with class weights [labels]; `alpha` weights the soft labels."""
    return partial(distillation_loss, alpha=alpha, temperature=temperature, weights=weights)


def stage_loss(splits: DatasetDict, task: Task, options: Options) -> Loss:
    """The soft-target loss of a stage's options, with the class weights of its training rows."""
    weights = class_weights(splits, task, options.class_weights, options.device)
    return soft_target_loss(options.kd_alpha, options.kd_temperature, weights)


def fine_tune_teacher(
    model_in: str, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `teacher`: fine-tune the model that `--teacher_path` names on the hard labels."""
    set_seed(options.seed)
    texts = splits["train"][:]["text"]
    model, tokenizer = start_teacher(model_in, task, texts, options.max_length)
    if options.teacher_epochs:
        settings = training_settings(
            options, epochs=options.teacher_epochs, learning_rate=options.teacher_lr
        )
        weights = class_weights(splits, task, options.class_weights, options.device)
        train_(model, tokenizer, splits, out_dir, settings, loss=hard_target_loss(weights))
    return save_model(model, tokenizer, out_dir)


def head_bias(model: PreTrainedModel) -> Tensor:
    """The bias [labels] of the last Linear: the last term of the logits."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linears[-1].bias


def fold_thresholds_(bias: Tensor, thresholds: list[float]) -> None:
    """Shift `bias` [labels] in place: a threshold of 0.5 then decides as `thresholds` did before.

    `thresholds` has one value per label, or one for the second of two classes. sigmoid(z) > t if
    and only if sigmoid(z - logit(t)) > 0.5; the same is true of the softmax of two classes.
    """
    first = len(bias) - len(thresholds)  # 1 for the second of two classes, else 0
    for label, threshold in enumerate(thresholds, start=first):
        bias.data[label] -= math.log(threshold / (1 - threshold))


def tune_decision_thresholds(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `tune`: fold the thresholds of best validation macro-F1 into the head's bias.

    Every engine and a plain `pipeline` then apply them without configuration; probabilities
    change with the bias. `decision_thresholds` in config.json records the thresholds.
    """
    validation = splits["validation"]
    engine = load_engine(model_in, "torch", options.max_length, device=options.device)
    logits = predict_logits(engine, validation[:]["text"], options.batch, "validation")
    labels = label_array(validation).astype(int)
    scores = probabilities(logits, multi_label=task.multi_label)
    thresholds = tune_thresholds(scores, labels, multi_label=task.multi_label)
    model = AutoModelForSequenceClassification.from_pretrained(model_in)
    fold_thresholds_(head_bias(model), thresholds)
    names = task.labels[len(task.labels) - len(thresholds) :]
    model.config.decision_thresholds = dict(zip(names, thresholds, strict=True))
    return save_model(model, AutoTokenizer.from_pretrained(model_in), out_dir)


def fit_linear(
    model_in: str, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `linear`: TF-IDF of character 2- to 5-grams and logistic regression (C = 10)."""
    classifier = LogisticRegression(C=10, max_iter=1000, random_state=options.seed)
    if task.multi_label:
        classifier = OneVsRestClassifier(classifier)
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True
    )
    pipeline = make_pipeline(vectorizer, classifier)
    pipeline.fit(splits["train"][:]["text"], label_array(splits["train"]))
    joblib.dump(pipeline, out_dir / "linear.joblib")
    return out_dir
