"""Which format to ship: questions whose answers are the formats of a run, by its own numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from reporting.constant_models import constant_prediction
from reporting.results import Row, is_timed, is_unmeasurable

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
    facts = [f"{row['size_mb']:.2f} MB"]
    if is_timed(row):
        facts.append(f"{row['latency_ms_p50']:.2f} ms per text")
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


def loss_of(row: Row) -> tuple[float, float]:
    """What the best format minimizes: of equally good formats, the smallest is best."""
    return -row["macro_f1"], row["bytes"]


def reason_to_ship_none(rows: list[Row], linear: Row) -> str:
    """Why no format should be shipped yet; empty if one may be."""
    if rows and all(constant_prediction(row) is not None for row in rows):
        return "each of them predicts the same for every test row"
    best = max((row["macro_f1"] for row in rows), default=1)
    if best < linear["macro_f1"]:
        return (
            f"the best of them has macro-F1 {best:.4f}, and the linear baseline "
            f"{linear['macro_f1']:.4f} with {linear['size_mb']:.2f} MB"
        )
    return ""


def shipping_advice(rows: list[Row]) -> list[Advice]:
    """The questions in order, for the rows of the formats that can be shipped.

    Neighboring questions with the same answer are one, and a last question that changes nothing is
    left out.
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
        if all(map(is_timed, rows)):
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
    """The advice with neighbors of the same answer as one; the last has no question."""
    kept: list[Advice] = []
    for step in advice:
        if not kept or kept[-1].stage != step.stage:
            kept.append(step)
        elif step.question:
            kept[-1] = step._replace(question=f"{kept[-1].question} {step.question}")
        else:
            kept[-1] = step
    return kept


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
