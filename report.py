"""Results as CSV, JSON, the table that ends a run, and what its page and a page of many runs say. No torch.

`python report.py DIR --format markdown` prints the table of an earlier run, as a paper or another page needs it;
`python report.py DIR DIR --html FILE` writes one page that compares runs.
"""

import csv
import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from compression_config import Parser, UserError

RESULTS, ABLATION = "results_final", "results_ablation"  # names of files: of a run's rows, of several pipelines'
HISTORY, PAGE = "history.json", "report.html"
SHAPES = ("start", "trimmed", "narrowed")  # rows that are trained later where there is a student
FIGURES = ("macro_f1", "bytes", "size_mb", "packed_mb", "latency_ms_p50", "compression_ratio", "speedup_torch")
DIFFERENCES = ("delta_macro_f1", "delta_macro_f1_low", "delta_macro_f1_high")
MOST_CHARACTERS = 600  # of a text that the page shows


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


def of_repeat(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The rows of one repeat; all where the run was not repeated."""
    return [row for row in rows if row.get("repeat", name) == name]


def final_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The headline row of the final model: the last one that the quality gate lets through."""
    return [row for row in headline(rows) if row.get("shipped", True)][-1]


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


def as_markdown(lines: list[list[str]]) -> str:
    """Lines of cells as a Markdown table, the first as headings."""
    head, *rest = lines
    marks = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, marks, *rest])


def markdown(rows: list[dict[str, Any]]) -> str:
    """The headline rows as a Markdown table."""
    return as_markdown(cells(rows))


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
    low, high = sorted(round(100 * sign * row[f"delta_macro_f1_{end}"], 1) + 0.0 for end in ("low", "high"))
    return f"{abs(points):.1f} points of macro-F1 {what} [{low:.1f}, {high:.1f}]"


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the final model is against the teacher, in one sentence."""
    row = final_row(rows)
    if row["stage"] == "teacher":
        return f"the teacher as it is, {size_and_time(row)}: macro-F1 {row['macro_f1']:.4f}"
    size = ratio_text(row["compression_ratio"], "smaller", "larger", "as large")
    pace = ratio_text(row["speedup_torch"], "faster", "slower", "as fast")
    if not all(one.get("steady", True) for one in rows if one["stage"] in ("teacher", row["stage"])):
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


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """What must not be missed, in words: a larger student, a step that bought nothing, a linear model that wins."""
    rows = headline(rows)
    by_stage = {row["stage"]: row for row in rows}
    teacher, final, linear = by_stage["teacher"], final_row(rows), by_stage["linear"]
    said = []
    student = by_stage.get("student")
    if student and student["bytes"] > 1.01 * teacher["bytes"]:
        sizes = f"{student['size_mb']:.1f} MB against {teacher['size_mb']:.1f} MB"
        said.append(f"the student is larger than the teacher: {sizes}; "
                    f"compression starts at {student['compression_ratio']:.2f}x")  # fmt: skip
    steps = [step_verdict(row, by_stage[row["parent"]]) for row in rows
             if row["parent"] in by_stage and row["stage"] not in ("start", "qat", "tuned")]  # fmt: skip
    said += [line for line in steps if line]
    if linear["macro_f1"] > final["macro_f1"]:
        said.append(f"the final model does not beat the linear reference: macro-F1 {final['macro_f1']:.4f} against "
                    f"{linear['macro_f1']:.4f}; a pretrained --teacher_path or more rows may change that")  # fmt: skip
    unsteady = [row["stage"] for row in rows if not row.get("steady", True)]
    if unsteady:
        said.append(f"the machine was busy: do not trust the times of {', '.join(unsteady)}")
    return said


def stopped_forms(rows: list[dict[str, Any]], limit: float | None) -> list[str]:
    """A line for each form that the quality gate does not let through, with its figures and what to try."""
    return [f"{row['stage']} is not shipped: it loses {100 * row['validation_drop']:.1f} points of macro-F1 on "
            f"validation and has {row['validation_macro_f1']:.4f}; --max_f1_drop allows {100 * limit:g}; try "
            "--quant_auto, --qat, another --quant_method or --export"
            for row in rows if row.get("shipped") is False]  # fmt: skip


def read_results(directory: Path | str, names: tuple[str, ...] = (RESULTS,)) -> dict[str, Any]:
    """What a run (or an ablation, where `names` say so) wrote into its folder; UserError where there is nothing."""
    for path in (Path(directory) / f"{name}.json" for name in names):
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["rows"] and all(isinstance(row, dict) and "stage" in row for row in document["rows"]):
                return document
    what = {RESULTS: "a run", ABLATION: "an ablation"}
    raise UserError(f"{directory} holds " + " and ".join(f"no {name}.json of {what[name]}" for name in names))


def read_rows(directory: str) -> list[dict[str, Any]]:
    """The rows that a run or an ablation wrote into its folder."""
    return read_results(directory, (RESULTS, ABLATION))["rows"]


def check_complete(directory: str, rows: list[dict[str, Any]]) -> None:
    """Refuse results that a page cannot be made of: rows missing, or figures that are no positive numbers."""
    missing = {"linear", "teacher"} - {str(row.get("stage")) for row in rows}
    if missing:
        raise UserError(f"{directory} holds a {RESULTS}.json, but without a row {' and '.join(sorted(missing))}")
    for row in headline(rows):
        if not (isinstance(row.get("stage"), str) and isinstance(row.get("parent"), str)):
            raise UserError(f"{directory} holds a {RESULTS}.json, but a row without its stage or parent")
        for name in (*FIGURES, *DIFFERENCES):
            value = row.get(name)
            if not isinstance(value, int | float) or not math.isfinite(value) or (name in FIGURES[1:] and value <= 0):
                raise UserError(f"{directory} holds a {RESULTS}.json, but {name} of {row['stage']} is {value}, "
                                "no figure")  # fmt: skip


def trained(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The headline rows without those whose head is trained later."""
    rows = headline(rows)
    has_student = any(row["stage"] == "student" for row in rows)
    return [row for row in rows if not (has_student and row["stage"] in SHAPES)]


def confusion(rows: list[dict[str, Any]], stage: str) -> list:
    """The confusion counts of a stage, those of all repeats added up."""
    import numpy as np

    return np.sum([row["confusion"] for row in rows if row["stage"] == stage and row.get("repeat") != "mean"],
                  axis=0).tolist()  # fmt: skip


def histories(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Row -> how its stage was trained, epoch by epoch, where it was."""
    kept = {row["stage"]: Path(row["directory"]) / HISTORY for row in rows}
    return {stage: json.loads(path.read_text(encoding="utf-8")) for stage, path in kept.items() if path.is_file()}


def decision_text(scores: Any, widest: int, labels: list[str], multi_label: bool) -> str:
    """What probabilities [labels] decide: the class and its own; or all labels, and the probability of `widest`."""
    if not multi_label:
        return f"{labels[scores.argmax()]} ({scores.max():.2f})"
    return f"{names_of(scores > 0.5, labels)} ({labels[widest]} {scores[widest]:.2f})"


def names_of(flags: Any, labels: list[str]) -> str:
    """The labels that hold."""
    return ", ".join(label for label, flag in zip(labels, flags, strict=True) if flag) or "none"


def disagreements(
    folder: Path, final: str, labels: list[str], multi_label: bool, most: int = 12
) -> list[dict[str, str]]:
    """The test texts of the run in `folder` for which a probability of the final model is furthest from the teacher's,
    the widest gap first: `text`, the `true` label, and what `teacher` and `final` decide."""
    import numpy as np
    import pyarrow.parquet as pq

    predicted = [pq.read_table(folder / "predictions" / f"{name}.parquet") for name in ("teacher", final)]
    test = pq.read_table(folder / "splits" / "test.parquet", columns=["id", "text", "label"])
    assert all(one["id"].equals(test["id"]) for one in predicted)
    scores = [one["probabilities"].combine_chunks().flatten().to_numpy().reshape(len(test), -1) for one in predicted]
    gaps = np.abs(scores[0] - scores[1])
    chosen = np.argsort(-gaps.max(axis=1), kind="stable")[:most]
    found = []
    for row, one in zip(chosen, test.take(chosen).to_pylist(), strict=True):
        cut = f" [... of {len(one['text'])} characters]" if len(one["text"]) > MOST_CHARACTERS else ""
        decided = [decision_text(side[row], gaps[row].argmax(), labels, multi_label) for side in scores]
        true = names_of(one["label"], labels) if multi_label else labels[one["label"]]
        found.append({"text": one["text"][:MOST_CHARACTERS] + cut, "true": true, "teacher": decided[0],
                      "final": decided[1]})  # fmt: skip
    return found


def told(value: Any) -> str:
    """A value of the options or the machine as text."""
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def run_page(document: dict[str, Any], audit: list[tuple[str, str, str]], with_examples: bool) -> str:
    """The page of one run: what `results_final.json` holds, and what lies in the folders that its rows name."""
    import page

    rows, labels = document["rows"], document["labels"]
    multi_label = document["problem_type"] == "multi_label_classification"
    shown, final = headline(rows), final_row(rows)["stage"]
    teacher = next(row for row in shown if row["stage"] == "teacher")
    repeated = len(dict.fromkeys(row["repeat"] for row in rows)) - 1 if "repeat" in teacher else 0
    first = f" Of the first repeat, {document['shipped']}." if repeated else ""
    confusions = [(stage, confusion(rows, stage)) for stage in dict.fromkeys(("teacher", final))]
    head, lines = page.label_confusions(labels, confusions) if multi_label else ([], [])
    examples = None
    if with_examples and final != "teacher":
        examples = disagreements(Path(teacher["directory"]).parent, final, labels, multi_label)
    return page.fill(
        "run", title=document["experiment"], verdict=verdict(rows), cells=cells(rows), final=final, labels=labels,
        notes=verdicts(rows) + stopped_forms(of_repeat(rows, document["shipped"]), document["config"]["max_f1_drop"]),
        means=f"Means of {repeated} repeats. " if repeated else "", first=first,
        trade_offs=page.trade_offs({row["stage"]: row for row in trained(rows)}), bars=page.bars(shown),
        untrained=[row["stage"] for row in shown if row not in trained(rows)],
        curves=page.training_curves(histories(shown)), multi_label=multi_label, confusions=confusions,
        confusion_head=head, confusion_lines=lines, added=", all repeats added up" if repeated else "",
        examples=examples, audit=audit, command=document["command"],
        facts=[(name.replace("_", " "), told(value)) for about in ("split_rows", "machine", "versions")
               for name, value in document[about].items()],
        options=[(f"--{name}", told(value)) for name, value in document["config"].items() if value is not None],
    )  # fmt: skip


def write_page(directory: Path, audit: list[tuple[str, str, str]], with_examples: bool = True) -> None:
    """`report.html` beside the results of a run; `audit` are the lines of what was found in the data."""
    text = run_page(read_results(directory), audit, with_examples)
    (directory / PAGE).write_text(text, encoding="utf-8")


def comparison_page(directories: list[str]) -> str:
    """One page of the runs in these folders; tables of ablations, which repeat runs, are passed over."""
    import page

    runs_alone = [one for one in directories if not (Path(one) / f"{ABLATION}.json").is_file()] or directories
    documents = {directory: read_results(directory) for directory in dict.fromkeys(runs_alone)}
    for directory, document in documents.items():
        check_complete(directory, document["rows"])
    own = [document.get("experiment") for document in documents.values()]
    names = [str(name) if name and own.count(name) == 1 else directory
             for directory, name in zip(documents, own, strict=True)]  # fmt: skip
    runs, groups = [], {}
    for name, document in zip(names, documents.values(), strict=True):
        rows = document["rows"]
        runs.append({"name": name, "cells": cells([final_row(rows)])[1], "verdict": verdict(rows),
                     "notes": verdicts(rows)})  # fmt: skip
        points = groups.setdefault(told(document.get("config", {}).get("dataset_path")), {})
        points |= {f"{name} {row['stage']}": row for row in trained(rows)}
    drawn = [{"data": data, "trade_offs": page.trade_offs(points, f"-{number}", only_front=True),
              "best": page.fronts(points)} for number, (data, points) in enumerate(groups.items())]  # fmt: skip
    return page.fill(
        "comparison", title="Runs compared", runs=runs, head=["Run", "Form", *(heading for heading, _ in TABLE[1:])],
        notes=[f"these runs are of different data, each with plots of its own: {', '.join(groups)}"]
        if len(groups) > 1 else [], groups=drawn)  # fmt: skip


def write_comparison(directories: list[str], file: Path) -> None:
    """`comparison_page` as a file that is whole or absent."""
    if not file.parent.is_dir() or file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
        raise UserError(f"--html is {file}, but must be a file in a folder that is there and can be written to")
    text, partial = comparison_page(directories), file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def main(argv: list[str] | None = None) -> int:
    """Print the table of each folder, or write one page of all."""
    what = "Print the table of a finished run, or compare runs."
    parser = Parser(prog="report.py", description=what)
    parser.add_argument("directory", nargs="+", help="folder in compressed_models/")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--format", choices=tuple(FORMATS), default="text", help="how to print it (default: text)")
    shape.add_argument("--html", type=Path, metavar="FILE", help="write one page that compares the runs instead")
    try:
        args = parser.parse_args(argv)
        if args.html:
            write_comparison(args.directory, args.html)
        else:
            print("\n\n".join(FORMATS[args.format](read_rows(one)) for one in args.directory))
    except UserError as error:
        return error.tell("report.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
