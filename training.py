"""The training loop on the Hugging Face Trainer, and the stages `teacher`, `tune` and `linear`.

Validation macro-F1 chooses the epoch that is kept; test rows are never read here. Batches group
texts of similar length.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_model
from torch import Tensor
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)

from compression_config import Options
from data import label_array, labeled_rows, read_tokens, token_lengths, write_tokens
from encoders.saved_heads import output_layer
from encoders.saved_models import load_saved_model, load_saved_tokenizer
from encoders.start import save_model, start_teacher
from engines.engine import load_engine, predict_logits
from engines.linear import new_pipeline, write_linear
from losses import balanced_weights, distillation_loss, hard_label_loss
from metrics import macro_f1, tune_thresholds
from runtime.checkpoints import (
    CHECKPOINTS,
    best_checkpoint,
    delete_unusable,
    epoch_history,
    is_finished,
    last_checkpoint,
    read_trainer_state,
)
from runtime.distributed import broadcast_from_main, is_main_process, wait_for_everyone
from runtime.files import HISTORY_NAME, write_json
from runtime.finite import TRAINING_ADVICE, check_logits
from task import Task, decide, probabilities
from trainer import (
    CheckpointSealer,
    ClassifierTrainer,
    EpochLogger,
    LiveLoss,
    Loss,
    TrainingSettings,
    training_arguments,
    training_settings,
)

log = logging.getLogger(__name__)


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The metric that chooses the epoch: macro-F1 of the validation rows.

    UserError if a logit is not finite: no checkpoint of the epoch is written.
    """
    logits = prediction.predictions
    check_logits(logits, "the model diverged in training", TRAINING_ADVICE)
    labels = prediction.label_ids
    decisions = decide(logits, multi_label=labels.ndim == 2)
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
    broadcast_from_main(partial(delete_unusable, work_dir / CHECKPOINTS))
    train_tokens, validation_tokens = tokenized_splits(
        splits, tokenizer, work_dir, settings.max_length
    )
    trainer = ClassifierTrainer(
        loss,
        live_loss,
        settings,
        model=model,
        args=training_arguments(work_dir, settings),
        train_dataset=train_tokens,
        eval_dataset=validation_tokens,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=validation_metrics,
        callbacks=[EarlyStoppingCallback(settings.early_stopping_patience), *callbacks],
    )
    trainer.remove_callback(ProgressCallback)
    epoch_logger = EpochLogger()
    trainer.add_callback(epoch_logger)
    trainer.add_callback(CheckpointSealer())
    last = last_checkpoint(work_dir / CHECKPOINTS)
    log.debug(
        "%d training and %d validation rows, learning rate %g, %s on %s, checkpoint: %s",
        len(train_tokens),
        len(validation_tokens),
        settings.learning_rate,
        settings.precision,
        settings.device,
        last,
    )
    if last is None or not is_finished(last, settings.epochs, settings.early_stopping_patience):
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            epoch_logger.close_bars()
        wait_for_everyone()
        last = last_checkpoint(work_dir / CHECKPOINTS)
    load_model(model, best_checkpoint(last) / "model.safetensors")
    state = read_trainer_state(last)
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
            options,
            epochs=options.teacher_epochs,
            learning_rate=options.teacher_lr,
            learning_rate_flag="--teacher_lr",
        )
        weights = class_weights(splits, task, options.class_weights, options.device)
        train_(model, tokenizer, splits, out_dir, settings, loss=hard_target_loss(weights))
    return save_model(model, tokenizer, out_dir)


def head_bias(model: PreTrainedModel) -> Tensor:
    """The bias [labels] of the output layer: the last term of the logits."""
    _name, layer = output_layer(model)
    return layer.bias


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
    check_logits(logits, str(model_in), TRAINING_ADVICE)
    labels = label_array(validation).astype(int)
    scores = probabilities(logits, multi_label=task.multi_label)
    thresholds = tune_thresholds(scores, labels, multi_label=task.multi_label)
    model = load_saved_model(model_in)
    fold_thresholds_(head_bias(model), thresholds)
    names = task.labels[len(task.labels) - len(thresholds) :]
    model.config.decision_thresholds = dict(zip(names, thresholds, strict=True))
    return save_model(model, load_saved_tokenizer(model_in), out_dir)


def fit_linear(
    model_in: str, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `linear`: TF-IDF of character 2- to 5-grams and logistic regression (C = 10)."""
    pipeline = new_pipeline(multi_label=task.multi_label)
    pipeline.fit(splits["train"][:]["text"], label_array(splits["train"]))
    write_linear(pipeline, out_dir)
    return out_dir
