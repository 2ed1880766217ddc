"""Label the rows of a file in bounded memory: windows of rows, progress on disk, resumption.

Rows keep their order. A killed run is resumed by the same call, and the output is byte-identical to
that of an uninterrupted run.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from corpus.prediction_files import PredictionColumns, Writer, as_text, finish_output
from corpus.row_formats import Row, RowFile, row_groups
from engines.classifier import BATCH_TOKENS, Classifier
from runtime.command_line import is_utf8
from runtime.files import write_json

log = logging.getLogger(__name__)

WINDOW_ROWS = 4096  # a window ends at this number of rows or of characters, whichever comes first
WINDOW_CHARS = 2**24

HEAD_BYTES = 2**16  # of an input; their hash identifies it, with its size and time

MAX_REPORTED = 20  # rows with errors that are logged one by one

SCORE_DIGITS = 6  # decimals of a probability in an output


@dataclass(frozen=True)
class Job:
    """A model, the rows to label with it, and how the output is written."""

    classifier: Classifier
    file: RowFile
    text_column: str
    columns: PredictionColumns
    writer: Writer
    batch: int


@dataclass(frozen=True)
class Progress:
    """Rows read, bytes written, rows labeled, and rows with errors."""

    rows: int = 0
    written_bytes: int = 0
    scored: int = 0
    bad: int = 0


class Summary(NamedTuple):
    """The progress at the end; rows that this process labeled, its seconds, and those of
    tokenization."""

    progress: Progress
    rows: int
    seconds: float
    tokenize_s: float


class WindowResult(NamedTuple):
    """The output of a window of rows."""

    content: bytes
    scored: int
    tokenize_s: float


def row_windows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in groups of WINDOW_ROWS, fewer if they are long; only one group is read ahead."""
    return row_groups(rows, WINDOW_ROWS, WINDOW_CHARS)


def text_error(value: Any) -> str:
    """Why `value` cannot be labeled, worded to follow `line 7 `; empty if it can."""
    if isinstance(value, (list, tuple, dict)):
        return "has a list or an object as its text"
    text = as_text(value)
    if text is None:
        return "has no text"
    if not is_utf8(text):
        return "has a text that is not valid UTF-8"
    return "" if text.strip() else "has a blank text"


def check_row(row: Row, job: Job) -> Row:
    """The row with an error if it cannot be labeled, without values if it cannot be written.

    A key that collides with an added column is possible only in JSON Lines on stdin, whose keys are
    not known in advance.
    """
    if row.values is None:
        return row
    for name in job.columns.names:
        if name in row.values:
            return row._replace(values=None, error=f"has the key {name}, which earlier rows lack")
    return row._replace(error=text_error(row.values.get(job.text_column)))


class ErrorLog:
    """Logs the first MAX_REPORTED rows with errors and counts the others."""

    def __init__(self, unit: str):
        self.unit = unit
        self.count = 0

    def report(self, row: Row) -> None:
        """Log a row with an error."""
        if self.count < MAX_REPORTED:
            ending = "; the row is not in the output" if row.values is None else ""
            log.warning("%s %d %s%s", self.unit, row.number, row.error, ending)
        elif self.count == MAX_REPORTED:
            log.warning("further rows with errors are only counted")
        self.count += 1


def predictions(job: Job, texts: list[str]) -> tuple[list[list[Any]], float]:
    """The values of the added columns for each text, and the seconds of tokenization."""
    if not texts:
        return [], 0.0
    scores = job.classifier.score(texts, job.batch)
    rows = []
    for labels, probabilities in zip(scores.labels, scores.probabilities.tolist(), strict=True):
        rounded = [round(probability, SCORE_DIGITS) for probability in probabilities]
        values: list[Any] = [labels if job.classifier.multi_label else labels[0], max(rounded)]
        if job.columns.scores:
            values += rounded
        rows.append(values)
    return rows, scores.tokenize_s


def label_window(job: Job, window: list[Row], errors: ErrorLog) -> WindowResult:
    """Label a window. Rows that cannot be parsed are left out, blank texts get no prediction."""
    checked = [check_row(row, job) for row in window]
    texts = []
    for row in checked:
        if row.error:
            errors.report(row)
        else:
            texts.append(as_text(row.values[job.text_column]))
    values, tokenize_s = predictions(job, texts)
    remaining = iter(values)
    no_prediction = dict.fromkeys(job.columns.names)
    rows = []
    for row in checked:
        added = no_prediction
        if not row.error:
            added = dict(zip(job.columns.names, next(remaining), strict=True))
        if row.values is not None:
            rows.append(row.values | added)
    return WindowResult(job.writer.encode(rows), len(texts), tokenize_s)


def label_rows(
    job: Job, out: BinaryIO, progress: Progress, save: Callable[[Progress], None] | None = None
) -> Summary:
    """Label the rows after `progress` and append them to `out`; `save` is called per window."""
    start = time.perf_counter()
    tokenize_s = 0.0
    errors = ErrorLog(job.file.unit)
    rows_before = progress.scored
    if not progress.written_bytes:
        header = job.writer.header()
        out.write(header)
        out.flush()
        progress = Progress(written_bytes=len(header))
    with tqdm(
        total=job.file.total, unit_scale=True, desc="label", leave=False, disable=None
    ) as bar:
        for window in row_windows(islice(job.file.rows, progress.rows, None)):
            result = label_window(job, window, errors)
            out.write(result.content)
            out.flush()
            tokenize_s += result.tokenize_s
            progress = Progress(
                rows=progress.rows + len(window),
                written_bytes=progress.written_bytes + len(result.content),
                scored=progress.scored + result.scored,
                bad=progress.bad + len(window) - result.scored,
            )
            if save:
                save(progress)
            rows_per_s = (progress.scored - rows_before) / (time.perf_counter() - start)
            bar.set_postfix_str(f"{rows_per_s:.0f} rows/s", refresh=False)
            position = job.file.position() if job.file.position else progress.rows
            bar.update(position - bar.n)
    rows = progress.scored - rows_before
    return Summary(progress, rows, time.perf_counter() - start, tokenize_s)


def job_identity(job: Job, path: Path, output_format: str, versions: dict[str, str]) -> dict:
    """Everything that determines an output, as JSON values."""
    status = path.stat()
    with path.open("rb") as file:
        head = sha256(file.read(HEAD_BYTES)).hexdigest()
    classifier = job.classifier
    return {
        "input": [str(path.resolve()), status.st_size, status.st_mtime_ns, head],
        "model": [
            classifier.fingerprint,
            classifier.format_name,
            classifier.threads,
            list(classifier.labels),
        ],
        "columns": [job.text_column, *job.file.columns, *job.columns.names],
        "layout": [output_format, job.file.unit, job.file.delimiter],
        "batches": [job.batch, BATCH_TOKENS, WINDOW_ROWS, WINDOW_CHARS],
        "versions": versions,
    }


def partial_path(output: Path) -> Path:
    """The file that an output is written to until it is complete."""
    return output.with_name(f"{output.name}.partial")


def progress_path(output: Path) -> Path:
    """The file that records the progress of a partial output."""
    return output.with_name(f"{output.name}.partial.json")


def read_progress(output: Path, identity: dict) -> Progress:
    """The progress of an interrupted run with the same identity; else that of a new run."""
    partial = partial_path(output)
    try:
        record = json.loads(progress_path(output).read_text(encoding="utf-8"))
        progress = Progress(**record["progress"])
        is_same = record["identity"] == identity
        is_complete = partial.stat().st_size >= progress.written_bytes
    except (OSError, ValueError, KeyError, TypeError):
        return Progress()
    if is_same and is_complete:
        log.info("resuming %s after %s rows", partial, f"{progress.rows:,}")
        return progress
    log.info("%s is from another input, model or option; starting again", partial)
    return Progress()


def label_to_file(
    job: Job, output: Path, output_format: str, codec: str | None, identity: dict | None
) -> Summary:
    """Label to `OUTPUT.partial`, which becomes the output when complete.

    With an `identity`, an interrupted run of the same identity is resumed.
    """
    progress = Progress()
    if identity:
        progress = read_progress(output, identity)
    if not progress.written_bytes:
        progress_path(output).unlink(missing_ok=True)
    with partial_path(output).open("r+b" if progress.written_bytes else "wb") as file:
        file.truncate(progress.written_bytes)
        file.seek(progress.written_bytes)

        def save(progress: Progress) -> None:
            os.fsync(file.fileno())
            if identity:
                record = {"identity": identity, "progress": asdict(progress)}
                write_json(progress_path(output), record)

        summary = label_rows(job, file, progress, save)
    finish_output(partial_path(output), output, output_format, codec)
    progress_path(output).unlink(missing_ok=True)
    return summary
