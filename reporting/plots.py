"""Plots as inline SVG: text stays text, and colours are variables of the page's style sheet, so dark mode works.

Importing this loads matplotlib, and no torch.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

INK, MUTED, LINE, ACCENT = (
    "#000001",
    "#000002",
    "#000003",
    "#000004",
)  # stand for variables until the SVG is written

SERIES = (ACCENT, "#000005", "#000006", "#000007")

VARIABLES = dict(
    zip((INK, MUTED, LINE, *SERIES), ("ink", "muted", "line", "c1", "c2", "c3", "c4"), strict=True)
)

DASHES, MARKERS = ("-", "--", "-.", ":"), "osD^"

LABEL_SIDES = (
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (1, 1),
    (-1, 1),
    (1, -1),
    (-1, -1),
)  # where a label may stand

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


class Point(NamedTuple):
    """One model: what it costs, how good it is, and the interval of that."""

    name: str
    cost: float
    quality: float
    low: float | None = None
    high: float | None = None


def pareto_front(points: list[Point]) -> list[Point]:
    """The Pareto front, the cheapest first: points that no other matches or beats in cost and quality at once."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.quality)):
        if not found or point.quality > found[-1].quality:
            found.append(point)
    return found


def to_inline_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an SVG element for a page; `name` keeps its ids apart from those of other plots."""
    written = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": None}):
        figure.savefig(
            written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    root = ET.fromstring(written.getvalue())
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', written.getvalue().decode()))
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{SVG}style", f"{SVG}metadata")]:
            parent.remove(child)
    for element in root.iter():
        simplify_(element, name, used)
    root.attrib = {"viewBox": root.get("viewBox"), "role": "img", "aria-label": title}
    label = ET.Element("title")
    label.text = title
    root.insert(0, label)
    return ET.tostring(root, encoding="unicode")


def simplify_(element: ET.Element, name: str, used: set[str]) -> None:
    """Drop namespaces, fonts and ids that nothing refers to; colours become variables."""
    element.tag = element.tag.removeprefix(SVG)
    if LINK in element.attrib:
        element.set("href", f"#{name}-{element.attrib.pop(LINK)[1:]}")
    if (own := element.attrib.pop("id", None)) in used:
        element.set("id", f"{name}-{own}")
    for key, value in element.attrib.items():
        value = re.sub(r"url\(#", f"url(#{name}-", value)
        value = re.sub(r"font-family: [^;]*; ", "", value)
        element.set(
            key, re.sub("#00000[1-7]", lambda found: f"var(--{VARIABLES[found[0]]})", value)
        )


def canvas(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty plot with two quiet axes."""
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
    """A logarithmic axis with plain numbers, from just below the least cost to just above the greatest."""
    low, high = min(costs), max(costs)
    margin = max(high / low, 1.5) ** 0.12
    low, high = low / margin, high * margin
    steps = (1, 2, 5) if high / low > 6 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    steps = (1,) if high / low > 300 else steps
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(
        FixedLocator([step * 10.0**power for power in range(-6, 7) for step in steps])
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def place_labels_(figure: Figure, axes: Axes, points: list[Point], named: list[Point]) -> None:
    """Write the names of points beside them, where they cover neither a point nor one another; else leave one out."""
    places = [axes.transData.transform((point.cost, point.quality)) for point in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    frame = axes.get_window_extent()
    for point in named:
        for far, (right, up) in [(far, side) for far in (7, 16, 28) for side in LABEL_SIDES]:
            label = axes.annotate(
                point.name,
                (point.cost, point.quality),
                (right * far, up * far),
                textcoords="offset points",
                ha=("center", "left", "right")[right],
                va=("center", "bottom", "top")[up],
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
            label.get_window_extent()  # puts it there
            x0, y0, x1, y1 = box = Text.get_window_extent(
                label
            ).extents  # the words alone, without their line
            inside = frame.x0 <= x0 and x1 <= frame.x1 + 4 and frame.y0 <= y0 and y1 <= frame.y1
            if inside and not any(
                x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in taken
            ):
                taken.append(box)
                break
            label.remove()


def quality_against(points: list[Point], x_label: str, name: str, only_front: bool = False) -> str:
    """Macro-F1 against a cost, with the Pareto front as a line; names of all points, or of the front's alone."""
    figure, axes = canvas(x_label, "macro-F1")
    best = pareto_front(points)
    scale_costs_(axes, [point.cost for point in points])
    for point in points if not only_front else ():
        if point.low is not None:
            axes.vlines(point.cost, point.low, point.high, color=LINE, linewidth=2, zorder=1)
    axes.step(
        [point.cost for point in best],
        [point.quality for point in best],
        where="post",
        color=ACCENT,
        linewidth=1.2,
        zorder=2,
    )
    for chosen, colour in ((points, MUTED), (best, ACCENT)):
        axes.plot(
            [point.cost for point in chosen],
            [point.quality for point in chosen],
            "o",
            color=colour,
            markersize=5.5,
            zorder=3,
        )
    axes.margins(y=0.15)
    figure.draw_without_rendering()
    place_labels_(
        figure,
        axes,
        points,
        best + [point for point in points if point not in best and not only_front],
    )
    front_names = ", ".join(point.name for point in best)
    return to_inline_svg(
        figure, name, f"Macro-F1 against {x_label}; on the Pareto front: {front_names}"
    )


def curves(histories: dict[str, list[dict]], metric: str, y_label: str, name: str) -> str:
    """A metric of each training by epoch; a filled mark is the epoch whose weights were kept."""
    figure, axes = canvas("epoch", y_label)
    for number, (stage, epochs) in enumerate(histories.items()):
        known = [epoch for epoch in epochs if metric in epoch]
        style = {
            "color": SERIES[number % 4],
            "linestyle": DASHES[number % 4],
            "marker": MARKERS[number % 4],
        }
        axes.plot(
            [epoch["epoch"] for epoch in known],
            [epoch[metric] for epoch in known],
            **style,
            linewidth=1.4,
            markersize=5.5,
            markerfacecolor="none",
            label=stage,
        )
        kept = [epoch for epoch in known if epoch["kept"]]
        axes.plot(
            [epoch["epoch"] for epoch in kept],
            [epoch[metric] for epoch in kept],
            **style,
            markersize=6,
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=10.5, labelcolor=INK)
    return to_inline_svg(figure, name, f"{y_label} by epoch of {', '.join(histories)}")
