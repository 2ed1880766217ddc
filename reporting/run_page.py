"""TODO."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from compression_config import UserError
from reporting.results import (
    ABLATION,
    COLUMNS,
    HISTORY,
    RESULTS,
    final_row,
    headline_rows,
    read_results,
    rejection_notes,
    rows_of_repeat,
    table_cells,
    verdict,
    warnings_of,
)

PAGE_NAME = "report.html"
UNTRAINED_STAGES = (
    "start",
    "trimmed",
    "narrowed",
)  # rows that are trained later where there is a student

FIGURES = (
    "macro_f1",
    "bytes",
    "size_mb",
    "packed_mb",
    "latency_ms_p50",
    "compression_ratio",
    "speedup_torch",
)

DIFFERENCES = ("delta_macro_f1", "delta_macro_f1_low", "delta_macro_f1_high")

MOST_CHARACTERS = 600  # of a text that the page shows


def check_complete(directory: str, rows: list[dict[str, Any]]) -> None:
    """Refuse results that a page cannot be made of: rows missing, or figures that are no positive numbers."""
    missing = {"linear", "teacher"} - {str(row.get("stage")) for row in rows}
    if missing:
        raise UserError(
            f"{directory} holds a {RESULTS}.json, but without a row {' and '.join(sorted(missing))}"
        )
    for row in headline_rows(rows):
        if not (isinstance(row.get("stage"), str) and isinstance(row.get("parent"), str)):
            raise UserError(
                f"{directory} holds a {RESULTS}.json, but a row without its stage or parent"
            )
        for name in (*FIGURES, *DIFFERENCES):
            value = row.get(name)
            if (
                not isinstance(value, int | float)
                or not math.isfinite(value)
                or (name in FIGURES[1:] and value <= 0)
            ):
                raise UserError(
                    f"{directory} holds a {RESULTS}.json, but {name} of {row['stage']} is {value}, "
                    "no figure"
                )


def trained_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The headline rows without those whose head is trained later."""
    rows = headline_rows(rows)
    has_student = any(row["stage"] == "student" for row in rows)
    return [row for row in rows if not (has_student and row["stage"] in UNTRAINED_STAGES)]


def summed_confusion(rows: list[dict[str, Any]], stage: str) -> list:
    """The confusion counts of a stage, those of all repeats added up."""
    import numpy as np

    return np.sum(
        [row["confusion"] for row in rows if row["stage"] == stage and row.get("repeat") != "mean"],
        axis=0,
    ).tolist()


def training_histories(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Row -> how its stage was trained, epoch by epoch, where it was."""
    kept = {row["stage"]: Path(row["directory"]) / HISTORY for row in rows}
    return {
        stage: json.loads(path.read_text(encoding="utf-8"))
        for stage, path in kept.items()
        if path.is_file()
    }


def decision_text(scores: Any, widest: int, labels: list[str], multi_label: bool) -> str:
    """What probabilities [labels] decide: the class and its own; or all labels, and the probability of `widest`."""
    if not multi_label:
        return f"{labels[scores.argmax()]} ({scores.max():.2f})"
    return f"{label_names(scores > 0.5, labels)} ({labels[widest]} {scores[widest]:.2f})"


def label_names(flags: Any, labels: list[str]) -> str:
    """The labels that hold."""
    return ", ".join(label for label, flag in zip(labels, flags, strict=True) if flag) or "none"


def disagreements(
    folder: Path, final: str, labels: list[str], multi_label: bool, most: int = 12
) -> list[dict[str, str]]:
    """The test texts of the run in `folder` for which a probability of the final model is furthest from the teacher's,
    the widest gap first: `text`, the `true` label, and what `teacher` and `final` decide."""
    import numpy as np
    import pyarrow.parquet as pq

    predicted = [
        pq.read_table(folder / "predictions" / f"{name}.parquet") for name in ("teacher", final)
    ]
    test = pq.read_table(folder / "splits" / "test.parquet", columns=["id", "text", "label"])
    assert all(one["id"].equals(test["id"]) for one in predicted)
    scores = [
        one["probabilities"].combine_chunks().flatten().to_numpy().reshape(len(test), -1)
        for one in predicted
    ]
    gaps = np.abs(scores[0] - scores[1])
    chosen = np.argsort(-gaps.max(axis=1), kind="stable")[:most]
    found = []
    for row, one in zip(chosen, test.take(chosen).to_pylist(), strict=True):
        cut = (
            f" [... of {len(one['text'])} characters]" if len(one["text"]) > MOST_CHARACTERS else ""
        )
        decided = [
            decision_text(side[row], gaps[row].argmax(), labels, multi_label) for side in scores
        ]
        true = label_names(one["label"], labels) if multi_label else labels[one["label"]]
        found.append(
            {
                "text": one["text"][:MOST_CHARACTERS] + cut,
                "true": true,
                "teacher": decided[0],
                "final": decided[1],
            }
        )
    return found


def value_text(value: Any) -> str:
    """A value of the options or the machine as text."""
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else "none"
        if value is None
        else str(value)
    )


def run_page(
    document: dict[str, Any], audit: list[tuple[str, str, str]], with_examples: bool
) -> str:
    """The page of one run: what `results_final.json` holds, and what lies in the folders that its rows name."""
    from reporting import html

    rows, labels = document["rows"], document["labels"]
    multi_label = document["problem_type"] == "multi_label_classification"
    shown, final = headline_rows(rows), final_row(rows)["stage"]
    teacher = next(row for row in shown if row["stage"] == "teacher")
    repeated = len(dict.fromkeys(row["repeat"] for row in rows)) - 1 if "repeat" in teacher else 0
    first = f" Of the first repeat, {document['shipped']}." if repeated else ""
    confusions = [
        (stage, summed_confusion(rows, stage)) for stage in dict.fromkeys(("teacher", final))
    ]
    head, lines = html.label_confusion_table(labels, confusions) if multi_label else ([], [])
    examples = None
    if with_examples and final != "teacher":
        examples = disagreements(Path(teacher["directory"]).parent, final, labels, multi_label)
    return html.render(
        "run",
        title=document["experiment"],
        verdict=verdict(rows),
        cells=table_cells(rows),
        final=final,
        labels=labels,
        notes=warnings_of(rows)
        + rejection_notes(
            rows_of_repeat(rows, document["shipped"]), document["config"]["max_f1_drop"]
        ),
        means=f"Means of {repeated} repeats. " if repeated else "",
        first=first,
        trade_offs=html.trade_offs({row["stage"]: row for row in trained_rows(rows)}),
        bars=html.bar_rows(shown),
        untrained=[row["stage"] for row in shown if row not in trained_rows(rows)],
        curves=html.training_curves(training_histories(shown)),
        multi_label=multi_label,
        confusions=confusions,
        confusion_head=head,
        confusion_lines=lines,
        added=", all repeats added up" if repeated else "",
        examples=examples,
        audit=audit,
        command=document["command"],
        facts=[
            (name.replace("_", " "), value_text(value))
            for about in ("split_rows", "machine", "versions")
            for name, value in document[about].items()
        ],
        options=[
            (f"--{name}", value_text(value))
            for name, value in document["config"].items()
            if value is not None
        ],
    )


def write_page(
    directory: Path, audit: list[tuple[str, str, str]], with_examples: bool = True
) -> None:
    """`report.html` beside the results of a run; `audit` are the lines of what was found in the data."""
    text = run_page(read_results(directory), audit, with_examples)
    (directory / PAGE_NAME).write_text(text, encoding="utf-8")


def comparison_page(directories: list[str]) -> str:
    """One page of the runs in these folders; tables of ablations, which repeat runs, are passed over."""
    from reporting import html

    runs_alone = [
        one for one in directories if not (Path(one) / f"{ABLATION}.json").is_file()
    ] or directories
    documents = {directory: read_results(directory) for directory in dict.fromkeys(runs_alone)}
    for directory, document in documents.items():
        check_complete(directory, document["rows"])
    own = [document.get("experiment") for document in documents.values()]
    names = [
        str(name) if name and own.count(name) == 1 else directory
        for directory, name in zip(documents, own, strict=True)
    ]
    runs, groups = [], {}
    for name, document in zip(names, documents.values(), strict=True):
        rows = document["rows"]
        runs.append(
            {
                "name": name,
                "cells": table_cells([final_row(rows)])[1],
                "verdict": verdict(rows),
                "notes": warnings_of(rows),
            }
        )
        points = groups.setdefault(value_text(document.get("config", {}).get("dataset_path")), {})
        points |= {f"{name} {row['stage']}": row for row in trained_rows(rows)}
    drawn = [
        {
            "data": data,
            "trade_offs": html.trade_offs(points, f"-{number}", only_front=True),
            "best": html.front_rows(points),
        }
        for number, (data, points) in enumerate(groups.items())
    ]
    return html.render(
        "comparison",
        title="Runs compared",
        runs=runs,
        head=["Run", "Form", *(heading for heading, _ in COLUMNS[1:])],
        notes=[f"these runs are of different data, each with plots of its own: {', '.join(groups)}"]
        if len(groups) > 1
        else [],
        groups=drawn,
    )


def write_comparison(directories: list[str], file: Path) -> None:
    """`comparison_page` as a file that is whole or absent."""
    if not file.parent.is_dir() or file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
        raise UserError(
            f"--html is {file}, but must be a file in a folder that is there and can be written to"
        )
    text, partial = comparison_page(directories), file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
