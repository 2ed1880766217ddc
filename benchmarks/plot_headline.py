"""Draw docs/headline.svg: macro-F1 lost against file size, from the table of docs/benchmarks.md.

`python -m benchmarks.plot_headline [--png FILE]`. The background is white, so that the plot is
readable on dark pages too. Importing this loads matplotlib, and no torch.
"""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLE_PAGE = DOCS / "benchmarks.md"
PLOT = DOCS / "headline.svg"
DATASET = "English"
TEACHER = "teacher, torch fp32"

INK = "#1f2328"
MUTED = "#59636e"
LINE = "#d1d9e0"
OURS = "#0a5fd0"
ALTERNATIVE = "#b4470f"
FONTS = ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"]

SIZES_MB = (1, 2, 3, 5, 10, 20, 50, 100)
Y_LIMITS = (-8.2, 3.2)


class Row(NamedTuple):
    """One format of the benchmark table; differences are points of macro-F1 against the teacher."""

    name: str
    size_mb: float
    speedup: float | None  # None if the machine was too busy for a ratio
    difference: float
    low: float
    high: float


class Label(NamedTuple):
    """The text of a point, and its offset from the point in typographic points."""

    text: str
    x: float
    y: float
    alignment: str


OUR_LABELS = {
    "small, openvino-int4": Label("small student, OpenVINO int4", 14, -46, "left"),
    "2 layers, openvino-int4": Label("2 layers, OpenVINO int4", -40, 50, "center"),
    "2 layers, openvino-int8": Label("2 layers, OpenVINO int8", 30, 48, "center"),
}
ALTERNATIVE_LABELS = {
    "TF-IDF, logistic regression": Label("TF-IDF + logistic regression", 12, -5, "left"),
    "teacher, quantize_dynamic": Label("teacher, ONNX quantize_dynamic", 6, -38, "center"),
    "teacher, torch bf16": Label("teacher, PyTorch bf16", -6, 28, "center"),
    TEACHER: Label("teacher, PyTorch fp32", 4, -20, "right"),
}
BELOW_THE_AXES = "teacher, nncf.quantize"


def read_rows(page: str, dataset: str) -> dict[str, Row]:
    """Name -> row of a dataset's table in docs/benchmarks.md."""
    section = page.split(f"<!-- benchmark: {dataset} -->")[1].split("<!-- end -->")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    headings = split_cells(table[0])
    rows = {}
    for line in table[2:]:
        cells = dict(zip(headings, split_cells(line), strict=True))
        name = cells[headings[0]].removesuffix(" *").strip("*")
        difference, low, high = re.findall(r"[+-][\d.]+", cells["vs teacher (points)"])
        rows[name] = Row(
            name=name,
            size_mb=float(cells["MB"]),
            speedup=speedup_of(cells["faster"]),
            difference=float(difference),
            low=float(low),
            high=float(high),
        )
    return rows


def speedup_of(cell: str) -> float | None:
    """The number of a cell such as `17.4x`; None for `n/a`."""
    return None if cell == "n/a" else float(cell.removesuffix("x"))


def split_cells(line: str) -> list[str]:
    """The cells of one line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def is_ours(row: Row) -> bool:
    """Whether a row is a format that this project writes."""
    return row.name not in ALTERNATIVE_LABELS and row.name != BELOW_THE_AXES


def format_points(value: float, _position: int) -> str:
    """A tick label: with its sign, except for zero."""
    return f"{value:+g}" if value else "0"


def draw_points_(axes: Axes, rows: list[Row], color: str, marker: str, legend: str) -> None:
    """One marker for each row."""
    axes.plot(
        [row.size_mb for row in rows],
        [row.difference for row in rows],
        marker,
        color=color,
        markersize=6.5,
        markeredgecolor="white",
        markeredgewidth=0.7,
        zorder=3,
        label=legend,
    )


def draw_label_(axes: Axes, row: Row, label: Label, color: str) -> None:
    """A row's confidence interval, and its name with size and speed, joined by a thin line."""
    axes.vlines(row.size_mb, row.low, row.high, color=color, alpha=0.35, linewidth=2.2, zorder=2)
    text = f"{label.text}\n{row.size_mb:.3g} MB"
    if row.name != TEACHER and row.speedup is not None:
        text += f", {row.speedup:.0f}x faster"
    axes.annotate(
        text,
        (row.size_mb, row.difference),
        (label.x, label.y),
        textcoords="offset points",
        horizontalalignment=label.alignment,
        verticalalignment="center",
        color=color,
        fontsize=9.5,
        linespacing=1.25,
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkB": 4},
        zorder=4,
    )


def draw_note_below_(axes: Axes, row: Row) -> None:
    """An arrow to the lower edge, for a row that is far below it."""
    axes.annotate(
        f"{row.name}, defaults: {row.difference:.1f} points",
        (row.size_mb, Y_LIMITS[0]),
        (0, 26),
        textcoords="offset points",
        horizontalalignment="center",
        verticalalignment="bottom",
        color=ALTERNATIVE,
        fontsize=9.5,
        arrowprops={"arrowstyle": "->", "color": ALTERNATIVE, "linewidth": 1.0},
    )


def draw(rows: dict[str, Row]) -> Figure:
    """The plot of all rows."""
    figure = Figure(figsize=(8.4, 4.9), dpi=100, facecolor="white", layout="constrained")
    axes = figure.add_subplot(facecolor="white")
    axes.set_xscale("log")
    axes.set_xlim(1.3, 125)
    axes.set_ylim(*Y_LIMITS)
    axes.xaxis.set_major_locator(FixedLocator(SIZES_MB))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter(format_points)
    axes.set_xlabel("files needed to serve the model, MB (log scale)", color=INK, fontsize=10.5)
    axes.set_title(
        "macro-F1 minus the fine-tuned teacher's, points, with 95 % intervals",
        color=INK,
        fontsize=10.5,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(color=LINE, labelcolor=MUTED, labelsize=10)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.axhline(0, color=MUTED, linewidth=1.0, zorder=1)

    ours = [row for row in rows.values() if is_ours(row)]
    alternatives = [rows[name] for name in ALTERNATIVE_LABELS]
    draw_points_(axes, ours, OURS, "o", "formats of this project")
    draw_points_(axes, alternatives, ALTERNATIVE, "s", "alternatives")
    for name, label in OUR_LABELS.items():
        draw_label_(axes, rows[name], label, OURS)
    for name, label in ALTERNATIVE_LABELS.items():
        draw_label_(axes, rows[name], label, ALTERNATIVE)
    draw_note_below_(axes, rows[BELOW_THE_AXES])
    axes.legend(
        loc="center right",
        bbox_to_anchor=(1, 0.36),
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
    )
    return figure


def write_svg(figure: Figure, path: Path) -> None:
    """Write the figure, with text as text and without a date, so that equal rows give equal
    bytes."""
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    metadata["Title"] = "Macro-F1 difference to the teacher against file size in MB"
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "headline", "font.family": FONTS}):
        figure.savefig(path, format="svg", metadata=metadata)


def main(argv: list[str] | None = None) -> None:
    """Read the table, draw it and write docs/headline.svg."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--png", type=Path, help="also write a PNG file")
    arguments = parser.parse_args(argv)
    rows = read_rows(TABLE_PAGE.read_text(encoding="utf-8"), DATASET)
    figure = draw(rows)
    write_svg(figure, PLOT)
    if arguments.png:
        figure.savefig(arguments.png)


if __name__ == "__main__":
    main()
