"""The HTML of `report.html` and of a comparison: one file, no script, nothing loaded from anywhere. No torch.

All that is shown is hostile until it is escaped: the templates escape every value, and characters that would hide
or reorder what stands around them are shown by their number.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from reporting import plots
from reporting.plots import Point

SHOWN = "\n\t\u200c\u200d"  # control and format characters that writing needs

COSTS = {"size_mb": "MB", "latency_ms_p50": "ms a text"}

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1d21; --muted: #59606c; --line: #d9dde3; --soft: #f4f6f8;
  --c1: #0a5cc2; --c2: #a84a00; --c3: #157347; --c4: #7a3fc0 }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --ink: #e7e9ed; --muted: #a2a9b5; --line: #383d46;
  --soft: #1d2026; --c1: #74b0ff; --c2: #f0a35e; --c3: #6ccb8f; --c4: #c6a3ff } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: anywhere }
main { max-width: 70rem; margin: 0 auto; padding: 1.75rem 1rem 4rem }
h1 { font-size: 1rem; font-weight: 600; color: var(--muted); margin: 0 }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 3rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
p { max-width: 42rem; margin: .5rem 0 }
.verdict { font-size: 1.45rem; line-height: 1.35; margin: .4rem 0 1rem; text-wrap: pretty }
.aside, figcaption { color: var(--muted); font-size: .9rem }
.notes { max-width: 42rem; margin: 1rem 0; padding: .1rem 0 .1rem 1.9rem; border-left: 3px solid var(--c2) }
a { color: var(--c1) }
.scroll { overflow-x: auto; margin: .8rem 0 }
.scroll:focus-visible { outline: 2px solid var(--c1); outline-offset: 2px }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: .38rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--muted) }
th:first-child, td:first-child, .words td, .words th { text-align: left; padding-left: 0 }
tbody th { color: var(--ink); font-weight: 400 }
.words td, .words th { white-space: normal; vertical-align: top; min-width: 7rem }
.last > * { font-weight: 650; background: var(--soft) }
.bar { display: inline-block; vertical-align: middle; height: .7rem; min-width: 1px; border-radius: 1px;
  background: var(--c1); margin-right: .55rem; width: calc(var(--share) * min(14rem, 17vw)) }
.ms .bar { background: var(--c3) }
.bars th, .bars td, .runs tr > :nth-child(2) { text-align: left }
@media (max-width: 30rem) { th, td { padding: .38rem .55rem } }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 2.5rem }
figure { margin: .5rem 0; min-width: 0 }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt }
svg text { font-family: inherit; font-variant-numeric: tabular-nums; paint-order: stroke; stroke: var(--paper);
  stroke-width: 2.5px }
.matrix td { background: color-mix(in srgb, var(--c1) calc(var(--share) * 45%), transparent) }
.examples { list-style: none; padding: 0 }
.examples li { border-top: 1px solid var(--line); padding: .8rem 0 }
.examples p { white-space: pre-wrap; overflow: hidden; max-width: 46rem }
.examples dl, .facts { display: flex; flex-wrap: wrap; gap: .15rem 1.6rem; margin: .4rem 0 0; font-size: .9rem }
dt { color: var(--muted); display: inline } dd { display: inline; margin: 0; font-variant-numeric: tabular-nums }
pre { white-space: pre-wrap; background: var(--soft); padding: .8rem 1rem; font: .85rem/1.5 ui-monospace, monospace }
summary { cursor: pointer; color: var(--c1); margin-top: 1rem }
"""

PARTS = """
{% macro table(head, lines, label, kind="", last=none) -%}
<div class="scroll" tabindex="0" role="region" aria-label="{{ label }}"><table class="{{ kind }}">
{% if head %}<thead><tr>{% for cell in head %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>{% endif %}
<tbody>{% for line in lines %}
<tr{% if line[0] == last %} class="last"{% endif %}><th scope="row">{{ line[0] }}</th>
{%- for cell in line[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{%- endmacro %}
{% macro figures(all) -%}
<div class="grid">{% for svg in all %}<figure>{{ svg }}</figure>{% endfor %}</div>
{%- endmacro %}
{% macro notes(all) %}{% if all %}<ul class="notes">{% for note in all %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
{%- endmacro %}
{% macro matrix(name, labels, counts) -%}
<figure><h3>{{ name }}</h3><div class="scroll" tabindex="0" role="region" aria-label="Confusion of {{ name }}">
<table class="matrix"><thead><tr><th scope="col">true</th>
{%- for label in labels %}<th scope="col">decided <bdi>{{ label }}</bdi></th>{% endfor %}</tr></thead><tbody>
{%- for row in counts %}<tr><th scope="row"><bdi>{{ labels[loop.index0] }}</bdi></th>
{%- set all = row | sum %}{% for count in row %}<td style="--share: {{ (count / all) | round(3) if all else 0 }}">
{{- count }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div></figure>
{%- endmacro %}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
{% block content %}{% endblock %}
</main>
</body>
</html>
"""

RUN = """{% extends "page" %}{% import "parts" as parts %}{% block content %}
<h1>{{ title }}</h1>
<p class="verdict">{{ verdict }}</p>
<p class="aside">{{ means }}Brackets hold 95 % intervals. Times are those of one forward pass of one text.</p>
{{ parts.notes(notes) }}
<h2>Every form</h2>
{{ parts.table(cells[0], cells[1:], "Every form", last=final) }}
<h2>Quality against size and latency</h2>
{{ parts.figures(trade_offs) }}
<p class="aside">The line is the Pareto front: no form is both smaller (or faster) and better than one on it. Upright
lines are intervals.{% if untrained %} Not shown: {{ untrained | join(", ") }}, whose heads were still to be
trained.{% endif %}</p>
<h2>Bytes and milliseconds, stage by stage</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Bytes and milliseconds"><table class="bars">
<thead><tr>{% for cell in ("Stage", "MB", "ms") %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in bars %}
<tr><th scope="row">{{ row.stage }}</th>
<td><span class="bar" style="--share: {{ row.mb_share }}"></span>{{ row.mb }}</td>
<td class="ms"><span class="bar" style="--share: {{ row.ms_share }}"></span>{{ row.ms }}</td></tr>{% endfor %}
</tbody></table></div>
<h2>Training</h2>
{% if curves %}{{ parts.figures(curves) }}
<p class="aside">Filled marks: the epoch whose weights were kept.{{ first }} Losses of different stages are different
sums: compare their course, not their height.</p>
{% else %}<p>No stage of this run kept a history of its training.</p>{% endif %}
<h2>What is taken for what</h2>
{% if multi_label %}{{ parts.table(confusion_head, confusion_lines, "Confusion, label by label") }}
{% else %}<div class="grid">
{% for name, counts in confusions %}{{ parts.matrix(name, labels, counts) }}{% endfor %}</div>
{% endif %}<p class="aside">Test rows{{ added }}. {{ "Shades are shares of a line." if not multi_label }}</p>
{% if examples is not none %}<h2>Where they disagree most</h2>
<p class="aside">Texts of the test split with the widest difference in a probability between the teacher and
{{ final }}, the widest first.{{ first }} Code points in brackets stand for characters that do not show.</p>
<ol class="examples">{% for one in examples %}
<li><p dir="auto"><bdi>{{ one.text }}</bdi></p><dl>
{%- for name in ("true", "teacher", "final") %}
<div><dt>{{ final if name == "final" else name }}:</dt> <dd><bdi>{{ one[name] }}</bdi></dd></div>{% endfor %}</dl></li>
{%- endfor %}</ol>
{% endif %}<h2>The data</h2>
{{ parts.table([], audit, "What is wrong with the data", "words") }}
<h2>How to make this again</h2>
<pre><code>{{ command }}</code></pre>
<dl class="facts">{% for name, value in facts %}<div><dt>{{ name }}</dt> <dd>{{ value }}</dd></div>{% endfor %}</dl>
<details><summary>All options, as they were chosen</summary>
{{ parts.table([], options, "All options", "words") }}</details>
{% endblock %}
"""

COMPARISON = """{% extends "page" %}{% import "parts" as parts %}{% block content %}
<h1>{{ title }}</h1>
<p class="verdict">{{ runs | length }} {{ "run" if runs | length == 1 else "runs" }}, the final form of each</p>
<p class="aside">Brackets hold 95 % intervals. Ratios and differences are to each run's own teacher. Times come from
different runs: they compare where the machine was the same and had nothing else to do.</p>
{{ parts.notes(notes) }}
<div class="scroll" tabindex="0" role="region" aria-label="All runs"><table class="runs">
<thead><tr>{% for cell in head %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead><tbody>{% for run in runs %}
<tr><th scope="row"><a href="#run-{{ loop.index }}">{{ run.name }}</a></th>
{%- for cell in run.cells %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
<h2>Quality against size and latency, every form of every run</h2>
<p class="aside">The line is the Pareto front; the forms on it are named where there is room, and listed.</p>
{% for one in groups %}{% if groups | length > 1 %}<h3>{{ one.data }}</h3>{% endif %}
{{ parts.figures(one.trade_offs) }}
{{ parts.table(["On a front", "MB", "ms", "macro-F1"], one.best, "The Pareto fronts") }}
{% endfor %}
<h2>Run by run</h2>
{% for run in runs %}<section id="run-{{ loop.index }}"><h3>{{ run.name }}</h3><p>{{ run.verdict }}</p>
{{ parts.notes(run.notes) }}</section>
{% endfor %}{% endblock %}
"""


def visible(value: Any) -> Any:
    """A text without control or direction characters: each stands there as its code point. Markup passes."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    hidden = {
        c
        for c in value
        if c not in SHOWN and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }
    return "".join(f"[U+{ord(c):04X}]" if c in hidden else c for c in value)


TEMPLATES = Environment(
    loader=DictLoader({"parts": PARTS, "page": PAGE, "run": RUN, "comparison": COMPARISON}),
    autoescape=True,
    finalize=visible,
    undefined=StrictUndefined,
    trim_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """A page as text."""
    return TEMPLATES.get_template(template).render(style=Markup(STYLE), **values)


def plot_points(rows: dict[str, dict[str, Any]], cost: str) -> list[Point]:
    """The named rows as points of a plot."""
    return [
        Point(
            visible(name),
            row[cost],
            row["macro_f1"],
            row.get("macro_f1_low"),
            row.get("macro_f1_high"),
        )
        for name, row in rows.items()
    ]


def trade_offs(
    rows: dict[str, dict[str, Any]], name: str = "", only_front: bool = False
) -> list[Markup]:
    """Quality against size, and against latency, of the named rows; `name` keeps plots of one page apart."""
    return [
        Markup(plots.quality_against(plot_points(rows, cost), label, cost + name, only_front))
        for cost, label in COSTS.items()
    ]


def front_rows(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The lines of a table: the named rows on either Pareto front, the smallest first."""
    best = {point.name for cost in COSTS for point in plots.pareto_front(plot_points(rows, cost))}
    chosen = sorted((row["size_mb"], name) for name, row in rows.items() if visible(name) in best)
    return [
        [name, *(f"{rows[name][cost]:.2f}" for cost in COSTS), f"{rows[name]['macro_f1']:.4f}"]
        for _, name in chosen
    ]


def training_curves(histories: dict[str, list[dict]]) -> list[Markup]:
    """Validation macro-F1 and training loss by epoch; nothing where nothing was trained."""
    shown = (("eval_macro_f1", "validation macro-F1", "quality"), ("loss", "training loss", "loss"))
    return [Markup(plots.curves(histories, *one)) for one in shown] if histories else []


def bar_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the table of bars shows: figures, and lengths as shares of the longest bar."""
    found = [{"stage": row["stage"]} for row in rows]
    for name, cost in (("mb", "size_mb"), ("ms", "latency_ms_p50")):
        most = max(row[cost] for row in rows)
        for shown, row in zip(found, rows, strict=True):
            shown |= {name: f"{row[cost]:.2f}", f"{name}_share": f"{row[cost] / most:.3f}"}
    return found


def label_confusion_table(
    labels: list[str], confusions: list[tuple[str, list]]
) -> tuple[list[str], list[list]]:
    """Headings and lines of the table of a multi-label run: counts [label][truth][decision] of each model."""
    names = ("hits", "false alarms", "misses", "rightly not")
    head = ["Label", *(f"{model}: {name}" for model, _ in confusions for name in names)]
    return head, [
        [
            label,
            *(
                counts[i][truth][decision]
                for _, counts in confusions
                for truth, decision in ((1, 1), (0, 1), (1, 0), (0, 0))
            ),
        ]
        for i, label in enumerate(labels)
    ]
