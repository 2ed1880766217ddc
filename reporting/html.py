"""HTML of `report.html` and of comparisons: self-contained files. Imports no torch.

Every shown value is hostile until it is escaped. The templates escape all values, and characters
that are invisible or reorder the text around them are replaced by their code points. The only
script that a page allows is `templates/page.js`, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reporting import plots
from reporting.plots import Point
from reporting.results import is_timed

TEMPLATES_DIR = Path(__file__).parent / "templates"
SCRIPT_NAME = "page.js"
MAX_MATRIX_LABELS = 20  # more classes are shown as a list of their confusions

ALLOWED_CONTROLS = "\n\t\u200c\u200d"  # control and format characters that writing needs
HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, surrogates, separators

COSTS = {"size_mb": "MB", "latency_ms_p50": "ms per text"}  # column -> axis label
CURVES = (("eval_macro_f1", "validation macro-F1", "quality"), ("loss", "training loss", "loss"))
LABEL_COUNTS = {  # heading -> (truth, prediction)
    "true positives": (1, 1),
    "false positives": (0, 1),
    "false negatives": (1, 0),
    "true negatives": (0, 0),
}

Row = dict[str, Any]


def visible(value: Any) -> Any:
    """A string with hidden characters as code points, such as `[U+202E]`; other values and Markup
    unchanged."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    characters = []
    for character in value:
        is_hidden = unicodedata.category(character) in HIDDEN_CATEGORIES
        if is_hidden and character not in ALLOWED_CONTROLS:
            characters.append(f"[U+{ord(character):04X}]")
        else:
            characters.append(character)
    return "".join(characters)


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES_DIR),
    autoescape=True,
    finalize=visible,
    undefined=StrictUndefined,
    trim_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """A page as text; `template` is a file of `templates/`."""
    script = (TEMPLATES_DIR / SCRIPT_NAME).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return ENVIRONMENT.get_template(template).render(
        values, script=Markup(script), script_hash=f"sha256-{digest}"
    )


def plot_points(rows: dict[str, Row], cost: str) -> list[Point]:
    """The named rows that have a value of `cost`, as points of a plot of quality against it."""
    points = []
    for name, row in rows.items():
        if row.get(cost) is None:
            continue
        low = row.get("macro_f1_low")
        high = row.get("macro_f1_high")
        points.append(Point(visible(name), row[cost], row["macro_f1"], low, high))
    return points


def trade_off_plots(
    rows: dict[str, Row], id_suffix: str = "", *, only_front: bool = False
) -> list[Markup]:
    """Plots of quality against size and against latency of the named rows.

    `id_suffix` distinguishes the plots of one page; `only_front` labels only the Pareto front.
    """
    figures = []
    for cost, label in COSTS.items():
        points = plot_points(rows, cost)
        if not points:
            continue
        svg = plots.plot_trade_off(points, label, cost + id_suffix, only_front=only_front)
        figures.append(Markup(svg))
    return figures


def front_table(rows: dict[str, Row]) -> list[list[str]]:
    """Name, MB, ms and macro-F1 of the named rows on either Pareto front, in order of size."""
    names_on_front = set()
    for cost in COSTS:
        names_on_front |= {point.name for point in plots.pareto_front(plot_points(rows, cost))}
    lines = []
    for name, row in sorted(rows.items(), key=size_and_name):
        if visible(name) in names_on_front:
            costs = []
            for cost in COSTS:
                is_measured = row.get(cost) is not None
                costs.append(f"{row[cost]:.2f}" if is_measured else "")
            lines.append([name, *costs, f"{row['macro_f1']:.4f}"])
    return lines


def size_and_name(item: tuple[str, Row]) -> tuple[float, str]:
    """The sort key of a named row."""
    name, row = item
    return row["size_mb"], name


def training_plots(histories: dict[str, list[dict]]) -> list[Markup]:
    """Plots of validation macro-F1 and training loss by epoch; none if nothing was trained."""
    if not histories:
        return []
    shown = {visible(stage): epochs for stage, epochs in histories.items()}
    figures = []
    for metric, label, name in CURVES:
        figures.append(Markup(plots.plot_curves(shown, metric, label, name)))
    return figures


def bar_rows(rows: list[Row]) -> list[dict[str, str]]:
    """Stage, size and latency as text, and each as a fraction of the largest, for the bars."""
    max_mb = max(row["size_mb"] for row in rows)
    max_ms = max((row["latency_ms_p50"] for row in rows if is_timed(row)), default=0)
    bars = []
    for row in rows:
        bars.append(
            {
                "stage": row["stage"],
                "mb": f"{row['size_mb']:.2f}",
                "mb_share": f"{row['size_mb'] / max_mb:.3f}",
                "ms": f"{row['latency_ms_p50']:.2f}" if is_timed(row) else "",
                "ms_share": f"{row['latency_ms_p50'] / max_ms:.3f}" if is_timed(row) else "0",
            }
        )
    return bars


def label_confusion_table(labels: list[str], confusions: dict[str, list]) -> list[list]:
    """The confusion table of a multi-label run, headings first: a line per label.

    `confusions` maps a model to its counts [label][truth][prediction].
    """
    headings = ["Label"]
    for model in confusions:
        headings += [f"{model}: {name}" for name in LABEL_COUNTS]
    lines = [headings]
    for index, label in enumerate(labels):
        line = [label]
        for counts in confusions.values():
            line += [
                counts[index][truth][prediction] for truth, prediction in LABEL_COUNTS.values()
            ]
        lines.append(line)
    return lines


def f1_by_label(rows: list[Row], labels: list[str]) -> list[list[str]]:
    """The F1 of each label for each row, headings first; `-` if a row has no F1 of a label."""
    lines = [["Label", *(row["stage"] for row in rows)]]
    for label in labels:
        values = [row.get(f"f1.{label}") for row in rows]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        lines.append([label, *cells])
    return lines
