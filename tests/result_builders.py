"""Results of runs that never happened: rows, documents, and the directories that a page reads."""

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
from builders import sentence

LABELS = ["<u>foul</u>", "fine"]


def result_row(stage: str, **metrics: Any) -> dict[str, Any]:
    """A row of results that a verdict and a comparison can be made of."""
    row = {
        "stage": stage,
        "parent": "",
        "compression_ratio": 1.0,
        "speedup_torch": 1.0,
        "delta_macro_f1": 0.0,
        "delta_macro_f1_low": 0.0,
        "delta_macro_f1_high": 0.0,
        "macro_f1": 0.8,
        "bytes": 2_000_000,
        "size_mb": 2.0,
        "packed_mb": 1.0,
        "latency_ms_p50": 4.0,
    }
    return row | metrics


def write_predictions(directory: Path, labels: list, texts: list[str], **probabilities: list):
    """The test split of a run, and the probabilities that each stage predicted for it."""
    (directory / "predictions").mkdir(parents=True)
    (directory / "splits").mkdir()
    ids = range(len(labels))
    for stage, values in probabilities.items():
        table = pd.DataFrame({"id": ids, "label": labels, "probabilities": values})
        table.to_parquet(directory / "predictions" / f"{stage}.parquet")
    split = pd.DataFrame({"id": ids, "text": texts, "label": labels})
    split.to_parquet(directory / "splits" / "test.parquet")


def write_history(directory: Path) -> None:
    """The training history of a stage: two epochs, of which the second was kept."""
    directory.mkdir()
    epochs = [
        {"kept": False, "epoch": 1.0, "loss": 0.7, "eval_macro_f1": 0.5},
        {"kept": True, "epoch": 2.0, "loss": 0.4, "eval_macro_f1": 0.6},
    ]
    (directory / "history.json").write_text(json.dumps(epochs))


def write_run(output: Path, experiment: str = "run", texts: list[str] | None = None) -> Path:
    """A run with linear baseline, teacher, student and fp16 format; the directory of its results.

    `texts` are its test rows, by default 20 sentences.
    """
    rng = random.Random(0)
    texts = texts or [f"{sentence(rng, i % 2)} {i}" for i in range(20)]
    labels = [i % 2 for i in range(len(texts))]
    run = output / "models" / experiment
    teacher = [[0.9, 0.1] if label == 0 else [0.2, 0.8] for label in labels]
    student = [[1 - (i % 7) / 7, (i % 7) / 7] for i in range(len(texts))]
    write_predictions(run, labels, texts, teacher=teacher, student=student, fp16=student)
    for stage in ("teacher", "student"):
        write_history(run / stage)
    rows = [
        result_row("linear", confusion=[[8, 2], [3, 7]], bytes=50_000, size_mb=0.05),
        result_row("teacher", confusion=[[9, 1], [2, 8]], macro_f1=0.85, latency_ms_p50=9.0),
        result_row("student", parent="teacher", confusion=[[7, 3], [2, 8]], macro_f1=0.75),
        result_row(
            "fp16", parent="student", confusion=[[7, 3], [1, 9]], bytes=900_000, size_mb=0.9
        ),
    ]
    for row in rows:
        row["directory"] = str(run / row["stage"])
        row["macro_f1_low"] = row["macro_f1"] - 0.05
        row["macro_f1_high"] = row["macro_f1"] + 0.05
        row["accuracy"] = 0.8
        row["agreement"] = 0.9
        row["files"] = "config.json model.safetensors"
    document = {
        "experiment": experiment,
        "shipped": "the one run",
        "command": f"python main.py --experiment {experiment}",
        "labels": LABELS,
        "problem_type": "single_label_classification",
        "split_rows": {"train": 112, "validation": 16, "test": len(texts)},
        "machine": {"cpu": "a CPU", "instruction_sets": ["avx2", "avx512f"], "gpu": None},
        "versions": {"torch": "2.13.0"},
        "config": {"dataset_path": "data.csv", "max_f1_drop": None},
        "rows": rows,
    }
    artifact = output / "compressed_models" / experiment
    artifact.mkdir(parents=True)
    (artifact / "results_final.json").write_text(json.dumps(document), encoding="utf-8")
    return artifact
