"""Models that predict the same for every test row: their other figures say nothing."""

from __future__ import annotations

from typing import Any

UNTRAINED_STAGES = ("start", "trimmed", "narrowed")  # if a student exists, it is trained from them

Row = dict[str, Any]


def label_names(row: Row) -> list[str]:
    """The labels in the order of the logits, from the keys of a row."""
    return [name.removeprefix("f1.") for name in row if name.startswith("f1.")]


def constant_prediction(row: Row) -> str | None:
    """What a model predicts for every test row, in words; None if its predictions differ.

    `confusion` of a row has counts [true class][predicted class]; multi-label: [label][true 0 or
    1][predicted 0 or 1].
    """
    labels = label_names(row)
    confusion = row.get("confusion")
    if not confusion or len(confusion) != len(labels):
        return None
    if isinstance(confusion[0][0], list):
        return constant_labels(labels, confusion)
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    names = [label for label, count in zip(labels, predicted, strict=True) if count]
    return repr(names[0]) if len(names) == 1 else None


def constant_labels(labels: list[str], confusion: list) -> str | None:
    """The labels that a multi-label model predicts for every test row; None if they differ."""
    names = []
    for label, counts in zip(labels, confusion, strict=True):
        negatives, positives = (sum(column) for column in zip(*counts, strict=True))
        if negatives and positives:
            return None
        if positives:
            names.append(repr(label))
    return " and ".join(names) or "no label"


def constant_notes(rows: list[Row]) -> list[str]:
    """A note for each prediction that models make for every test row, in any of the repeats."""
    has_student = any(row["stage"] == "student" for row in rows)
    stages_of: dict[str, dict[str, None]] = {}  # prediction -> ordered set of stages
    for row in rows:
        is_replaced = has_student and row["stage"] in UNTRAINED_STAGES
        if is_replaced or row.get("repeat") == "mean":
            continue
        prediction = constant_prediction(row)
        if prediction is not None:
            name = row["stage"]
            if "repeat" in row:
                name = f"{name} ({row['repeat']})"
            stages_of.setdefault(prediction, {})[name] = None
    notes = []
    for prediction, stages in stages_of.items():
        verb = "predicts" if len(stages) == 1 else "predict"
        notes.append(
            f"{', '.join(stages)} {verb} {prediction} for every test row: a constant classifier "
            "is of no use, however small and fast; more epochs, another --teacher_lr or --lr, or "
            "--class_weights balanced may help"
        )
    return notes
