"""Which format to ship: questions whose answers are the formats of a run, by its own numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from reporting.results import Row, is_unmeasurable

WEIGHT_SUFFIXES = (".onnx", ".xml")


class Advice(NamedTuple):
    """A question and the format to ship if its answer is yes; the last has no question."""

    question: str
    stage: str
    facts: str


class ServedFormat(NamedTuple):
    """A format of the finished model, and Python that serves it."""

    stage: str
    code: str


def format_facts(row: Row) -> str:
    """Size, speed and quality of a row in words."""
    facts = [f"{row['size_mb']:.2f} MB", f"{row['latency_ms_p50']:.2f} ms per text"]
    if row.get("throughput"):
        facts.append(f"{row['throughput']:,.0f} texts/s in batches")
    quality = f"macro-F1 {row['macro_f1']:.4f}"
    if row["stage"] != "teacher":
        points = f"{100 * row['delta_macro_f1']:+.1f} points vs. the teacher"
        quality += f" ({'no measurable difference' if is_unmeasurable(row) else points})"
    return ", ".join([*facts, quality])


def size_of(row: Row) -> float:
    """What the smallest format minimizes."""
    return row["bytes"]


def latency_of(row: Row) -> float:
    """What the fastest format minimizes."""
    return row["latency_ms_p50"]


def seconds_per_text(row: Row) -> float:
    """What the format with the highest throughput minimizes."""
    return 1 / row["throughput"]


def loss_of(row: Row) -> float:
    """What the best format minimizes."""
    return -row["macro_f1"]


def shipping_advice(rows: list[Row]) -> list[Advice]:
    """The questions in order, for the rows of the formats that can be shipped.

    Questions that all formats answer alike are left out, and so are later ones with an answer that
    an earlier one has, except for the last.
    """
    if not rows:
        return []
    questions: list[tuple[str, list[Row], Callable[[Row], float]]] = []
    torch_rows = [row for row in rows if row.get("engine") == "torch"]
    if torch_rows and len(torch_rows) < len(rows):
        questions.append(("Must PyTorch load it?", torch_rows, size_of))
        rows = [row for row in rows if row.get("engine") != "torch"]
    if len(rows) > 1:
        questions.append(("Is the size of the download what counts?", rows, size_of))
        questions.append(("Does it answer one text at a time?", rows, latency_of))
        if all(row.get("throughput") for row in rows):
            questions.append(("Does it label many texts at once?", rows, seconds_per_text))
    questions.append(("", rows, loss_of))
    advice = []
    for question, candidates, cost in questions:
        best = min(candidates, key=cost)
        advice.append(Advice(question, best["stage"], format_facts(best)))
    return merged(advice)


def merged(advice: list[Advice]) -> list[Advice]:
    """Neighbors with the same answer as one: their last question is dropped if it changes
    nothing."""
    while len(advice) > 1 and advice[-2].stage == advice[-1].stage:
        advice = [*advice[:-2], advice[-1]]
    return advice


def engine_option(row: Row) -> str:
    """The engine of a row as `load` takes it: a graph, or `torch`."""
    for name in str(row.get("files", "")).split():
        if name.endswith(WEIGHT_SUFFIXES):
            return name
    return "torch"


def artifact_path(document: dict[str, Any]) -> Path:
    """The directory of the finished model, from the directory in which the run was started."""
    parent = Path(document["config"].get("output_dir") or ".")
    return parent / "compressed_models" / str(document["experiment"])


def quoted(value: Path | str) -> str:
    """A Python literal; double quotes where they need no escapes."""
    text = repr(str(value))
    return text if '"' in text or "\\" in text else text.replace("'", '"')


def served_formats(rows: list[Row], document: dict[str, Any]) -> list[ServedFormat]:
    """Python that serves each row, from the directory in which the run was started."""
    directory = artifact_path(document)
    formats = []
    for row in rows:
        code = (
            "from inference import load\n\n"
            f"classify = load({quoted(directory)}, engine={quoted(engine_option(row))})\n"
            'print(classify(["a first text", "a second text"]))'
        )
        formats.append(ServedFormat(row["stage"], code))
    return formats
