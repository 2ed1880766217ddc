"""The quality of a model on a labeled file as text for a terminal."""

from __future__ import annotations

from typing import Any

from reporting.confusions import confusion_list
from reporting.markdown import Cells
from reporting.results import aligned_table
from runtime.errors import escape_unprintable

METRIC_NAMES = {"macro_f1": "macro-F1", "accuracy": "accuracy", "mcc": "MCC"}
MAX_MATRIX_LABELS = 12  # more classes are shown as a list of their confusions
MAX_TEXT_CHARACTERS = 200  # longer texts are cut
CURVE_STEP = 2  # a multi-label table has every second threshold


def metric_lines(document: dict[str, Any]) -> Cells:
    """The headline figures with their intervals."""
    lines = [["", "value", "95 % interval"]]
    for name, heading in METRIC_NAMES.items():
        metric = document["metrics"][name]
        interval = f"[{metric['low']:.4f}, {metric['high']:.4f}]"
        lines.append([heading, f"{metric['value']:.4f}", interval])
    return lines


def label_lines(document: dict[str, Any]) -> Cells:
    """The figures of each label."""
    lines = [["Label", "Rows", "Predicted", "Precision", "Recall", "F1"]]
    for line in document["per_label"]:
        lines.append(
            [
                line["label"],
                f"{line['rows']:,}",
                f"{line['predicted']:,}",
                f"{line['precision']:.4f}",
                f"{line['recall']:.4f}",
                f"{line['f1']:.4f}",
            ]
        )
    return lines


def matrix_lines(labels: list[str], confusion: list) -> Cells:
    """A confusion matrix: true classes as rows, predicted classes as columns."""
    lines = [["true \\ predicted", *labels]]
    for label, counts in zip(labels, confusion, strict=True):
        lines.append([label, *map(str, counts)])
    return lines


def label_confusion_lines(labels: list[str], confusion: list) -> Cells:
    """The four counts of each label of a multi-label model."""
    lines = [["Label", "True pos.", "False pos.", "False neg.", "True neg."]]
    for label, ((true_neg, false_pos), (false_neg, true_pos)) in zip(
        labels, confusion, strict=True
    ):
        lines.append([label, *map(str, (true_pos, false_pos, false_neg, true_neg))])
    return lines


def confusion_text(document: dict[str, Any]) -> str:
    """The confusions in the form that fits the number of labels."""
    labels = document["labels"]
    confusion = document["confusion"]
    if document["problem_type"] == "multi_label_classification":
        return f"Confusion by label\n\n{aligned_table(label_confusion_lines(labels, confusion))}"
    if len(labels) <= MAX_MATRIX_LABELS:
        return f"Confusion matrix\n\n{aligned_table(matrix_lines(labels, confusion))}"
    lines = confusion_list(labels, confusion)
    return f"Most frequent confusions\n\n{aligned_table(lines)}"


def binary_curve_lines(curve: list[dict]) -> Cells:
    """The threshold curve of the second of two classes."""
    lines = [["Threshold", "Predicted", "Precision", "Recall", "F1", "macro-F1"]]
    for entry in curve:
        lines.append(
            [
                f"{entry['threshold']:.2f}",
                f"{entry['predicted']:,}",
                f"{entry['precision']:.4f}",
                f"{entry['recall']:.4f}",
                f"{entry['f1']:.4f}",
                f"{entry['macro_f1']:.4f}",
            ]
        )
    return lines


def label_curve_lines(curves: dict[str, list[dict]]) -> Cells:
    """F1 of each label of a multi-label model by threshold."""
    lines: Cells = []
    for label, curve in curves.items():
        shown = curve[CURVE_STEP - 1 :: CURVE_STEP]
        if not lines:
            lines.append(["F1 at", *(f"{entry['threshold']:.1f}" for entry in shown)])
        lines.append([label, *(f"{entry['f1']:.3f}" for entry in shown)])
    return lines


def thresholds_text(document: dict[str, Any]) -> str:
    """The threshold curves; empty if the model has more than two classes."""
    curves = document["thresholds"]
    if not curves:
        return ""
    if document["problem_type"] == "multi_label_classification":
        heading = "F1 by threshold; the model uses 0.5"
        table = aligned_table(label_curve_lines(curves))
    else:
        ((label, curve),) = curves.items()
        name = escape_unprintable(label)
        heading = f"Threshold on the probability of {name}; the model uses 0.5"
        table = aligned_table(binary_curve_lines(curve))
    return f"{heading}\n\n{table}"


def errors_text(document: dict[str, Any]) -> str:
    """The worst errors, with their texts if the document has them."""
    parts = ["Worst errors: the predictions that give the truth the lowest probability"]
    for error in document["errors"]:
        true = ", ".join(error["true"]) or "no label"
        predicted = ", ".join(error["predicted"]) or "no label"
        probability = 1 - error["surprise"]
        line = (
            f"{error['unit']} {error['number']}: true {true}, predicted {predicted}, probability "
            f"of the truth {probability:.3f}"
        )
        if "text" in error:
            line += f"\n    {shortened(error['text'])}"
        parts.append(escape_unprintable(line, keep="\n"))
    if not document["errors"]:
        parts.append("none: every prediction is correct")
    return "\n".join(parts)


def shortened(text: str) -> str:
    """A text on one line, cut to MAX_TEXT_CHARACTERS."""
    line = " ".join(text.split())
    if len(line) <= MAX_TEXT_CHARACTERS:
        return line
    return f"{line[:MAX_TEXT_CHARACTERS]} [... of {len(line)} characters]"


def quality_text(document: dict[str, Any]) -> str:
    """The document of `evaluate.py` as text."""
    threads = "1 thread" if document["threads"] == 1 else f"{document['threads']} threads"
    head = (
        f"{document['model']} ({document['format']}, {threads}) on {document['rows']:,} rows of "
        f"{document['input']}"
    )
    parts = [escape_unprintable(head)]
    parts += [f"note: {escape_unprintable(note)}" for note in document["notes"]]
    sections = [
        "\n".join(parts),
        aligned_table(metric_lines(document)),
        aligned_table(label_lines(document)),
        confusion_text(document),
        thresholds_text(document),
        errors_text(document),
    ]
    return "\n\n".join(section for section in sections if section)
