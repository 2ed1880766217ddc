"""Quality and size of a format, measured from its directory, in a process that did not make it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from compression_config import Options
from engines.engine import ModelFormat, load_engine, predict_logits, serving_files
from engines.parameter_counts import count_parameters
from metrics import (
    agreement,
    confidence_intervals,
    macro_f1,
    paired_bootstrap,
    quality_metrics,
    slice_metrics,
)
from runtime.archives import archive_bytes
from runtime.finite import FORMAT_ADVICE, TRAINING_ADVICE, check_logits
from task import Task, decide, probabilities


def evaluate(
    model_format: ModelFormat,
    test_path: Path,
    task: Task,
    options: Options,
    teacher_path: Path,
    out_path: Path,
    validation_path: Path | None = None,
) -> dict[str, Any]:
    """Load a format, predict the test split, write the predictions; returns the results row without
    times.

    UserError if a logit is not finite; no predictions are then written.

    `teacher_path` contains the teacher's predictions of the same rows and may equal `out_path`,
    where those of this format are written. With `validation_path`, the row contains
    `validation_macro_f1`, which the quality gate needs.
    """
    test, labels = read_split(test_path, task)
    directory = model_format.directory
    engine = load_engine(
        directory, model_format.format_name, options.max_length, device=options.device
    )
    description = f"evaluate {model_format.name}"
    logits = predict_logits(engine, test["text"].tolist(), options.batch, description)
    source = f"{model_format.name} in {directory}"
    advice = f"{TRAINING_ADVICE}, or {FORMAT_ADVICE}"
    check_logits(logits, source, advice)
    write_predictions(out_path, test["id"].tolist(), labels, logits, multi_label=task.multi_label)
    decisions = decide(logits, task.multi_label)
    teacher_decisions = decide(read_logits(teacher_path), task.multi_label)

    row = quality_metrics(logits, labels, task)
    row["agreement"] = agreement(decisions, teacher_decisions)
    row |= confidence_intervals(labels, decisions, teacher_decisions, task, options.seed)
    row |= slice_metrics(test, labels, decisions)
    if validation_path:
        validation, validation_labels = read_split(validation_path, task)
        validation_logits = predict_logits(engine, validation["text"].tolist(), options.batch)
        check_logits(validation_logits, source, advice)
        validation_decisions = decide(validation_logits, task.multi_label)
        row["validation_macro_f1"] = macro_f1(validation_labels, validation_decisions)
    row |= format_notes(model_format)
    row |= size_on_disk(model_format)

    counts = count_parameters(directory, model_format.format_name)
    row["parameters"] = counts.parameters
    row["nonzeros"] = counts.nonzeros
    row["sparsity"] = counts.sparsity
    row["packed_bytes"] = archive_bytes(
        serving_files(directory, model_format.format_name), directory
    )
    row["packed_mb"] = row["packed_bytes"] / 1e6
    return row


def read_split(path: Path, task: Task) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows of a split, and their labels: class ids [rows], or 0/1 [rows, labels]."""
    rows = pd.read_parquet(path)
    if task.multi_label:
        return rows, np.stack(rows["label"]).astype(int)
    return rows, rows["label"].to_numpy()


def write_predictions(
    path: Path, ids: list[int], labels: np.ndarray, logits: np.ndarray, *, multi_label: bool
) -> None:
    """Write id, label, logits and probabilities of every row as Parquet."""
    columns = {
        "id": ids,
        "label": labels.tolist(),
        "logits": logits.tolist(),
        "probabilities": probabilities(logits, multi_label).tolist(),
    }
    pd.DataFrame(columns).to_parquet(path, index=False)


def read_logits(path: Path) -> np.ndarray:
    """The logits [rows, labels] that `write_predictions` wrote."""
    return np.stack(pd.read_parquet(path, columns=["logits"])["logits"])


def difference_from_parent(
    path: Path, parent_path: Path, task: Task, seed: int
) -> dict[str, float]:
    """Macro-F1 minus that of the full-precision parent, with its 95 % paired bootstrap interval.

    Both files contain predictions of the same rows, as `write_predictions` wrote them.
    """
    rows = pd.read_parquet(path, columns=["id", "label", "logits"])
    parent = pd.read_parquet(parent_path, columns=["id", "logits"])
    assert rows["id"].equals(parent["id"]), (path, parent_path)
    labels = np.stack(rows["label"]).astype(int)
    decisions = decide(np.stack(rows["logits"]), task.multi_label)
    parent_decisions = decide(np.stack(parent["logits"]), task.multi_label)
    difference = paired_bootstrap(labels, decisions, parent_decisions, len(task.labels), seed)
    return {f"parent_{name}": value for name, value in difference.items()}


def size_on_disk(model_format: ModelFormat) -> dict[str, Any]:
    """Size and names of the files that serving the format requires."""
    files = serving_files(model_format.directory, model_format.format_name)
    total_bytes = sum(file.stat().st_size for file in files)
    names = [str(file.relative_to(model_format.directory)) for file in files]
    return {"bytes": total_bytes, "size_mb": total_bytes / 1e6, "files": " ".join(names)}


def format_notes(model_format: ModelFormat) -> dict[str, str]:
    """What config.json records about the format, as text; only what is present.

    `thresholds`: the decision thresholds that are part of the weights. `layers_left_whole`: the
    layers that are kept in full precision.
    """
    path = model_format.directory / "config.json"
    if not path.is_file():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    notes = {}
    thresholds = config.get("decision_thresholds", {})
    if thresholds:
        texts = [f"{label}: {value:.4f}" for label, value in thresholds.items()]
        notes["thresholds"] = ", ".join(texts)
    skipped_layers = config.get("layers_left_whole", {}).get(model_format.name, [])
    if skipped_layers:
        notes["layers_left_whole"] = ", ".join(skipped_layers)
    return notes
