"""Results as CSV, JSON, and the table that ends a run. No torch.

`python report.py DIR --format markdown` prints the table of an earlier run, as a paper or a page needs it.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from compression_config import UserError

RESULTS, ABLATION = "results_final", "results_ablation"  # names of files: of a run's rows, of several pipelines'


def number(metric: str, text: str) -> Callable[[dict[str, Any]], str]:
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


TABLE: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("Stage", number("stage", "{}")),
    ("Size (MB)", number("size_mb", "{:.2f}")),
    ("Packed (MB)", number("packed_mb", "{:.2f}")),
    ("F1", f1_text),
    ("vs teacher (points)", difference_text),
    ("Compression", number("compression_ratio", "{:.2f}x")),
    ("Speedup", number("speedup_torch", "{:.2f}x")),
    ("Agreement", number("agreement", "{:.3f}")),
    ("Latency (ms)", number("latency_ms_p50", "{:.2f}")),
)


def form_text(row: dict[str, Any]) -> str:
    """A pipeline's final form, and whether the quality gate keeps it back."""
    return row["stage"] + (" (kept back)" if row.get("shipped") is False else "")


OF_PIPELINES = (("Pipeline", number("pipeline", "{}")), ("Form", form_text), *TABLE[1:])


def plain(value: Any) -> Any:
    """The value as JSON knows it: a path as text, not-a-number as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def headline(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that a reader needs: the means where a run was repeated, else all."""
    return [row for row in rows if row.get("repeat") == "mean"] or rows


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Headings and headline rows as text; those of an ablation begin with the pipeline."""
    columns = OF_PIPELINES if "pipeline" in rows[0] else TABLE
    return [[heading for heading, _ in columns], *([cell(row) for _, cell in columns] for row in headline(rows))]


def table(rows: list[dict[str, Any]]) -> str:
    """The headline rows as aligned text."""
    return aligned(cells(rows))


def aligned(lines: list[list[str]]) -> str:
    """Lines of cells as text, the first as headings; words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligns = ["<"] + [">"] * (len(widths) - 1)
    shown = ["  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(line, aligns, widths, strict=True))
             for line in lines]  # fmt: skip
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])


def markdown(rows: list[dict[str, Any]]) -> str:
    """The headline rows as a Markdown table."""
    head, *lines = cells(rows)
    marks = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, marks, *lines])


def latex(rows: list[dict[str, Any]]) -> str:
    """The headline rows as a LaTeX table (package booktabs)."""
    head, *lines = [[cell.replace("+-", "$\\pm$").replace("_", "\\_").replace("%", "\\%") for cell in line]
                    for line in cells(rows)]  # fmt: skip
    body = [f"{' & '.join(line)} \\\\" for line in lines]
    return "\n".join([f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule", f"{' & '.join(head)} \\\\",
                      "\\midrule", *body, "\\bottomrule", "\\end{tabular}"])  # fmt: skip


FORMATS = {"text": table, "markdown": markdown, "latex": latex}


def write_results(
    directory: Path, rows: list[dict[str, Any]], options: dict[str, Any], about: dict[str, Any], stem: str = RESULTS
) -> None:  # fmt: skip
    """`results_final.json` (options once) and `results_final.csv` (options in every row, prefixed `config.`;
    confusion matrices are in the JSON alone), or files of another name."""
    rows = [{name: plain(value) for name, value in row.items()} for row in rows]
    document = about | {"config": options, "rows": rows}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    (directory / f"{stem}.json").write_text(text, encoding="utf-8")
    config = {f"config.{name}": " ".join(map(str, value)) if isinstance(value, list) else value
              for name, value in options.items()}  # fmt: skip
    with (directory / f"{stem}.csv").open("w", newline="", encoding="utf-8") as file:
        metrics = dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, list))
        writer = csv.DictWriter(file, fieldnames=[*metrics, *config], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | config for row in rows)


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
    return f"{row['stage']} {what} {before['stage']}: {size_and_time(row)} against {size_and_time(before)}{packed}"


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """What must not be missed, in words: a larger student, a step that bought nothing, a linear model that wins."""
    rows = headline(rows)
    by_stage = {row["stage"]: row for row in rows}
    teacher, final, linear = by_stage["teacher"], rows[-1], by_stage["linear"]
    said = []
    student = by_stage.get("student")
    if student and student["bytes"] > 1.01 * teacher["bytes"]:
        sizes = f"{student['size_mb']:.1f} MB against {teacher['size_mb']:.1f} MB"
        said.append(f"the student is larger than the teacher: {sizes}; "
                    f"compression starts at {student['compression_ratio']:.2f}x")  # fmt: skip
    steps = [step_verdict(row, by_stage[row["parent"]]) for row in rows
             if row["parent"] in by_stage and row["stage"] != "start"]  # fmt: skip
    said += [line for line in steps if line]
    if linear["macro_f1"] > final["macro_f1"]:
        said.append(f"the linear reference is better than the final model: macro-F1 {linear['macro_f1']:.4f} against "
                    f"{final['macro_f1']:.4f}")  # fmt: skip
    unsteady = [row["stage"] for row in rows if not row.get("steady", True)]
    if unsteady:
        said.append(f"the machine was busy: do not trust the times of {', '.join(unsteady)}")
    return said


def stopped_forms(rows: list[dict[str, Any]], limit: float | None) -> list[str]:
    """A line for each form that the quality gate does not let through, with its figures and what to try."""
    return [f"{row['stage']} is not shipped: it loses {100 * row['validation_drop']:.1f} points of macro-F1 on "
            f"validation and has {row['validation_macro_f1']:.4f}; --max_f1_drop allows {100 * limit:g}; try "
            "--quant_auto, another --quant_method or --export, or more --fine_tune_epochs"
            for row in rows if row.get("shipped") is False]  # fmt: skip


def read_rows(directory: str) -> list[dict[str, Any]]:
    """The rows that a run or an ablation wrote into its folder; UserError where there are none."""
    for path in (Path(directory) / f"{name}.json" for name in (RESULTS, ABLATION)):
        with suppress(OSError, ValueError, KeyError):
            return json.loads(path.read_text(encoding="utf-8"))["rows"]
    raise UserError(f"{directory} holds no {RESULTS}.json of a run and no {ABLATION}.json of an ablation")


def main(argv: list[str] | None = None) -> int:
    """Print the table of each folder."""
    parser = argparse.ArgumentParser(prog="report.py", description="Print the table of a finished run.")
    parser.add_argument("directory", nargs="+", help="folder in compressed_models/")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text", help="how to print it (default: text)")
    args = parser.parse_args(argv)
    try:
        print("\n\n".join(FORMATS[args.format](read_rows(directory)) for directory in args.directory))
    except UserError as error:
        return error.tell("report.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
