"""Quality of a form on the test split, measured from its directory in a process that did not make it.

Also the linear reference: TF-IDF and logistic regression on the same split, which a transformer must beat.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from compression_config import Options
from engines.engine import ModelFormat, load_engine, predict_logits, serving_files
from engines.parameter_counts import count_parameters
from metrics import agreement, confidence_intervals, macro_f1, quality_metrics, slice_metrics
from runtime.artifacts import archive_bytes
from task import Task, decide, probabilities


def write_predictions(
    path: Path, ids: list[int], labels: np.ndarray, logits: np.ndarray, multi_label: bool
) -> None:
    """Every test row's id, label, logits and probabilities, as Parquet."""
    rows = {
        "id": ids,
        "label": labels.tolist(),
        "logits": logits.tolist(),
        "probabilities": probabilities(logits, multi_label).tolist(),
    }
    pd.DataFrame(rows).to_parquet(path, index=False)


def read_logits(path: Path) -> np.ndarray:
    """The logits [rows, labels] that `write_predictions` wrote."""
    return np.stack(pd.read_parquet(path, columns=["logits"])["logits"])


def size_on_disk(form: ModelFormat) -> dict[str, Any]:
    """Bytes and names of the files needed to serve the form."""
    files = serving_files(form.path, form.served)
    total = sum(file.stat().st_size for file in files)
    names = " ".join(str(file.relative_to(form.path)) for file in files)
    return {"bytes": total, "size_mb": total / 1e6, "files": names}


def format_notes(form: ModelFormat) -> dict[str, str]:
    """What config.json tells of the form: decision thresholds that were folded into its head, as `label: value`, and
    the layers that were left in full precision."""
    path = form.path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tuned, whole = (
        config.get("decision_thresholds", {}),
        config.get("layers_left_whole", {}).get(form.name, []),
    )
    found = {
        "thresholds": ", ".join(f"{label}: {value:.4f}" for label, value in tuned.items()),
        "layers_left_whole": ", ".join(whole),
    }
    return {name: text for name, text in found.items() if text}


def read_split(path: Path, task: Task) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows of a split, and their labels: class ids [rows], or 0/1 [rows, labels]."""
    rows = pd.read_parquet(path)
    return rows, np.stack(rows["label"]).astype(int) if task.multi_label else rows[
        "label"
    ].to_numpy()


def evaluate(
    form: ModelFormat,
    test_path: Path,
    task: Task,
    options: Options,
    teacher_path: Path,
    out_path: Path,
    validation_path: Path | None = None,
) -> dict[str, Any]:
    """Reload the form, predict the test split, write the predictions to `out_path`; the row without times.

    `teacher_path` holds the teacher's predictions, the reference of `agreement`. Where the quality gate asks for it,
    the row holds `validation_macro_f1` too.
    """
    test, labels = read_split(test_path, task)
    engine = load_engine(form.path, form.served, options.max_length, device=options.device)
    logits = predict_logits(engine, test["text"].tolist(), options.batch, f"evaluate {form.name}")
    validated = {}
    if validation_path:
        rows, truth = read_split(validation_path, task)
        decided = decide(
            predict_logits(engine, rows["text"].tolist(), options.batch), task.multi_label
        )
        validated["validation_macro_f1"] = macro_f1(truth, decided)
    write_predictions(out_path, test["id"].tolist(), labels, logits, task.multi_label)
    counts = count_parameters(form.path, form.served)
    packed = archive_bytes(serving_files(form.path, form.served), form.path)
    decisions, teachers = (
        decide(one, task.multi_label) for one in (logits, read_logits(teacher_path))
    )
    row = quality_metrics(logits, labels, task) | {"agreement": agreement(decisions, teachers)}
    row |= confidence_intervals(labels, decisions, teachers, task, options.seed) | slice_metrics(
        test, labels, decisions
    )
    return (
        row
        | validated
        | format_notes(form)
        | size_on_disk(form)
        | {
            "parameters": counts.parameters,
            "nonzeros": counts.nonzeros,
            "sparsity": counts.sparsity,
            "packed_bytes": packed,
            "packed_mb": packed / 1e6,
        }
    )
