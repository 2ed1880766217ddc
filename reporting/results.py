"""The results of a run: its table, CSV and JSON files, verdict and notes. Imports no torch.

A row describes one format: its stage, size, times and quality. docs/evaluation.md explains the
keys.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reporting.constant_models import constant_notes
from reporting.markdown import Cells, markdown_cell, markdown_from_cells
from runtime.errors import UserError, escape_unprintable
from runtime.files import RECORD_NAME, REPORTS_KEY, file_sha256, read_json

RESULTS = "results_final"  # file name without suffix: the rows of a run
ABLATION = "results_ablation"  # the rows of several pipelines
FILE_CONTENTS = {RESULTS: "a run", ABLATION: "an ablation"}

SAME_RATIO = 0.05  # ratios within 1 +- this are called equal
SMALLER_RATIO = 0.99  # bytes below this share of the previous step's count as smaller
FASTER_RATIO = 0.9
SLOWER_RATIO = 1.1
LARGER_RATIO = 1.01
WIDE_INTERVAL = 0.1  # of a difference in macro-F1
UNJUDGED_STAGES = ("start", "qat", "tuned")  # they are not meant to be smaller or faster

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the printed table."""

    heading: str
    cell: Callable[[Row], str]


def metric_column(heading: str, metric: str, pattern: str) -> Column:
    """A column that shows one metric; the cell of a row without it is empty."""

    def cell(row: Row) -> str:
        value = row.get(metric)
        return "" if value is None else pattern.format(value)

    return Column(heading, cell)


def f1_cell(row: Row) -> str:
    """Macro-F1, with its standard deviation if the row is a mean of repeats."""
    text = f"{row['macro_f1']:.4f}"
    deviation = row.get("macro_f1_sd")
    if deviation is not None:
        text += f" +- {deviation:.4f}"
    return text


def difference_cell(row: Row) -> str:
    """Points of macro-F1 above the teacher, with the 95 % interval if it has one; empty for the
    teacher."""
    difference = row.get("delta_macro_f1")
    low = row.get("delta_macro_f1_low")
    high = row.get("delta_macro_f1_high")
    if row["stage"] == "teacher" or difference is None:
        return ""
    if low is None:
        return f"{100 * difference:+.1f}"
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def is_unmeasurable(row: Row) -> bool:
    """Whether the 95 % interval of the difference from the teacher contains 0."""
    low = row.get("delta_macro_f1_low")
    high = row.get("delta_macro_f1_high")
    return low is not None and low <= 0 <= high


def is_timed(row: Row) -> bool:
    """Whether a format was timed: none is with `--no_benchmark`."""
    return row.get("latency_ms_p50") is not None


def speedup_cell(row: Row) -> str:
    """The speedup over the teacher in torch; n/a if the machine was too busy for a ratio, and empty
    without times."""
    if not is_timed(row):
        return ""
    speedup = row.get("speedup_torch")
    return "n/a" if speedup is None else f"{speedup:.2f}x"


def format_cell(row: Row) -> str:
    """The final format of a pipeline, marked if the quality gate rejected it."""
    is_rejected = row.get("shipped") is False
    return f"{row['stage']} (rejected)" if is_rejected else row["stage"]


METRIC_COLUMNS = (
    metric_column("Size (MB)", "size_mb", "{:.2f}"),
    metric_column("zstd (MB)", "packed_mb", "{:.2f}"),
    Column("F1", f1_cell),
    Column("vs teacher (points)", difference_cell),
    metric_column("Compression", "compression_ratio", "{:.2f}x"),
    Column("Speedup", speedup_cell),
    metric_column("Agreement", "agreement", "{:.3f}"),
    metric_column("Latency (ms)", "latency_ms_p50", "{:.2f}"),
)
SPEED_COLUMNS = (
    metric_column("Stage", "stage", "{}"),
    metric_column("Latency (ms)", "latency_ms_p50", "{:.2f}"),
    metric_column("p95 (ms)", "latency_ms_p95", "{:.2f}"),
    metric_column("Texts/s", "throughput", "{:,.0f}"),
    metric_column("Tokenize (ms)", "tokenize_ms", "{:.2f}"),
    metric_column("Load (s)", "load_s", "{:.1f}"),
    metric_column("Memory (MiB)", "rss_mb", "{:.0f}"),
)
RUN_COLUMNS = (metric_column("Stage", "stage", "{}"), *METRIC_COLUMNS)
ABLATION_COLUMNS = (
    metric_column("Pipeline", "pipeline", "{}"),
    Column("Format", format_cell),
    *METRIC_COLUMNS,
)


def headline_rows(rows: list[Row]) -> list[Row]:
    """The means if a run was repeated, else all rows."""
    return [row for row in rows if row.get("repeat") == "mean"] or rows


def rows_of_repeat(rows: list[Row], name: str) -> list[Row]:
    """The rows of one repeat; all rows if the run was not repeated."""
    return [row for row in rows if row.get("repeat", name) == name]


def final_row(rows: list[Row]) -> Row:
    """The headline row of the final model: the last one that the quality gate did not reject."""
    accepted = [row for row in headline_rows(rows) if row.get("shipped", True)]
    return accepted[-1]


def table_cells(rows: list[Row]) -> Cells:
    """Headings and headline rows as text; those of an ablation start with the pipeline."""
    columns = ABLATION_COLUMNS if "pipeline" in rows[0] else RUN_COLUMNS
    return cells_of(headline_rows(rows), columns)


def speed_cells(rows: list[Row]) -> Cells:
    """Headings and rows as text: times, throughput and memory."""
    return cells_of(rows, SPEED_COLUMNS)


def cells_of(rows: list[Row], columns: tuple[Column, ...]) -> Cells:
    """Headings and rows as text."""
    lines = [[column.heading for column in columns]]
    for row in rows:
        lines.append([column.cell(row) for column in columns])
    return lines


def text_table(rows: list[Row]) -> str:
    """The headline rows as aligned text."""
    return aligned_table(table_cells(rows))


def aligned_table(lines: Cells) -> str:
    """Cells as text: the first column left-aligned, the others right-aligned."""
    lines = [list(map(escape_unprintable, line)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        for cell, width in zip(line[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width))
        aligned.append("  ".join(cells))
    rule = "-" * len(aligned[0])
    return "\n".join([aligned[0], rule, *aligned[1:]])


def markdown_table(rows: list[Row]) -> str:
    """The headline rows as a Markdown table."""
    lines = [list(map(markdown_cell, cells)) for cells in table_cells(rows)]
    return markdown_from_cells(lines)


def latex_table(rows: list[Row]) -> str:
    """The headline rows as a LaTeX table (package booktabs)."""
    lines = []
    for cells in table_cells(rows):
        lines.append(f"{' & '.join(map(escape_latex, cells))} \\\\")
    head, *body = lines
    alignment = "l" + "r" * (len(table_cells(rows)[0]) - 1)
    parts = [
        f"\\begin{{tabular}}{{{alignment}}}",
        "\\toprule",
        head,
        "\\midrule",
        *body,
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(parts)


LATEX_ESCAPES = str.maketrans(
    {
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        **{char: f"\\{char}" for char in "&%$#_{}"},
    }
)


def escape_latex(cell: str) -> str:
    """A cell as LaTeX source, in which no character is a command."""
    escaped = escape_unprintable(cell).translate(LATEX_ESCAPES)
    return escaped.replace("+-", "$\\pm$")


TABLE_FORMATS = {"text": text_table, "markdown": markdown_table, "latex": latex_table}


def write_results(
    directory: Path,
    rows: list[Row],
    options: dict[str, Any],
    about: dict[str, Any],
    stem: str = RESULTS,
) -> None:
    """Write `<stem>.json` and `<stem>.csv`.

    The JSON contains the options once. The CSV repeats them in every row, prefixed with `config.`,
    and leaves out confusion matrices.
    """
    rows = [json_row(row) for row in rows]
    document = about | {"config": options, "rows": rows}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    (directory / f"{stem}.json").write_text(text, encoding="utf-8")
    write_csv(directory / f"{stem}.csv", rows, options)


def json_row(row: Row) -> Row:
    """The row with values that JSON supports: paths as text, NaN and infinities as None."""
    values = {}
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            values[name] = None
        elif isinstance(value, Path):
            values[name] = str(value)
        else:
            values[name] = value
    return values


def write_csv(path: Path, rows: list[Row], options: dict[str, Any]) -> None:
    """All values of the rows that are not lists, followed by the options."""
    config = {}
    for name, value in options.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else value
        config[f"config.{name}"] = text
    columns: dict[str, None] = {}  # an ordered set
    for row in rows:
        scalars = [name for name, value in row.items() if not isinstance(value, list)]
        columns |= dict.fromkeys(scalars)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*columns, *config], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | config for row in rows)


def ratio_text(ratio: float, above: str, below: str, equal: str) -> str:
    """A ratio in words: `3.5x smaller` for 3.5 and above="smaller"; `equal` if it is about 1."""
    if abs(ratio - 1) < SAME_RATIO:
        return equal
    word = above
    if ratio < 1:
        word = below
        ratio = 1 / ratio
    digits = 0 if ratio >= 9.95 else 1  # 10x, but 9.9x
    return f"{ratio:.{digits}f}x {word}"


def points_text(row: Row) -> str:
    """Points of macro-F1 gained over the teacher or lost to it, with the 95 % interval.

    Its ends have the sign of the word: `0.7 points lost [-1.8, 3.2]` is 1.8 points gained to 3.2
    lost. An interval that contains 0 is no measurable difference.
    """
    points = round(100 * row["delta_macro_f1"], 1)
    sign = 1
    word = "gained"
    if points < 0:
        sign = -1
        word = "lost"
    elif points == 0:
        word = "gained or lost"
    if row["delta_macro_f1_low"] is None:
        return f"{abs(points):.1f} points of macro-F1 {word} (too few repeats for an interval)"
    ends = []
    for name in ("delta_macro_f1_low", "delta_macro_f1_high"):
        ends.append(round(100 * sign * row[name], 1) + 0.0)  # + 0.0 turns -0.0 into 0.0
    low, high = sorted(ends)
    if is_unmeasurable(row):
        difference = f"{abs(points):.1f} points {word} [{low:.1f}, {high:.1f}]"
        return f"no measurable difference in macro-F1 ({difference})"
    return f"{abs(points):.1f} points of macro-F1 {word} [{low:.1f}, {high:.1f}]"


def size_and_latency(row: Row) -> str:
    """Size and, if it was measured, latency of a row in words."""
    if not is_timed(row):
        return f"{row['size_mb']:.2f} MB"
    return f"{row['size_mb']:.2f} MB and {row['latency_ms_p50']:.2f} ms"


def verdict(rows: list[Row]) -> str:
    """The final model compared with the teacher, in one sentence."""
    row = final_row(rows)
    if row["stage"] == "teacher":
        return (
            f"the final model is the teacher: {size_and_latency(row)}, "
            f"macro-F1 {row['macro_f1']:.4f}"
        )
    size = ratio_text(row["compression_ratio"], "smaller", "larger", "same size")
    compared = [other for other in rows if other["stage"] in ("teacher", row["stage"])]
    if not is_timed(row):
        speed = "speed not measured"
    elif row["speedup_torch"] is None:
        speed = "speed not compared (the machine was busy)"
    else:
        speed = ratio_text(row["speedup_torch"], "faster", "slower", "same speed")
        if not all(other.get("steady", True) for other in compared):
            speed += " (measured on a busy machine)"
    return f"{row['stage']} compared with the teacher: {size}, {speed}, {points_text(row)}"


def warnings_of(rows: list[Row]) -> list[str]:
    """Notes that a user must not miss, the most important first: models that predict the same for
    every row, a student larger than the teacher, a step without benefit, a format that is
    significantly worse than its parent, a linear baseline that is better than the final model, too
    few test rows, and times that cannot be trusted."""
    notes = constant_notes(rows)
    rows = headline_rows(rows)
    by_stage = {row["stage"]: row for row in rows}
    if "student" in by_stage:
        notes += student_warnings(by_stage["student"], by_stage["teacher"])
    for row in rows:
        if row["parent"] in by_stage and row["stage"] not in UNJUDGED_STAGES:
            notes += step_warnings(row, by_stage[row["parent"]])
        notes += loss_warnings(row)
    notes += baseline_warnings(final_row(rows), by_stage["linear"])
    notes += width_warnings(final_row(rows))
    return notes + timing_warnings(rows)


def timing_warnings(rows: list[Row]) -> list[str]:
    """Notes if times were not measured or cannot be trusted."""
    if not any(map(is_timed, rows)):
        return ["times and memory were not measured (--no_benchmark)"]
    notes = []
    unsteady = [row["stage"] for row in rows if not row.get("steady", True)]
    if unsteady:
        notes.append(f"the machine was busy: do not trust the times of {', '.join(unsteady)}")
    withheld = [row["stage"] for row in rows if row.get("speedup_torch", 1) is None]
    if withheld:
        notes.append(
            f"no speedup of {', '.join(withheld)}: other processes interrupted even the fastest "
            "passes; measure again on an idle machine: the same command reuses every stage"
        )
    return notes


def student_warnings(student: Row, teacher: Row) -> list[str]:
    """A note if the student is larger than the teacher."""
    if student["bytes"] <= LARGER_RATIO * teacher["bytes"]:
        return []
    return [
        f"the student is larger than the teacher: {student['size_mb']:.1f} MB vs. "
        f"{teacher['size_mb']:.1f} MB; compression starts at {student['compression_ratio']:.2f}x"
    ]


def step_warnings(row: Row, before: Row) -> list[str]:
    """A note if a step made a model slower, or neither smaller nor faster, than the previous
    row."""
    is_smaller = row["bytes"] < SMALLER_RATIO * before["bytes"]
    if None in (row.get("speedup_torch", 1), before.get("speedup_torch", 1)):
        return []  # the times of a busy machine tell nothing
    latency_ratio = row["latency_ms_p50"] / before["latency_ms_p50"]
    if latency_ratio > FASTER_RATIO and not is_smaller:
        finding = "neither smaller nor faster than"
    elif latency_ratio > SLOWER_RATIO:
        finding = "smaller but slower than"
    else:
        return []
    return [
        f"{row['stage']} is {finding} {before['stage']}: "
        f"{size_and_latency(row)} vs. {size_and_latency(before)}; "
        f"zstd {row['packed_mb']:.2f} vs. {before['packed_mb']:.2f} MB; "
        f"macro-F1 {row['macro_f1']:.4f} vs. {before['macro_f1']:.4f}"
    ]


def loss_warnings(row: Row) -> list[str]:
    """A note if the interval of a format's difference from its full-precision parent is below 0."""
    high = row.get("parent_delta_macro_f1_high")
    if high is None or high >= 0:
        return []
    points = 100 * row["parent_delta_macro_f1"]
    low = 100 * row["parent_delta_macro_f1_low"]
    bits = 4 if "int4" in row["stage"] else 8
    more_bits = "8 bits" if bits == 4 else "more bits"
    return [
        f"{row['stage']}: macro-F1 {points:+.1f} points against its full-precision parent, "
        f"{row['parent']} [{low:+.1f}, {100 * high:+.1f}]: a significant loss; consider "
        f"--qat int{bits}, --quant_auto, or a format with {more_bits}"
    ]


def baseline_warnings(final: Row, linear: Row) -> list[str]:
    """A note if the linear baseline has a better macro-F1 than the final model."""
    if linear["macro_f1"] <= final["macro_f1"]:
        return []
    return [
        "the final model does not beat the linear baseline: "
        f"macro-F1 {final['macro_f1']:.4f} vs. {linear['macro_f1']:.4f}; "
        "a pretrained --teacher_path or more rows may help"
    ]


def width_warnings(final: Row) -> list[str]:
    """A note if the interval of the final model's difference from the teacher is wide: then "no
    measurable difference" says little."""
    low = final.get("delta_macro_f1_low")
    high = final.get("delta_macro_f1_high")
    if low is None or high - low <= WIDE_INTERVAL:
        return []
    return [
        f"the test rows are few: the interval of the difference between {final['stage']} and the "
        f"teacher is {100 * (high - low):.0f} points wide; more rows, a larger --test_fraction or "
        "--num_folds 5 narrow it"
    ]


def rejection_notes(rows: list[Row], limit: float | None) -> list[str]:
    """A line for each format that the quality gate rejected: its loss, the limit, and what to
    try."""
    notes = []
    for row in rows:
        if row.get("shipped") is False:
            notes.append(
                f"{row['stage']} is rejected: it loses {100 * row['validation_drop']:.1f} points "
                f"of macro-F1 on validation (to {row['validation_macro_f1']:.4f}), but "
                f"--max_f1_drop allows {100 * limit:g}; try --quant_auto, --qat, another "
                "--quant_method or --export"
            )
    return notes


def read_results(directory: Path | str, names: tuple[str, ...] = (RESULTS,)) -> dict[str, Any]:
    """The first readable document of `names` (RESULTS, ABLATION) in a directory; UserError if
    none."""
    for name in names:
        path = Path(directory) / f"{name}.json"
        document = read_document(path)
        if document is not None:
            check_unchanged(path)
            return document
    missing = [f"no {name}.json of {FILE_CONTENTS[name]}" for name in names]
    raise UserError(f"{directory} contains {' and '.join(missing)}")


def check_unchanged(path: Path) -> None:
    """Raise UserError if results were changed since the run: stage.json has another hash."""
    try:
        record = read_json(path.with_name(RECORD_NAME))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path.parent} contains a {RECORD_NAME} that is not a JSON object")
    hashes = record.get(REPORTS_KEY, {})  # older versions recorded none
    expected = hashes.get(path.name) if isinstance(hashes, dict) else ""
    if expected is not None and expected != file_sha256(path):
        raise UserError(
            f"{path.parent} contains a {path.name} that was changed since the run: its hash is not "
            f"the one in {RECORD_NAME}"
        )


def read_document(path: Path) -> dict[str, Any] | None:
    """A results document; None if the file is absent or is not one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    rows = document.get("rows") if isinstance(document, dict) else None
    if not rows or not isinstance(rows, list):
        return None
    for row in rows:
        if not isinstance(row, dict) or "stage" not in row:
            return None
    return document


def read_rows(directory: str) -> list[Row]:
    """The rows that a run or an ablation wrote into a directory."""
    return read_results(directory, (RESULTS, ABLATION))["rows"]
