"""The most frequent confusions of a model with many classes, whose matrix nobody can read."""

from __future__ import annotations

from reporting.markdown import Cells

MAX_CONFUSIONS = 20


def confusion_list(labels: list[str], confusion: list) -> Cells:
    """Headings, then true class, predicted class, rows, and their share of the true class; the most
    frequent first.

    `confusion` has counts [true class][predicted class].
    """
    pairs = []
    for true, counts in enumerate(confusion):
        for predicted, count in enumerate(counts):
            if count and true != predicted:
                pairs.append((-count, true, predicted))
    lines = [["True", "Predicted", "Rows", "Share"]]
    for negative_count, true, predicted in sorted(pairs)[:MAX_CONFUSIONS]:
        share = -negative_count / sum(confusion[true])
        lines.append([labels[true], labels[predicted], str(-negative_count), f"{share:.0%}"])
    return lines
