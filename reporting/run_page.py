"""The pages `report.html` (one run) and comparisons (many runs): their data, from results on disk.

Imports no torch; `reporting.html`, which loads matplotlib, is imported only to draw a page.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from reporting.confusions import confusion_list
from reporting.constant_models import UNTRAINED_STAGES
from reporting.results import (
    ABLATION,
    RESULTS,
    RUN_COLUMNS,
    final_row,
    headline_rows,
    read_results,
    rejection_notes,
    rows_of_repeat,
    speed_cells,
    table_cells,
    verdict,
    warnings_of,
)
from reporting.serving_advice import (
    artifact_path,
    reason_to_ship_none,
    served_formats,
    shipping_advice,
)
from runtime.errors import UserError
from runtime.files import HISTORY_NAME, RECORD_NAME, atomic_write, read_json, read_state

PAGE_NAME = "report.html"
POSITIVE_METRICS = (
    "bytes",
    "size_mb",
    "packed_mb",
    "latency_ms_p50",
    "compression_ratio",
    "speedup_torch",
)
OPTIONAL_METRICS = (
    "latency_ms_p50",  # absent with --no_benchmark
    "speedup_torch",  # absent if the machine was too busy for a ratio
    "delta_macro_f1_low",  # absent if there were too few repeats for an interval
    "delta_macro_f1_high",
)
METRICS = (
    "macro_f1",
    *POSITIVE_METRICS,
    "delta_macro_f1",
    *OPTIONAL_METRICS[2:],
)

MAX_TEXT_CHARACTERS = 600  # longer texts are cut
NUM_EXAMPLES = 12

Row = dict[str, Any]
AuditLines = list[tuple[str, str, str]]  # finding, count, consequence


def check_complete(directory: str, rows: list[Row]) -> None:
    """Raise UserError if a page cannot show the results: rows are missing, or metrics are not
    numbers."""
    stages = {str(row.get("stage")) for row in rows}
    missing = sorted({"linear", "teacher"} - stages)
    prefix = f"{directory} contains a {RESULTS}.json, but"
    if missing:
        raise UserError(f"{prefix} without a row {' and '.join(missing)}")
    for row in headline_rows(rows):
        if not isinstance(row.get("stage"), str) or not isinstance(row.get("parent"), str):
            raise UserError(f"{prefix} a row lacks its stage or parent")
        for name in METRICS:
            if not is_valid_metric(name, row.get(name)):
                raise UserError(
                    f"{prefix} {name} of {row['stage']} is {row.get(name)}, not a number"
                )


def is_valid_metric(name: str, value: Any) -> bool:
    """Whether a metric is a finite number, and positive if it must be, or may be absent."""
    if name in OPTIONAL_METRICS and value is None:
        return True
    if not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return value > 0 or name not in POSITIVE_METRICS


def trained_rows(rows: list[Row]) -> list[Row]:
    """The headline rows without those whose head is trained by a later stage."""
    rows = headline_rows(rows)
    has_student = any(row["stage"] == "student" for row in rows)
    if not has_student:
        return rows
    return [row for row in rows if row["stage"] not in UNTRAINED_STAGES]


def count_repeats(rows: list[Row]) -> int:
    """The number of repeats; 0 if the run was not repeated."""
    names = {row["repeat"] for row in rows if "repeat" in row}
    return len(names - {"mean"})


def summed_confusion(rows: list[Row], stage: str) -> list:
    """The confusion counts of a stage, summed over repeats."""
    import numpy as np

    counts = []
    for row in rows:
        if row["stage"] == stage and row.get("repeat") != "mean":
            counts.append(row["confusion"])
    return np.sum(counts, axis=0).tolist()


def training_histories(rows: list[Row]) -> dict[str, list[dict[str, Any]]]:
    """Stage -> its metrics by epoch, for the rows whose stage trained a model."""
    histories = {}
    for row in rows:
        history = read_state(Path(row["directory"]) / HISTORY_NAME, read_history)
        if history is not None:
            histories[row["stage"]] = history
    return histories


def read_history(path: Path) -> list[dict[str, Any]]:
    """The metrics of each training epoch of a stage; ValueError if the file is damaged."""
    history = read_json(path)
    if not isinstance(history, list) or not all(isinstance(epoch, dict) for epoch in history):
        raise ValueError("it is not a list of epochs")
    return history


def prediction_text(
    probabilities: Any, widest: int, labels: list[str], *, multi_label: bool
) -> str:
    """The prediction that probabilities [labels] give.

    Single-label: the class with its probability. Multi-label: all predicted labels, and the
    probability of the label with index `widest`.
    """
    if multi_label:
        names = label_names(probabilities > 0.5, labels)
        return f"{names} ({labels[widest]} {probabilities[widest]:.2f})"
    return f"{labels[probabilities.argmax()]} ({probabilities.max():.2f})"


def label_names(flags: Any, labels: list[str]) -> str:
    """The names of the labels whose flag is set, or `none`."""
    names = [label for label, flag in zip(labels, flags, strict=True) if flag]
    return ", ".join(names) or "none"


def disagreements(
    directory: Path,
    final: str,
    labels: list[str],
    *,
    multi_label: bool,
    limit: int = NUM_EXAMPLES,
) -> list[dict[str, str]]:
    """The test texts with the largest difference in a probability between teacher and final model.

    In descending order of the difference: `text`, the `true` label, and the predictions of
    `teacher` and `final`. `directory` contains the predictions and splits of the run.
    """
    import numpy as np

    teacher_table = read_predictions(directory, "teacher")
    final_table = read_predictions(directory, final)
    test = read_test_split(directory)
    assert teacher_table["id"].equals(test["id"])
    assert final_table["id"].equals(test["id"])
    teacher_probabilities = probability_matrix(teacher_table)
    final_probabilities = probability_matrix(final_table)
    gaps = np.abs(teacher_probabilities - final_probabilities)
    chosen = np.argsort(-gaps.max(axis=1), kind="stable")[:limit]
    examples = []
    for index, row in zip(chosen, test.take(chosen).to_pylist(), strict=True):
        widest = int(gaps[index].argmax())
        true = label_names(row["label"], labels) if multi_label else labels[row["label"]]
        examples.append(
            {
                "text": shortened(row["text"]),
                "true": true,
                "teacher": prediction_text(
                    teacher_probabilities[index], widest, labels, multi_label=multi_label
                ),
                "final": prediction_text(
                    final_probabilities[index], widest, labels, multi_label=multi_label
                ),
            }
        )
    return examples


def read_predictions(directory: Path, stage: str) -> Any:
    """The predictions of a stage on the test split, as an Arrow table."""
    import pyarrow.parquet as pq

    return pq.read_table(directory / "predictions" / f"{stage}.parquet")


def read_test_split(directory: Path) -> Any:
    """Id, text and label of the test split, as an Arrow table."""
    import pyarrow.parquet as pq

    return pq.read_table(directory / "splits" / "test.parquet", columns=["id", "text", "label"])


def probability_matrix(table: Any) -> Any:
    """The probabilities of an Arrow table of predictions as an array [rows, labels]."""
    return table["probabilities"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def shortened(text: str) -> str:
    """A text of at most MAX_TEXT_CHARACTERS, with a note if it was cut."""
    if len(text) <= MAX_TEXT_CHARACTERS:
        return text
    return f"{text[:MAX_TEXT_CHARACTERS]} [... of {len(text)} characters]"


def value_text(value: Any) -> str:
    """A value of the options or of the machine as text."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def environment_facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Sizes of the splits, machine and library versions, as names and values."""
    facts = []
    for section in ("split_rows", "machine", "versions"):
        for name, value in document[section].items():
            facts.append((name.replace("_", " "), value_text(value)))
    return facts


def run_page(
    document: dict[str, Any],
    audit: AuditLines,
    *,
    with_examples: bool,
    shipped: Collection[str] | None = None,
) -> str:
    """The page of one run.

    `document` is its `results_final.json`; histories and predictions are read from the directories
    that the rows name. `shipped` names the formats in the directory of the finished model; by
    default, it is the final one.
    """
    from reporting import html

    rows = document["rows"]
    labels = document["labels"]
    multi_label = document["problem_type"] == "multi_label_classification"
    shown = headline_rows(rows)
    trained = trained_rows(rows)
    final = final_row(rows)["stage"]
    teacher = next(row for row in shown if row["stage"] == "teacher")
    linear = next(row for row in shown if row["stage"] == "linear")
    shipped_rows = rows_of_repeat(rows, document["shipped"])
    notes = warnings_of(rows) + rejection_notes(shipped_rows, document["config"]["max_f1_drop"])
    confusions = {}
    for stage in ("teacher", final):
        confusions[stage] = summed_confusion(rows, stage)
    label_confusions = html.label_confusion_table(labels, confusions) if multi_label else None
    confusion_lists = {}
    if not multi_label and len(labels) > html.MAX_MATRIX_LABELS:
        confusion_lists = {
            stage: confusion_list(labels, counts) for stage, counts in confusions.items()
        }
    names = [final] if shipped is None else shipped
    served_rows = [row for row in shown if row["stage"] in names]
    examples = None
    if with_examples and final != "teacher":
        run_directory = Path(teacher["directory"]).parent
        examples = disagreements(run_directory, final, labels, multi_label=multi_label)
    options = []
    for name, value in document["config"].items():
        if value is not None:
            options.append((f"--{name}", value_text(value)))
    return html.render(
        "run.html",
        title=document["experiment"],
        document=document,
        verdict=verdict(rows),
        notes=notes,
        repeats=count_repeats(rows),
        table=table_cells(rows),
        advice=shipping_advice(served_rows),
        ship_none=reason_to_ship_none(served_rows, linear),
        served=served_formats(served_rows, document),
        artifact=str(artifact_path(document)),  # `visible` reads strings
        speed=speed_cells(shown),
        label_f1=html.f1_by_label(shown, labels),
        final=final,
        trade_offs=html.trade_off_plots({row["stage"]: row for row in trained}),
        untrained=[row["stage"] for row in shown if row not in trained],
        bars=html.bar_rows(shown),
        curves=html.training_plots(training_histories(shown)),
        confusions=confusions,
        label_confusions=label_confusions,
        confusion_lists=confusion_lists,
        examples=examples,
        audit=audit,
        facts=environment_facts(document),
        options=options,
    )


def write_page(directory: Path, audit: AuditLines, *, with_examples: bool = True) -> None:
    """Write `report.html` next to the results of a run; `audit` are the lines of the data audit."""
    record = read_json(directory / RECORD_NAME)
    text = run_page(
        read_results(directory), audit, with_examples=with_examples, shipped=record["forms"]
    )
    (directory / PAGE_NAME).write_text(text, encoding="utf-8")


def read_runs(directories: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Name and results document of each run; UserError if one cannot be shown.

    A run is named after its experiment, or its directory if several have the same experiment name.
    Directories of ablations are ignored, because they repeat the rows of other runs, unless there
    is nothing else.
    """
    runs = [name for name in directories if not (Path(name) / f"{ABLATION}.json").is_file()]
    documents = {name: read_results(name) for name in runs or directories}
    for directory, document in documents.items():
        check_complete(directory, document["rows"])
    experiments = [document.get("experiment") for document in documents.values()]
    named = []
    for directory, document in documents.items():
        experiment = document.get("experiment")
        is_unique = experiment and experiments.count(experiment) == 1
        named.append((str(experiment) if is_unique else directory, document))
    return named


def comparison_page(directories: list[str]) -> str:
    """One page about the runs in these directories; UserError if one cannot be shown."""
    from reporting import html

    runs = []
    rows_by_dataset: dict[str, dict[str, Row]] = {}
    for name, document in read_runs(directories):
        rows = document["rows"]
        _, final_cells = table_cells([final_row(rows)])
        runs.append(
            {
                "name": name,
                "cells": final_cells,
                "verdict": verdict(rows),
                "notes": warnings_of(rows),
            }
        )
        dataset = value_text(document.get("config", {}).get("dataset_path"))
        group = rows_by_dataset.setdefault(dataset, {})
        for row in trained_rows(rows):
            group[f"{name} {row['stage']}"] = row
    groups = []
    for number, (dataset, rows) in enumerate(rows_by_dataset.items()):
        groups.append(
            {
                "dataset": dataset,
                "trade_offs": html.trade_off_plots(rows, f"-{number}", only_front=True),
                "front": html.front_table(rows),
            }
        )
    notes = []
    if len(groups) > 1:
        datasets = ", ".join(rows_by_dataset)
        notes.append(f"these runs use different data sets, with separate plots: {datasets}")
    return html.render(
        "comparison.html",
        title="Comparison of runs",
        runs=runs,
        headings=["Run", "Format", *(column.heading for column in RUN_COLUMNS[1:])],
        notes=notes,
        groups=groups,
    )


def write_comparison(directories: list[str], file: Path) -> None:
    """Write `comparison_page` to a file, atomically."""
    directory = file.parent
    is_writable = directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)
    if file.is_dir() or not is_writable:
        raise UserError(f"--html is {file}, but must be a file in an existing, writable directory")
    atomic_write(file, comparison_page(directories))
