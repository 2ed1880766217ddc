"""Results as CSV, JSON, and the table that ends a run. No torch."""

import csv
import json
import math
from pathlib import Path
from typing import Any

TABLE = (  # heading, metric, format
    ("Stage", "stage", "{}"),
    ("Size (MB)", "size_mb", "{:.2f}"),
    ("F1", "macro_f1", "{:.4f}"),
    ("Compression", "compression_ratio", "{:.2f}x"),
    ("Speedup", "speedup_torch", "{:.2f}x"),
    ("Agreement", "agreement", "{:.3f}"),
    ("Latency (ms)", "latency_ms_p50", "{:.2f}"),
)


def plain(value: Any) -> Any:
    """The value as JSON knows it: a path as text, not-a-number as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text: Stage, Size (MB), F1 (macro), Compression, Speedup, Agreement, Latency (ms)."""
    lines = [[heading for heading, _, _ in TABLE]]
    lines += [[text.format(row[metric]) for _, metric, text in TABLE] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(TABLE))]
    aligns = ["<"] + [">"] * (len(TABLE) - 1)
    shown = ["  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(line, aligns, widths, strict=True))
             for line in lines]  # fmt: skip
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])


def write_results(directory: Path, rows: list[dict[str, Any]], options: dict[str, Any], about: dict[str, Any]) -> None:
    """`results_final.json` (options once) and `results_final.csv` (options in every row, prefixed `config.`)."""
    rows = [{name: plain(value) for name, value in row.items()} for row in rows]
    document = about | {"config": options, "rows": rows}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    (directory / "results_final.json").write_text(text, encoding="utf-8")
    config = {f"config.{name}": " ".join(map(str, value)) if isinstance(value, list) else value
              for name, value in options.items()}  # fmt: skip
    with (directory / "results_final.csv").open("w", newline="", encoding="utf-8") as file:
        metrics = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, fieldnames=[*metrics, *config])
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
    return f"{row['stage']} {what} {before['stage']}: {size_and_time(row)} against {size_and_time(before)}"


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """What must not be missed, in words: a larger student, a step that bought nothing, a linear model that wins."""
    by_stage = {row["stage"]: row for row in rows}
    teacher, final, linear = by_stage["teacher"], rows[-1], by_stage["linear"]
    said = []
    student = by_stage.get("student")
    if student and student["bytes"] > 1.01 * teacher["bytes"]:
        sizes = f"{student['size_mb']:.1f} MB against {teacher['size_mb']:.1f} MB"
        said.append(f"the student is larger than the teacher: {sizes}; "
                    f"compression starts at {student['compression_ratio']:.2f}x")  # fmt: skip
    steps = [step_verdict(row, by_stage[row["parent"]]) for row in rows if row["parent"] in by_stage]
    said += [line for line in steps if line]
    if linear["macro_f1"] > final["macro_f1"]:
        said.append(f"the linear reference is better than the final model: macro-F1 {linear['macro_f1']:.4f} against "
                    f"{final['macro_f1']:.4f}")  # fmt: skip
    return said
