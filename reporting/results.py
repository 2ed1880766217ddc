"""TODO."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from compression_config import UserError

RESULTS, ABLATION = (
    "results_final",
    "results_ablation",
)  # names of files: of a run's rows, of several pipelines'

HISTORY = "history.json"


def figure_cell(metric: str, text: str) -> Callable[[dict[str, Any]], str]:
    """A cell that shows one figure, empty where the row has none."""
    return lambda row: "" if row.get(metric) is None else text.format(row[metric])


def f1_text(row: dict[str, Any]) -> str:
    """Macro-F1, with its standard deviation where the row is a mean of repeats."""
    deviation = row.get("macro_f1_sd")
    return f"{row['macro_f1']:.4f}" + (f" +- {deviation:.4f}" if deviation is not None else "")


def difference_text(row: dict[str, Any]) -> str:
    """Points of macro-F1 lost or won against the teacher, with their 95 % interval; empty for the teacher."""
    low, high = row.get("delta_macro_f1_low"), row.get("delta_macro_f1_high")
    if row["stage"] == "teacher" or low is None:
        return ""
    return f"{100 * row['delta_macro_f1']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("Stage", figure_cell("stage", "{}")),
    ("Size (MB)", figure_cell("size_mb", "{:.2f}")),
    ("Packed (MB)", figure_cell("packed_mb", "{:.2f}")),
    ("F1", f1_text),
    ("vs teacher (points)", difference_text),
    ("Compression", figure_cell("compression_ratio", "{:.2f}x")),
    ("Speedup", figure_cell("speedup_torch", "{:.2f}x")),
    ("Agreement", figure_cell("agreement", "{:.3f}")),
    ("Latency (ms)", figure_cell("latency_ms_p50", "{:.2f}")),
)


def format_cell(row: dict[str, Any]) -> str:
    """A pipeline's final form, and whether the quality gate keeps it back."""
    return row["stage"] + (" (kept back)" if row.get("shipped") is False else "")


PIPELINE_COLUMNS = (
    ("Pipeline", figure_cell("pipeline", "{}")),
    ("Form", format_cell),
    *COLUMNS[1:],
)


def json_value(value: Any) -> Any:
    """The value as JSON knows it: a path as text, not-a-number as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def headline_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that a reader needs: the means where a run was repeated, else all."""
    return [row for row in rows if row.get("repeat") == "mean"] or rows


def rows_of_repeat(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The rows of one repeat; all where the run was not repeated."""
    return [row for row in rows if row.get("repeat", name) == name]


def final_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The headline row of the final model: the last one that the quality gate lets through."""
    return [row for row in headline_rows(rows) if row.get("shipped", True)][-1]


def table_cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Headings and headline rows as text; those of an ablation begin with the pipeline."""
    columns = PIPELINE_COLUMNS if "pipeline" in rows[0] else COLUMNS
    return [
        [heading for heading, _ in columns],
        *([cell(row) for _, cell in columns] for row in headline_rows(rows)),
    ]


def text_table(rows: list[dict[str, Any]]) -> str:
    """The headline rows as aligned text."""
    return aligned_table(table_cells(rows))


def aligned_table(lines: list[list[str]]) -> str:
    """Lines of cells as text, the first as headings; words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligns = ["<"] + [">"] * (len(widths) - 1)
    shown = [
        "  ".join(
            f"{cell:{align}{width}}"
            for cell, align, width in zip(line, aligns, widths, strict=True)
        )
        for line in lines
    ]
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])


def markdown_of(lines: list[list[str]]) -> str:
    """Lines of cells as a Markdown table, the first as headings."""
    head, *rest = lines
    marks = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, marks, *rest])


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The headline rows as a Markdown table."""
    return markdown_of(table_cells(rows))


def latex_table(rows: list[dict[str, Any]]) -> str:
    """The headline rows as a LaTeX table (package booktabs)."""
    head, *lines = [
        [cell.replace("+-", "$\\pm$").replace("_", "\\_").replace("%", "\\%") for cell in line]
        for line in table_cells(rows)
    ]
    body = [f"{' & '.join(line)} \\\\" for line in lines]
    return "\n".join(
        [
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            "\\toprule",
            f"{' & '.join(head)} \\\\",
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
        ]
    )


FORMATS = {"text": text_table, "markdown": markdown_table, "latex": latex_table}


def write_results(
    directory: Path,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    about: dict[str, Any],
    stem: str = RESULTS,
) -> None:
    """`results_final.json` (options once) and `results_final.csv` (options in every row, prefixed `config.`;
    confusion matrices are in the JSON alone), or files of another name."""
    rows = [{name: json_value(value) for name, value in row.items()} for row in rows]
    document = about | {"config": options, "rows": rows}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    (directory / f"{stem}.json").write_text(text, encoding="utf-8")
    config = {
        f"config.{name}": " ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in options.items()
    }
    with (directory / f"{stem}.csv").open("w", newline="", encoding="utf-8") as file:
        metrics = dict.fromkeys(
            name for row in rows for name, value in row.items() if not isinstance(value, list)
        )
        writer = csv.DictWriter(file, fieldnames=[*metrics, *config], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | config for row in rows)


def ratio_text(ratio: float, more: str, less: str, same: str) -> str:
    """A ratio in words, such as `3.5x smaller`; `same` where it is about 1."""
    if 0.95 < ratio < 1.05:
        return same
    word, ratio = (more, ratio) if ratio > 1 else (less, 1 / ratio)
    return f"{ratio:.{0 if ratio >= 9.95 else 1}f}x {word}"


def points_text(row: dict[str, Any]) -> str:
    """Points of macro-F1 lost, or won, against the teacher, with their interval; a negative end is the other one."""
    points = round(100 * row["delta_macro_f1"], 1)
    sign, what = (-1, "lost") if points < 0 else (1, "won" if points else "lost or won")
    low, high = sorted(
        round(100 * sign * row[f"delta_macro_f1_{end}"], 1) + 0.0 for end in ("low", "high")
    )
    return f"{abs(points):.1f} points of macro-F1 {what} [{low:.1f}, {high:.1f}]"


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the final model is against the teacher, in one sentence."""
    row = final_row(rows)
    if row["stage"] == "teacher":
        return f"the teacher as it is, {size_and_time(row)}: macro-F1 {row['macro_f1']:.4f}"
    size = ratio_text(row["compression_ratio"], "smaller", "larger", "as large")
    pace = ratio_text(row["speedup_torch"], "faster", "slower", "as fast")
    if not all(
        one.get("steady", True) for one in rows if one["stage"] in ("teacher", row["stage"])
    ):
        pace += " (on a busy machine)"
    return f"{row['stage']} against the teacher: {size}, {pace}, {points_text(row)}"


def size_and_time(row: dict[str, Any]) -> str:
    """A row's megabytes and milliseconds, in words."""
    return f"{row['size_mb']:.2f} MB and {row['latency_ms_p50']:.2f} ms"


def step_verdict(row: dict[str, Any], before: dict[str, Any]) -> str:
    """What a step made worse or no better than the row before it, in words; empty where all is well."""
    smaller = row["bytes"] < 0.99 * before["bytes"]
    pace = row["latency_ms_p50"] / before["latency_ms_p50"]
    if pace > 0.9 and not smaller:
        what = "made nothing smaller or faster than"
    elif pace > 1.1:
        what = "is smaller but slower than"
    else:
        return ""
    packed = f"; packed, {row['packed_mb']:.2f} against {before['packed_mb']:.2f} MB"
    quality = f"; macro-F1 {row['macro_f1']:.4f} against {before['macro_f1']:.4f}"
    sizes = f"{size_and_time(row)} against {size_and_time(before)}"
    return f"{row['stage']} {what} {before['stage']}: {sizes}{packed}{quality}"


def warnings_of(rows: list[dict[str, Any]]) -> list[str]:
    """What must not be missed, in words: a larger student, a step that bought nothing, a linear model that wins."""
    rows = headline_rows(rows)
    by_stage = {row["stage"]: row for row in rows}
    teacher, final, linear = by_stage["teacher"], final_row(rows), by_stage["linear"]
    said = []
    student = by_stage.get("student")
    if student and student["bytes"] > 1.01 * teacher["bytes"]:
        sizes = f"{student['size_mb']:.1f} MB against {teacher['size_mb']:.1f} MB"
        said.append(
            f"the student is larger than the teacher: {sizes}; "
            f"compression starts at {student['compression_ratio']:.2f}x"
        )
    steps = [
        step_verdict(row, by_stage[row["parent"]])
        for row in rows
        if row["parent"] in by_stage and row["stage"] not in ("start", "qat", "tuned")
    ]
    said += [line for line in steps if line]
    if linear["macro_f1"] > final["macro_f1"]:
        said.append(
            f"the final model does not beat the linear reference: macro-F1 {final['macro_f1']:.4f} against "
            f"{linear['macro_f1']:.4f}; a pretrained --teacher_path or more rows may change that"
        )
    unsteady = [row["stage"] for row in rows if not row.get("steady", True)]
    if unsteady:
        said.append(f"the machine was busy: do not trust the times of {', '.join(unsteady)}")
    return said


def rejection_notes(rows: list[dict[str, Any]], limit: float | None) -> list[str]:
    """A line for each form that the quality gate does not let through, with its figures and what to try."""
    return [
        f"{row['stage']} is not shipped: it loses {100 * row['validation_drop']:.1f} points of macro-F1 on "
        f"validation and has {row['validation_macro_f1']:.4f}; --max_f1_drop allows {100 * limit:g}; try "
        "--quant_auto, --qat, another --quant_method or --export"
        for row in rows
        if row.get("shipped") is False
    ]


def read_results(directory: Path | str, names: tuple[str, ...] = (RESULTS,)) -> dict[str, Any]:
    """What a run (or an ablation, where `names` say so) wrote into its folder; UserError where there is nothing."""
    for path in (Path(directory) / f"{name}.json" for name in names):
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["rows"] and all(
                isinstance(row, dict) and "stage" in row for row in document["rows"]
            ):
                return document
    what = {RESULTS: "a run", ABLATION: "an ablation"}
    raise UserError(
        f"{directory} holds " + " and ".join(f"no {name}.json of {what[name]}" for name in names)
    )


def read_rows(directory: str) -> list[dict[str, Any]]:
    """The rows that a run or an ablation wrote into its folder."""
    return read_results(directory, (RESULTS, ABLATION))["rows"]
