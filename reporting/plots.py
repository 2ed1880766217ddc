"""Plots as inline SVG. Importing this loads matplotlib, and no torch.

Text stays text, and colors are variables of the page's style sheet, so that dark mode works.
"""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

# placeholder colors, which the written SVG replaces by CSS variables
INK = "#000001"
MUTED = "#000002"
LINE = "#000003"
SERIES = ("#000004", "#000005", "#000006", "#000007")
ACCENT = SERIES[0]
CSS_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    SERIES[0]: "c1",
    SERIES[1]: "c2",
    SERIES[2]: "c3",
    SERIES[3]: "c4",
}
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "D", "^")

SVG = "{http://www.w3.org/2000/svg}"
XLINK_HREF = "{http://www.w3.org/1999/xlink}href"

MAX_EPOCH_TICKS = 10

POINT_RADIUS = 4  # pixels around a point that no label may cover
OVERHANG = 4  # pixels that a label may extend beyond the right end of the axes


class Point(NamedTuple):
    """A model: its cost, its quality, and the confidence interval of the quality."""

    name: str
    cost: float
    quality: float
    low: float | None = None
    high: float | None = None


class LabelSide(NamedTuple):
    """A side of a point where its label may be: the direction, and the alignment of the text."""

    x: int
    y: int
    horizontal: str
    vertical: str


LABEL_SIDES = (  # in order of preference
    LabelSide(1, 0, "left", "center"),
    LabelSide(-1, 0, "right", "center"),
    LabelSide(0, 1, "center", "bottom"),
    LabelSide(0, -1, "center", "top"),
    LabelSide(1, 1, "left", "bottom"),
    LabelSide(-1, 1, "right", "bottom"),
    LabelSide(1, -1, "left", "top"),
    LabelSide(-1, -1, "right", "top"),
)
LABEL_DISTANCES = (7, 16, 28)  # typographic points


def pareto_front(points: list[Point]) -> list[Point]:
    """The Pareto front in order of cost: no other point is at most as expensive and at least as
    good."""
    front: list[Point] = []
    for point in sorted(points, key=cost_then_quality):
        if not front or point.quality > front[-1].quality:
            front.append(point)
    return front


def cost_then_quality(point: Point) -> tuple[float, float]:
    """The sort key of the Pareto front: cheap points first, of equal cost the best first."""
    return point.cost, -point.quality


def to_inline_svg(
    figure: Figure, name: str, title: str, tooltips: dict[str, str] | None = None
) -> str:
    """The figure as an SVG element; `name` distinguishes its ids from those of other plots.

    `tooltips` maps the `gid` of artists to what is shown when the mouse is over them.
    """
    buffer = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": None}):
        figure.savefig(buffer, format="svg", metadata=metadata)
    source = buffer.getvalue().decode()
    root = ET.fromstring(source)
    remove_elements_(root, (f"{SVG}style", f"{SVG}metadata"))
    referenced_ids = set(re.findall(r'(?:href="|url\()#([^")]+)', source))
    for element in list(root.iter()):
        if element.get("id") in (tooltips or {}):
            ET.SubElement(element, "title").text = tooltips[element.get("id")]
        simplify_(element, name, referenced_ids)
    root.attrib = {"viewBox": root.get("viewBox"), "role": "img", "aria-label": title}
    title_element = ET.Element("title")
    title_element.text = title
    root.insert(0, title_element)
    return ET.tostring(root, encoding="unicode")


def remove_elements_(root: ET.Element, tags: tuple[str, ...]) -> None:
    """Remove all descendants with one of the tags."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in tags:
                parent.remove(child)


def simplify_(element: ET.Element, name: str, referenced_ids: set[str]) -> None:
    """Remove namespaces, fonts and unreferenced ids; replace placeholder colors by variables."""
    element.tag = element.tag.removeprefix(SVG)
    if XLINK_HREF in element.attrib:
        target = element.attrib.pop(XLINK_HREF).removeprefix("#")
        element.set("href", f"#{name}-{target}")
    element_id = element.attrib.pop("id", None)
    if element_id in referenced_ids:
        element.set("id", f"{name}-{element_id}")
    for key, value in element.attrib.items():
        value = value.replace("url(#", f"url(#{name}-")
        value = re.sub(r"font-family: [^;]*; ", "", value)
        for color, variable in CSS_VARIABLES.items():
            value = value.replace(color, f"var(--{variable})")
        element.set(key, value)


def empty_plot(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with one pair of unobtrusive axes."""
    figure = Figure(figsize=(5.2, 3.7), dpi=72, facecolor="none", layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    axes.set_xlabel(x_label, color=MUTED, fontsize=11)
    axes.set_title(y_label, color=MUTED, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(color=LINE, labelcolor=MUTED, labelsize=10.5, length=3)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    return figure, axes


def scale_costs_(axes: Axes, costs: list[float]) -> None:
    """Make the x axis logarithmic, with plain numbers, just wide enough for all costs."""
    lowest = min(costs)
    highest = max(costs)
    margin = max(highest / lowest, 1.5) ** 0.12
    low = lowest / margin
    high = highest * margin
    span = high / low
    if span > 300:
        mantissas = (1,)
    elif span > 6:
        mantissas = (1, 2, 5)
    else:
        mantissas = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    ticks = []
    for power in range(-6, 7):
        ticks += [mantissa * 10.0**power for mantissa in mantissas]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))


def plain_number(value: float, position: int | None) -> str:
    """A tick label without exponent or trailing zeros."""
    return f"{value:g}"


def place_labels_(axes: Axes, points: list[Point], labeled: list[Point]) -> None:
    """Label points with their names where the text covers no point and no other label.

    A label without such a place is left out. The figure must have been drawn once.
    """
    occupied = []
    for point in points:
        x, y = axes.transData.transform((point.cost, point.quality))
        occupied.append(Bbox.from_extents(x, y, x, y).padded(POINT_RADIUS))
    for point in labeled:
        box = place_label_(axes, point, occupied)
        if box is not None:
            occupied.append(box)


def place_label_(axes: Axes, point: Point, occupied: list[Bbox]) -> Bbox | None:
    """Add the label of a point at the first free place; returns its extent, or None if there is no
    place."""
    frame = axes.get_window_extent()
    for distance in LABEL_DISTANCES:
        for side in LABEL_SIDES:
            label = add_label_(axes, point, side, distance)
            label.get_window_extent()  # updates the position
            box = Text.get_window_extent(label)  # of the text, without the connecting line
            is_inside = (
                frame.x0 <= box.x0
                and box.x1 <= frame.x1 + OVERHANG
                and frame.y0 <= box.y0
                and box.y1 <= frame.y1
            )
            if is_inside and box.count_overlaps(occupied) == 0:
                return box
            label.remove()
    return None


def add_label_(axes: Axes, point: Point, side: LabelSide, distance: float) -> Annotation:
    """The name of a point as text on one of its sides, with a connecting line."""
    return axes.annotate(
        point.name,
        (point.cost, point.quality),
        (side.x * distance, side.y * distance),
        textcoords="offset points",
        ha=side.horizontal,
        va=side.vertical,
        color=INK,
        fontsize=10.5,
        arrowprops={
            "arrowstyle": "-",
            "color": MUTED,
            "linewidth": 0.6,
            "shrinkA": 0,
            "shrinkB": 3,
        },
        parse_math=False,
    )


def coordinates(points: list[Point]) -> tuple[list[float], list[float]]:
    """The costs and the qualities of points."""
    return [point.cost for point in points], [point.quality for point in points]


def plot_trade_off(
    points: list[Point], x_label: str, name: str, *, only_front: bool = False
) -> str:
    """Macro-F1 against a cost, with the Pareto front as a line, as SVG.

    All points have labels and confidence intervals; with `only_front`, only those of the front have
    labels, and none have intervals.
    """
    figure, axes = empty_plot(x_label, "macro-F1")
    front = pareto_front(points)
    costs, qualities = coordinates(points)
    scale_costs_(axes, costs)
    if not only_front:
        for point in points:
            if point.low is not None:
                axes.vlines(point.cost, point.low, point.high, color=LINE, linewidth=2, zorder=1)
    front_costs, front_qualities = coordinates(front)
    axes.step(front_costs, front_qualities, where="post", color=ACCENT, linewidth=1.2, zorder=2)
    tooltips = {}
    for number, point in enumerate(points):
        color = ACCENT if point in front else MUTED
        group = f"point-{number}"
        axes.plot(point.cost, point.quality, "o", color=color, markersize=5.5, zorder=3, gid=group)
        tooltips[group] = f"{point.name}: {point.cost:.2f} {x_label}, macro-F1 {point.quality:.4f}"
    axes.margins(y=0.15)
    figure.draw_without_rendering()
    labeled = list(front)
    if not only_front:
        labeled += [point for point in points if point not in front]
    place_labels_(axes, points, labeled)
    front_names = ", ".join(point.name for point in front)
    title = f"Macro-F1 against {x_label}; on the Pareto front: {front_names}"
    return to_inline_svg(figure, name, title, tooltips)


def metric_by_epoch(epochs: list[dict], metric: str) -> tuple[list[float], list[float]]:
    """Epoch numbers and values of a metric, for the epochs that have it."""
    known = [epoch for epoch in epochs if metric in epoch]
    return [epoch["epoch"] for epoch in known], [epoch[metric] for epoch in known]


def scale_epochs_(axes: Axes, histories: dict[str, list[dict]]) -> None:
    """Make the x axis show whole epochs only, with room around the first and the last."""
    numbers = [epoch["epoch"] for epochs in histories.values() for epoch in epochs]
    last = max(1, math.ceil(max(numbers, default=1)))
    step = math.ceil(last / MAX_EPOCH_TICKS)
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(FixedLocator(range(step, last + 1, step)))
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))


def plot_curves(histories: dict[str, list[dict]], metric: str, y_label: str, name: str) -> str:
    """A metric of each training by epoch, as SVG; a filled marker is the epoch whose weights were
    kept."""
    figure, axes = empty_plot("epoch", y_label)
    for number, (stage, epochs) in enumerate(histories.items()):
        style = {
            "color": SERIES[number % len(SERIES)],
            "linestyle": DASHES[number % len(DASHES)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        numbers, values = metric_by_epoch(epochs, metric)
        axes.plot(
            numbers,
            values,
            **style,
            linewidth=1.4,
            markersize=5.5,
            markerfacecolor="none",
            label=stage,
        )
        kept_epochs = [epoch for epoch in epochs if epoch["kept"]]
        numbers, values = metric_by_epoch(kept_epochs, metric)
        axes.plot(numbers, values, **style, markersize=6)
    scale_epochs_(axes, histories)
    axes.legend(frameon=False, fontsize=10.5, labelcolor=INK)
    return to_inline_svg(figure, name, f"{y_label} by epoch of {', '.join(histories)}")
