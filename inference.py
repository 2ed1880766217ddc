"""Label texts with a finished model.

In Python, `load(DIR)` returns a function from a list of texts to labels and scores. In a shell,
`python inference.py --model DIR ...` labels texts, or the rows of a file. By default, the format
and the number of threads are the fastest on this machine by measurement.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a while
    from runtime.terminal import prepare_terminal

    prepare_terminal("inference.py")

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from compression_config import MAX_INPUT_GB, POSITIVE
from corpus.encodings import BYTES_PER_GB, CODECS, UnreadableFile
from corpus.input_files import (
    DELIMITED,
    FORMATS,
    STDIN,
    STDIN_PATHS,
    ReadOptions,
    find_format,
    is_stream,
    open_rows,
    table_columns,
)
from corpus.prediction_files import (
    LABEL_SEPARATOR,
    STDOUT_FORMATS,
    CsvWriter,
    JsonLinesWriter,
    ParquetWriter,
    PredictionColumns,
    Writer,
    find_output_format,
    prediction_columns,
)
from corpus.row_formats import RowFile
from engines.autoselect import engine_versions
from engines.classifier import load, read_labels, read_stage_record, servable_formats
from engines.file_scoring import (
    Job,
    Progress,
    Summary,
    job_identity,
    label_rows,
    label_to_file,
    text_error,
)
from runtime.command_line import ArgumentParser, directory_errors, file_errors
from runtime.errors import UserError, check_installed, escape_unprintable
from runtime.exit_codes import run_command
from runtime.logs import start_logging
from runtime.terminal import CommandContext

log = logging.getLogger(__name__)

USUAL_TEXT_COLUMNS = ("text", "comment", "comments", "tweet", "content", "sentence")

STDOUT = "-"

INPUT_OPTIONS = {  # options that need --input -> their defaults
    "output": STDOUT,
    "text_column": None,
    "format": None,
    "no_header": False,
    "max_input_gb": str(MAX_INPUT_GB),
    "scores": False,
    "overwrite": False,
    "batch": 32,
}


def build_parser() -> ArgumentParser:
    """All flags, as text; `parse_options` converts and checks them."""
    parser = ArgumentParser(
        prog="inference.py",
        allow_abbrev=False,
        usage="inference.py --model DIR (TEXT ... | --input FILE [options])",
        description="Label texts, or the rows of a file, with a finished model.",
    )
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="texts to label; one line per text on stdout"
    )
    parser.add_argument(
        "--model", metavar="DIR", help="directory of the model, such as compressed_models/NAME"
    )
    parser.add_argument("--input", metavar="FILE", help="file or named pipe of texts; - is stdin")
    parser.add_argument(
        "--output",
        metavar="FILE",
        default=STDOUT,
        help="output file; its suffix sets the format; - is stdout (default: -)",
    )
    parser.add_argument(
        "--text_column",
        metavar="NAME",
        help="column that contains the texts (default: the column that the model was trained on, "
        "the only one, or the one called text, comment, comments, tweet, content or sentence)",
    )
    parser.add_argument(
        "--scores",
        action="store_true",
        help="also write the probability of every label, as score_LABEL",
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
        "--format",
        metavar="NAME",
        help="format of the input: csv, tsv, txt, jsonl or parquet (default: by the suffix; "
        "stdin: txt)",
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
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked without loading the model; UserError has a line per error.

    `format` and `codec` are set to those of the input, `output_format` and `output_codec` to those
    of the output.
    """
    options = build_parser().parse_intermixed_args(argv)
    errors = convert_numbers(options)
    if not options.model:
        errors.append("--model is required: the directory of a finished model")
    if options.input is None:
        errors += text_errors(options)
    else:
        errors += input_errors(options) + output_errors(options)
    if errors:
        raise UserError(*errors)
    return options


def convert_numbers(options: argparse.Namespace) -> list[str]:
    """Convert --threads, --batch and --max_input_gb; an error for each that is not positive."""
    errors = []
    try:
        options.max_bytes = int(float(options.max_input_gb) * BYTES_PER_GB)
    except (ValueError, OverflowError):
        options.max_bytes = 0
    if options.max_bytes <= 0:
        errors.append(f"--max_input_gb is {options.max_input_gb}, but must be a number above 0")
    for name in ("threads", "batch"):
        text = getattr(options, name)
        if text is None:
            continue
        if text.isdecimal() and len(text) < 10 and POSITIVE.is_met(int(text)):
            setattr(options, name, int(text))
        else:
            errors.append(f"--{name} is {text}, but must be a whole number of at least 1")
    return errors


def text_errors(options: argparse.Namespace) -> list[str]:
    """Why the texts of the command line cannot be labeled."""
    errors = []
    for name, default in INPUT_OPTIONS.items():
        if getattr(options, name) != default:
            errors.append(f"--{name} is given, but needs --input")
    if not options.texts:
        errors.append("no texts are given; give texts to label, or --input FILE")
    for text in options.texts:
        if text_error(text):
            errors.append(f"TEXT is {text!r}, but must be UTF-8 and not blank")
    return errors


def package_errors(flag: str, path: str, file_format: str, codec: str | None) -> list[str]:
    """Why a file cannot be read or written: Parquet and compression need pyarrow."""
    packages = ["pyarrow"] if file_format == "parquet" or codec else []
    try:
        check_installed(flag, path, packages)
    except UserError as error:
        return list(error.lines)
    return []


def input_errors(options: argparse.Namespace) -> list[str]:
    """Why the input cannot be read; sets `format`."""
    errors = []
    if options.texts:
        errors.append("texts and --input cannot be combined; quote a file name that has spaces")
    if options.input in STDIN_PATHS:
        options.input = STDIN
    options.is_stream = is_stream(options.input)
    if not options.is_stream:
        errors += file_errors("--input", options.input)
    formats = dict.fromkeys(FORMATS.values())
    options.format_is_by_suffix = options.format is None and options.input != STDIN
    if options.format is None:
        options.format = "txt"
        if options.input != STDIN:
            try:
                options.format, _ = find_format(Path(options.input))
            except UnreadableFile as error:
                errors.append(f"--input is {options.input}, but {error}; or give --format")
    elif options.format not in formats:
        errors.append(f"--format is {options.format}, but must be one of {', '.join(formats)}")
    codec = None
    if options.input != STDIN:
        codec = CODECS.get(Path(options.input).suffix.lower())
    if not options.is_stream:
        errors += package_errors("--input", options.input, options.format, codec)
    elif options.format == "parquet" or codec:
        kind = "Parquet" if options.format == "parquet" else "compressed"
        errors.append(
            f"--input is {options.input} and {kind}, but stdin or a pipe must be plain text; give "
            "the file as --input"
        )
    if options.no_header and options.format not in DELIMITED:
        errors.append(f"--no_header is given, but the format is {options.format}, not csv or tsv")
    if options.format == "txt" and options.text_column is not None:
        errors.append(
            f"--text_column is {options.text_column}, but must not be given for txt, which has no "
            "columns"
        )
    return errors


def output_errors(options: argparse.Namespace) -> list[str]:
    """Why the output cannot be written; sets `output_format` and `output_codec`."""
    options.output_format = STDOUT_FORMATS.get(options.format)
    options.output_codec = None
    if options.output == STDOUT:
        return []
    output = Path(options.output)
    try:
        options.output_format, options.output_codec = find_output_format(output)
    except UserError as error:
        return list(error.lines)
    if options.is_stream and options.format == "jsonl" and options.output_format != "jsonl":
        return [
            f"--output is {output}, but must end in .jsonl: the columns of JSON Lines on stdin or "
            "in a pipe are not known in advance"
        ]
    if options.input != STDIN and output.resolve() == Path(options.input).resolve():
        return [f"--output is {output}, but must not be the input"]
    if output.is_dir():
        return [f"--output is {output}, but that is a directory"]
    if output.exists() and not options.overwrite:
        return [f"--output is {output}, but that file exists; --overwrite replaces it"]
    return directory_errors("--output", output, output.parent) + package_errors(
        "--output", options.output, options.output_format, options.output_codec
    )


def find_text_column(columns: Sequence[str], requested: str | None, trained_on: str | None) -> str:
    """The column of the texts: the requested one, else the one that the model was trained on, else
    the only one or the only one with a usual name; UserError if that is ambiguous."""
    listed = ", ".join(columns)
    if requested is not None:
        if requested not in columns:
            raise UserError(
                f"--text_column is {requested}, but must be one of the columns: {listed}"
            )
        return requested
    if trained_on in columns:
        return trained_on
    candidates = list(columns)
    if len(columns) > 1:
        candidates = [name for name in columns if name.casefold() in USUAL_TEXT_COLUMNS]
    if len(candidates) != 1:
        raise UserError(f"--text_column is not given, but must name one of the columns: {listed}")
    return candidates[0]


def make_writer(
    input_format: str,
    output_format: str,
    file: RowFile,
    added: PredictionColumns,
    *,
    multi_label: bool,
) -> Writer:
    """The writer of the output's format. A CSV keeps the delimiter of a CSV input."""
    if output_format == "jsonl":
        return JsonLinesWriter()
    if output_format == "parquet":
        return ParquetWriter(file.columns, added, file.schema, multi_label=multi_label)
    delimiter = "\t" if output_format == "tsv" else ","
    if input_format == output_format == "csv":
        delimiter = file.delimiter
    return CsvWriter([*file.columns, *added.names], added.label, delimiter)


def plan_job(options: argparse.Namespace, file: RowFile) -> Job:
    """Choose the columns, then load the model: a wrong column is reported before the slow load."""
    model_dir = Path(options.model)
    labels, multi_label = read_labels(model_dir)
    if not file.columns:
        raise UserError(f"--input is {options.input}, but must have JSON objects with keys")
    trained_on = read_stage_record(model_dir).get("text_column")
    text_column = find_text_column(file.columns, options.text_column, trained_on)
    is_guessed = text_column not in (options.text_column, trained_on)
    if is_guessed and options.format in DELIMITED and not options.no_header:
        log.warning(
            "note: the first line is read as the header, and %r as the column of the texts; give "
            "--no_header if it is a row",
            text_column,
        )
    added = prediction_columns(labels, file.columns, with_scores=options.scores)
    writer = make_writer(
        options.format, options.output_format, file, added, multi_label=multi_label
    )
    classifier = load(model_dir, options.engine, options.threads)
    log.info("engine: %s, threads: %d", classifier.format_name, classifier.threads)
    return Job(classifier, file, text_column, added, writer, options.batch)


def is_table_with(path: str, column: str | None) -> bool:
    """Whether a .txt file is a delimited table with this column, as training reads .txt files."""
    columns = table_columns(path)
    return len(columns) > 1 and column in columns


def run_job(options: argparse.Namespace) -> Summary:
    """Label the rows of the input and write them to the output."""
    model_dir = Path(options.model)
    servable_formats(model_dir, options.engine)
    trained_on = read_stage_record(model_dir).get("text_column")
    may_be_table = options.format_is_by_suffix and options.format == "txt"
    may_be_table = may_be_table and not options.is_stream
    if may_be_table and is_table_with(options.input, trained_on):
        log.info("%s is read as a table: it has the column %r", options.input, trained_on)
        options.format = "csv"
    reading = ReadOptions(not options.no_header, options.max_bytes)
    with open_rows(
        options.input,
        "--input",
        options.format,
        keep_invalid=True,
        find_keys=True,
        options=reading,
    ) as file:
        job = plan_job(options, file)
        if options.output == STDOUT:
            return label_rows(job, sys.stdout.buffer, Progress())
        identity = None
        if not options.is_stream:
            identity = job_identity(
                job, Path(options.input), options.output_format, engine_versions()
            )
        return label_to_file(
            job, Path(options.output), options.output_format, options.output_codec, identity
        )


def label_file(options: argparse.Namespace) -> int:
    """Label a file and log a summary; 1 if there were rows but none could be labeled."""
    summary = run_job(options)
    progress = summary.progress
    seconds = max(summary.seconds, 1e-9)
    before = ""
    if progress.scored > summary.rows:
        before = f", {progress.scored - summary.rows:,} of them before the interruption"
    log.info(
        "%s rows labeled%s, %s rows with errors; %.0f texts/s, %.0f %% of the time in tokenization",
        f"{progress.scored:,}",
        before,
        f"{progress.bad:,}",
        summary.rows / seconds,
        100 * summary.tokenize_s / seconds,
    )
    return 1 if progress.bad and not progress.scored else 0


def label_texts(options: argparse.Namespace) -> int:
    """Print one line per text: label, scores, text."""
    classifier = load(options.model, options.engine, options.threads)
    for text, answer in zip(options.texts, classifier(options.texts), strict=True):
        label = answer["label"]
        if classifier.multi_label:
            label = LABEL_SEPARATOR.join(label) or "-"
        scores = [f"{name}={score:.3f}" for name, score in answer["scores"].items()]
        cells = (label, " ".join(scores), " ".join(text.split()))
        print(*map(escape_unprintable, cells), sep="\t", flush=True)
    return 0


def run(argv: list[str] | None, context: CommandContext) -> int:
    """Label what the command line names; stdout has only the results."""
    options = parse_options(argv)
    if options.output != STDOUT:
        context.output_dir = str(Path(options.output).parent)
        context.can_resume = not options.is_stream
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if options.threads == 1 else "true")
    start_logging()
    return label_texts(options) if options.input is None else label_file(options)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command("inference.py", run, argv)


if __name__ == "__main__":
    sys.exit(main())
