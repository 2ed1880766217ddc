"""Measure a finished model on a labeled file.

`python evaluate.py --model DIR --input FILE` prints macro-F1, accuracy and Matthews correlation
with intervals, the figures of each label, confusions, thresholds and the worst errors.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a while
    from runtime.terminal import prepare_terminal

    prepare_terminal("evaluate.py")

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from compression_config import MAX_INPUT_GB, POSITIVE, split_label_name
from corpus.encodings import BYTES_PER_GB
from corpus.input_files import ReadOptions
from corpus.labeled_rows import ColumnNames, LabeledRows, read_labeled_rows
from engines.classifier import (
    CALL_TEXTS,
    Classifier,
    load,
    read_labels,
    read_stage_record,
    servable_formats,
)
from reporting.file_quality_text import quality_text
from runtime.command_line import ArgumentParser, convert, directory_errors, file_errors
from runtime.errors import ErrorCollector, UserError
from runtime.exit_codes import run_command
from runtime.files import write_json
from runtime.logs import start_logging
from runtime.terminal import CommandContext
from task import Task

log = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """All flags, as text; `parse_options` converts and checks them."""
    parser = ArgumentParser(
        prog="evaluate.py",
        allow_abbrev=False,
        usage="evaluate.py --model DIR --input FILE [options]",
        description="Measure a finished model on a labeled file that it was not trained on.",
    )
    parser.add_argument(
        "--model", metavar="DIR", help="directory of the model, such as compressed_models/NAME"
    )
    parser.add_argument(
        "--input", metavar="FILE", help="labeled file, in any format that main.py reads"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="also write everything as JSON to FILE, whose name must end in .json",
    )
    parser.add_argument(
        "--text_column",
        metavar="NAME",
        help="column that contains the texts (default: the column that the model was trained on, "
        "else detected)",
    )
    parser.add_argument(
        "--label_columns",
        metavar="NAME",
        nargs="+",
        help="column of the labels; multi-label: the 0/1 columns, called as the labels (default: "
        "those that the model was trained on, else the only column of labels of the model)",
    )
    parser.add_argument(
        "--engine",
        metavar="NAME",
        default="auto",
        help="auto, torch, onnx, openvino or a graph such as onnx/model_q4.onnx (default: auto, "
        "the fastest here)",
    )
    parser.add_argument(
        "--threads",
        metavar="INT",
        help="threads of the engine (default: one or all cores, whichever is faster)",
    )
    parser.add_argument(
        "--batch", metavar="INT", default="32", help="maximum rows per batch (default: 32)"
    )
    parser.add_argument(
        "--no_header",
        action="store_true",
        help="the input is CSV or TSV without a header; its columns are called column_1, ...",
    )
    parser.add_argument(
        "--max_input_gb",
        metavar="FLOAT",
        default=str(MAX_INPUT_GB),
        help="largest content of a compressed or Parquet input, in gigabytes after decompression "
        f"(default: {MAX_INPUT_GB:g})",
    )
    parser.add_argument(
        "--no_examples", action="store_true", help="leave out the texts of the worst errors"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked without loading the model; UserError has a line per error."""
    options = build_parser().parse_args(argv)
    errors = ErrorCollector()
    for name in ("batch", "max_input_gb"):
        with errors:
            setattr(options, name, convert(name, getattr(options, name)))
    if options.threads is not None:
        with errors:
            options.threads = convert_threads(options.threads)
    for name in ("model", "input"):
        if not getattr(options, name):
            errors.lines.append(f"--{name} is required")
    errors.lines += file_errors("--input", options.input)
    if options.output is not None:
        errors.lines += output_errors(options)
    errors.raise_if_any()
    return options


def convert_threads(text: str) -> int:
    """A number of threads; UserError if it is none."""
    if text.isdecimal() and len(text) < 10 and POSITIVE.is_met(int(text)):
        return int(text)
    raise UserError(f"--threads is {text}, but must be a whole number of at least 1")


def output_errors(options: argparse.Namespace) -> list[str]:
    """Why the JSON file cannot be written."""
    output = Path(options.output)
    if output.suffix != ".json":
        return [f"--output is {output}, but must end in .json"]
    if output.is_dir():
        return [f"--output is {output}, but that is a directory"]
    if options.input and output.resolve() == Path(options.input).resolve():
        return [f"--output is {output}, but must not be the input"]
    if output.exists() and not options.overwrite:
        return [f"--output is {output}, but that file exists; --overwrite replaces it"]
    return directory_errors("--output", output, output.parent)


def read_rows(options: argparse.Namespace, task: Task) -> LabeledRows:
    """The labeled rows of the input."""
    record = read_stage_record(Path(options.model))
    trained_labels = record.get("label_columns")
    names = ColumnNames(
        options.text_column,
        tuple(options.label_columns) if options.label_columns else None,
        record.get("text_column"),
        tuple(trained_labels) if trained_labels else None,
        dict(split_label_name(pair) for pair in record.get("label_names") or ()),
        record.get("label_separator"),
    )
    reading = ReadOptions(not options.no_header, int(options.max_input_gb * BYTES_PER_GB))
    return read_labeled_rows(options.input, task, names, reading)


def predict(classifier: Classifier, texts: list[str], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Decisions as class ids [rows] or 0/1 [rows, labels], and probabilities [rows, labels]."""
    names: list[list[str]] = []
    probabilities = []
    with tqdm(total=len(texts), desc="evaluate", leave=False, disable=None) as bar:
        for start in range(0, len(texts), CALL_TEXTS):
            window = texts[start : start + CALL_TEXTS]
            scores = classifier.score(window, batch)
            names += scores.labels
            probabilities.append(scores.probabilities)
            bar.update(len(window))
    decisions = decided(names, Task(classifier.labels, classifier.multi_label))
    return decisions, np.concatenate(probabilities)


def decided(names: list[list[str]], task: Task) -> np.ndarray:
    """Predicted names of each row as class ids [rows], or 0/1 [rows, labels]."""
    if not task.multi_label:
        return np.array([task.labels.index(name) for (name,) in names])
    decisions = np.zeros((len(names), len(task.labels)), dtype=int)
    for row, labels in enumerate(names):
        for label in labels:
            decisions[row, task.labels.index(label)] = 1
    return decisions


def seen_in_training_note(options: argparse.Namespace) -> list[str]:
    """A note if the input is the file that the model was made from."""
    try:
        from reporting.results import read_results

        trained_on = read_results(options.model)["config"]["dataset_path"]
    except (UserError, KeyError, TypeError):
        return []
    if Path(str(trained_on)).name != Path(options.input).name:
        return []
    return [
        f"the model was made from a file with this name, {trained_on}: if it is the same, most "
        "rows were used for training and these figures are too high"
    ]


def with_places(
    errors: list[dict[str, Any]], rows: LabeledRows, *, with_texts: bool
) -> list[dict[str, Any]]:
    """The worst errors with the number of each row in the file and, if wanted, its text."""
    placed = []
    for error in errors:
        place = {"unit": rows.unit, "number": rows.numbers[error["row"]]}
        if with_texts:
            place["text"] = rows.texts[error["row"]]
        facts = {name: value for name, value in error.items() if name != "row"}
        placed.append(place | facts)
    return placed


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Read the file, label it and measure; the document of `--output`."""
    model_dir = Path(options.model)
    servable_formats(model_dir, options.engine)
    labels, multi_label = read_labels(model_dir)
    task = Task(labels, multi_label)
    rows = read_rows(options, task)
    from reporting.file_quality import Predictions, file_quality  # loads scikit-learn

    classifier = load(model_dir, options.engine, options.threads)
    decisions, probabilities = predict(classifier, rows.texts, options.batch)
    quality = file_quality(Predictions(task, rows.labels, decisions, probabilities))
    quality["notes"] += seen_in_training_note(options)
    quality["errors"] = with_places(quality["errors"], rows, with_texts=not options.no_examples)
    about = {
        "model": options.model,
        "format": classifier.format_name,
        "threads": classifier.threads,
        "input": options.input,
        "dropped_rows": rows.dropped,
    }
    return about | quality


def run(argv: list[str] | None, context: CommandContext) -> int:
    """Print the quality of a model on a labeled file, and write it as JSON if asked for."""
    options = parse_options(argv)
    if options.output is not None:
        context.output_dir = str(Path(options.output).parent)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if options.threads == 1 else "true")
    start_logging()
    document = evaluate(options)
    if options.output is not None:
        write_json(Path(options.output), document)
    print(quality_text(document))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command("evaluate.py", run, argv)


if __name__ == "__main__":
    sys.exit(main())
