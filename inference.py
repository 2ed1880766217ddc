"""Label texts with a finished model: `load(DIR)(texts)` in Python, `python inference.py --model DIR ...` in a shell.

A form or number of threads that is not asked for is the fastest on this machine by measurement. Files that changed
since the model was made are refused, and nothing is ever unpickled.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from compression_config import POSITIVE, UserError
from corpus.row_formats import (
    READERS,
    SUFFIXES,
    TABLES,
    WRITERS,
    Lines,
    Row,
    Table,
    result_columns,
    text_fault,
)
from engines.autoselect import engine_versions
from engines.classifier import (
    BATCH_TOKENS,
    WINDOW_BYTES,
    WINDOW_ROWS,
    Classifier,
    Scores,
    load,
    read_labels,
    read_stage_record,
    servable_formats,
)
from runtime.command_line import ArgumentParser, file_errors
from runtime.exit_codes import is_disk_full
from runtime.logs import start_logging

log = logging.getLogger(__name__)

HEAD_BYTES = 2**16  # of an input, whose hash says with size and time whether it is still the same

MAX_REPORTED = 20


def row_windows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in groups of WINDOW_ROWS, fewer where they are long; no more than one group is ever read ahead."""
    window: list[Row] = []
    size = 0
    for row in rows:
        window.append(row)
        size += len(row.raw)
        if len(window) == WINDOW_ROWS or size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def write_window(
    classifier: Classifier, table: Table, window: list[Row], out: BinaryIO, batch: int
) -> tuple[int, int, float]:
    """Score a window and write it; the rows scored, the bytes written and the seconds of tokenization."""
    sound = [row.text for row in window if not row.fault]
    scores = classifier.score(sound, batch) if sound else Scores([], np.empty((0, 0)), 0.0)
    found = zip(scores.labels, scores.probabilities.tolist(), strict=True)
    columns, written = result_columns(classifier.labels), []
    for row in window:
        added = dict.fromkeys(columns)
        if not row.fault:
            held, numbers = next(found)
            values = [
                held if classifier.multi_label else held[0],
                *(round(number, 6) for number in numbers),
            ]
            added = dict(zip(columns, values, strict=True))
        if row.kept:
            written.append(WRITERS[table.format](row, table, added))
    content = b"".join(written)
    out.write(content)
    out.flush()
    return len(sound), len(content), scores.tokenize_s


@dataclass(frozen=True)
class Progress:
    """How far a scoring has come: the next byte and line of the input, the bytes of the output, the rows so far."""

    offset: int = 0
    line: int = 1
    written: int = 0
    scored: int = 0
    bad: int = 0


class Summary(NamedTuple):
    """What a scoring did: its progress in the end, rows scored by this process, and its seconds."""

    progress: Progress
    rows: int
    seconds: float
    tokenize_s: float


def report_bad_row(row: Row, reported: int) -> None:
    """Say what is wrong with a row, as long as few were reported."""
    if reported < MAX_REPORTED:
        log.warning(
            "line %d: %s%s", row.line, row.fault, "" if row.kept else "; left out of the output"
        )
    elif reported == MAX_REPORTED:
        log.warning("further bad rows are only counted")


def score_lines(
    classifier: Classifier,
    table: Table,
    lines: Lines,
    out: BinaryIO,
    batch: int,
    progress: Progress,
    save: Callable[[Progress], None],
    input_bytes: int | None = None,
) -> Summary:
    """Score all that `lines` still holds; `save` is told of every window that is written."""
    start, tokenize_s, rows, reported, written = time.perf_counter(), 0.0, 0, 0, progress.written
    if not written:
        written = out.write(table.heading)
        out.flush()
    with tqdm(
        total=input_bytes,
        initial=progress.offset,
        unit="B",
        unit_scale=True,
        desc="score",
        leave=False,
        disable=None,
    ) as bar:
        for window in row_windows(READERS[table.format](lines, table)):
            for row in window:
                if row.fault:
                    report_bad_row(row, reported)
                    reported += 1
            scored, size, seconds = write_window(classifier, table, window, out, batch)
            rows, tokenize_s, written = rows + scored, tokenize_s + seconds, written + size
            progress = Progress(
                lines.offset,
                lines.number,
                written,
                progress.scored + scored,
                progress.bad + len(window) - scored,
            )
            save(progress)
            bar.set_postfix_str(f"{rows / (time.perf_counter() - start):.0f} rows/s", refresh=False)
            bar.update(lines.offset - bar.n)
    return Summary(progress, rows, time.perf_counter() - start, tokenize_s)


def scoring_identity(
    path: Path, classifier: Classifier, table: Table, batch: int, versions: dict[str, str]
) -> dict:
    """All that an output depends on, as plain JSON values."""
    about = path.stat()
    with path.open("rb") as file:
        head = sha256(file.read(HEAD_BYTES)).hexdigest()
    return {
        "input": [str(path.resolve()), about.st_size, about.st_mtime_ns, head],
        "model": [
            classifier.fingerprint,
            classifier.form,
            classifier.threads,
            list(classifier.labels),
        ],
        "layout": [
            table.format,
            table.text_column,
            table.delimiter,
            batch,
            WINDOW_ROWS,
            WINDOW_BYTES,
            BATCH_TOKENS,
        ],
        "versions": versions,
    }


def partial_output(output: Path) -> Path:
    """Where an output is written until it is whole."""
    return output.with_name(f"{output.name}.partial")


def progress_path(output: Path) -> Path:
    """Where it is kept how far a partial output has come."""
    return output.with_name(f"{output.name}.partial.json")


def read_progress(output: Path, identity: dict) -> Progress:
    """Where a killed scoring of the same input by the same model and options stands; the start, where none is."""
    partial, sidecar = partial_output(output), progress_path(output)
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
        progress = Progress(**record["progress"])
        if record["identity"] == identity and partial.stat().st_size >= progress.written:
            log.info(
                "%s holds %d scored rows; going on from line %d",
                partial,
                progress.scored,
                progress.line,
            )
            return progress
        log.info("%s is of another input, model or options; starting anew", partial)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Progress()


def write_progress(output: Path, identity: dict, progress: Progress) -> None:
    """Keep how far the partial output has come; the file is whole or as it was."""
    sidecar = progress_path(output)
    fresh = sidecar.with_name(f"{sidecar.name}.new")
    fresh.write_text(
        json.dumps({"identity": identity, "progress": asdict(progress)}), encoding="utf-8"
    )
    fresh.replace(sidecar)


def score_file(
    classifier: Classifier,
    table: Table,
    lines: Lines,
    output: Path,
    batch: int,
    identity: dict | None = None,
) -> Summary:
    """Score to `OUTPUT.partial`, which is renamed when it is whole; with an `identity` it goes on where a killed
    scoring of the same identity stood, and the input must be a file."""
    progress = read_progress(output, identity) if identity else Progress()
    if progress.offset:
        lines.stream.seek(progress.offset)
        lines = Lines(lines.stream, progress.offset, progress.line)
    else:
        progress_path(output).unlink(missing_ok=True)
    with partial_output(output).open("r+b" if progress.offset else "wb") as file:
        file.truncate(progress.written)
        file.seek(progress.written)

        def save(progress: Progress) -> None:
            os.fsync(file.fileno())
            if identity:
                write_progress(output, identity, progress)

        size = identity["input"][1] if identity else None
        summary = score_lines(classifier, table, lines, file, batch, progress, save, size)
    partial_output(output).replace(output)
    progress_path(output).unlink(missing_ok=True)
    return summary


GO_WITH_INPUT = {
    "output": "-",
    "text_column": None,
    "format": None,
    "overwrite": False,
}  # option -> its default


def build_parser() -> ArgumentParser:
    """All flags, as text; `parse_options` converts and checks them."""
    parser = ArgumentParser(
        prog="inference.py",
        allow_abbrev=False,
        usage="inference.py --model DIR (TEXT ... | --input FILE [options])",
        description="Label texts, or the rows of a file, with a finished model.",
    )
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="texts to label; a line each on stdout"
    )
    parser.add_argument(
        "--model", metavar="DIR", help="directory of the model, such as compressed_models/NAME"
    )
    parser.add_argument("--input", metavar="FILE", help="file of texts; - is stdin")
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="-",
        help="file of the results; - is stdout (default: -)",
    )
    parser.add_argument(
        "--text_column",
        metavar="NAME",
        help="column of the texts (default: what the model learnt "
        "from, the only one, or the one called text, comment, comments, tweet, content or "
        "sentence)",
    )
    parser.add_argument(
        "--engine",
        metavar="NAME",
        default="auto",
        help="auto, torch, onnx, openvino or a graph such "
        "as onnx/model_q4.onnx (default: auto, the fastest here)",
    )
    parser.add_argument(
        "--threads",
        metavar="INT",
        help="threads of the engine (default: one or all cores, whichever is faster)",
    )
    parser.add_argument(
        "--batch", metavar="INT", default="32", help="most rows in a batch (default: 32)"
    )
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="csv, tsv, jsonl or txt (default: by the suffix; stdin: txt)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    return parser


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as far as can be without the model; UserError holds a line for each error."""
    options, errors = build_parser().parse_intermixed_args(argv), []
    for name in ("threads", "batch"):
        value = getattr(options, name)
        if value is not None and not (
            value.isdecimal() and len(value) < 10 and POSITIVE.holds(int(value))
        ):
            errors.append(f"--{name} is {value}, but must be a whole number of at least 1")
        elif value is not None:
            setattr(options, name, int(value))
    if not options.model:
        errors.append("--model is not given, but must be the directory of a model")
    if options.input is None:
        errors += text_errors(options)
    else:
        errors += input_errors(options) + output_errors(options)
    if errors:
        raise UserError(*errors)
    return options


def text_errors(options: argparse.Namespace) -> list[str]:
    """Why the texts of the command line cannot be labelled."""
    errors = [
        f"--{name} is given, but goes with --input"
        for name, default in GO_WITH_INPUT.items()
        if getattr(options, name) != default
    ]
    if not options.texts:
        errors.append("--input is not given, but without it there must be texts")
    for text in options.texts:
        if text_fault(text):
            errors.append(f"TEXT is {text!r}, but must be UTF-8 and not blank")
    return errors


def input_errors(options: argparse.Namespace) -> list[str]:
    """Why the input cannot be read; sets `format` where it is not given."""
    quote = "quote a file name that holds blanks"
    errors = [f"TEXT is given, but not together with --input; {quote}"] if options.texts else []
    if options.input != "-":
        errors += file_errors("--input", options.input)
    usual = "txt" if options.input == "-" else SUFFIXES.get(Path(options.input).suffix.lower())
    options.format = options.format or usual
    if options.format is None:
        errors.append(
            f"--input is {options.input}, but must end in {', '.join(SUFFIXES)}, or --format must be given"
        )
    elif options.format not in TABLES:
        errors.append(f"--format is {options.format}, but must be one of {', '.join(TABLES)}")
    return errors


def output_errors(options: argparse.Namespace) -> list[str]:
    """Why the output cannot be written."""
    output, errors = Path(options.output), []
    if options.output == "-":
        return []
    if options.input != "-" and output.resolve() == Path(options.input).resolve():
        errors.append(f"--output is {output}, but must not be the input")
    elif output.is_dir():
        errors.append(f"--output is {output}, but that is a directory")
    elif output.exists() and not options.overwrite:
        errors.append(f"--output is {output}, but that file exists; --overwrite replaces it")
    elif not output.parent.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        errors.append(
            f"--output is {output}, but {output.parent} is no directory that can be written to"
        )
    written = "csv" if options.format == "txt" else options.format
    if SUFFIXES.get(output.suffix.lower(), written) != written and options.format in TABLES:
        errors.append(f"--output is {output}, but {options.format} is written as {written}")
    return errors


def label_texts(options: argparse.Namespace) -> int:
    """Print a line a text: label, scores, text."""
    for text, answer in zip(
        options.texts,
        load(options.model, options.engine, options.threads)(options.texts),
        strict=True,
    ):
        label = (
            answer["label"]
            if isinstance(answer["label"], str)
            else "|".join(answer["label"]) or "-"
        )
        scores = " ".join(f"{name}={score:.3f}" for name, score in answer["scores"].items())
        print(label, scores, " ".join(text.split()), sep="\t", flush=True)
    return 0


def open_input(name: str) -> AbstractContextManager[BinaryIO]:
    """The bytes of a file, or of stdin."""
    return nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb")


def score_input(options: argparse.Namespace) -> Summary:
    """Score the input to the output; nothing is written before the model is loaded and the columns are known."""
    model_dir = Path(options.model)
    servable_formats(model_dir, options.engine)
    with open_input(options.input) as stream:
        lines = Lines(stream)
        labels, _ = read_labels(model_dir)
        learnt = read_stage_record(model_dir).get("text_column")
        table = TABLES[options.format](
            lines, options.format, options.text_column, learnt, labels, options.input
        )
        classifier = load(model_dir, options.engine, options.threads)
        log.info("engine: %s, threads: %d", classifier.form, classifier.threads)
        path = None if options.input == "-" else Path(options.input)
        if options.output == "-":
            size = path.stat().st_size if path else None
            return score_lines(
                classifier,
                table,
                lines,
                sys.stdout.buffer,
                options.batch,
                Progress(),
                lambda _: None,
                size,
            )
        identity = (
            scoring_identity(path, classifier, table, options.batch, engine_versions())
            if path
            else None
        )
        return score_file(classifier, table, lines, Path(options.output), options.batch, identity)


def label_file(options: argparse.Namespace) -> int:
    """Score a file and say what was done; 1 where there were rows and none could be scored."""
    done = score_input(options)
    progress, seconds = done.progress, max(done.seconds, 1e-9)
    earlier = (
        f", {progress.scored - done.rows:,} of them earlier" if progress.scored > done.rows else ""
    )
    log.info(
        "%s rows scored%s, %s bad rows; %.0f texts/s, %.0f %% of the time in tokenization",
        f"{progress.scored:,}",
        earlier,
        f"{progress.bad:,}",
        done.rows / seconds,
        100 * done.tokenize_s / seconds,
    )
    return 1 if progress.bad and not progress.scored else 0


def main(argv: list[str] | None = None) -> int:
    """Label what the command line names; stdout carries the results and nothing else."""
    options = argparse.Namespace(input=None, output="-")
    try:
        options = parse_options(argv)
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if options.threads == 1 else "true")
        start_logging()
        return label_texts(options) if options.input is None else label_file(options)
    except UserError as error:
        return error.print_to_stderr("inference.py")
    except KeyboardInterrupt:
        again = (
            "; the same command goes on from here"
            if "-" not in (options.input or "-", options.output)
            else ""
        )
        print(f"inference.py: stopped{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read stdout has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if options.output == "-" or not is_disk_full(error, str(Path(options.output).parent)):
            raise
        print(
            f"inference.py: error: no space is left in {Path(options.output).parent}; free some space and give the "
            "same command again",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
