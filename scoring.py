"""Texts to labels, and files window by window: rows stay in order, memory is bounded, a killed run goes on."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from engines import Engine, decide, probabilities
from layouts import READERS, WRITERS, Lines, Row, Table, result_columns

log = logging.getLogger(__name__)

WINDOW_ROWS, WINDOW_BYTES = 4096, 2**24  # a window ends at whichever comes first
BATCH_TOKENS = 4096  # of a batch, padding included
HEAD_BYTES = 2**16  # of an input, whose hash says with size and time whether it is still the same
MOST_REPORTED = 20


class Scores(NamedTuple):
    """What a model says of some texts."""

    labels: list[list[str]]  # of each text those that hold: one, or any number where labels overlap
    probabilities: np.ndarray  # [texts, labels]
    tokenize_s: float


@dataclass(frozen=True)
class Classifier:
    """A loaded form and the names of its labels; called with texts it gives `label` and `scores` of each."""

    engine: Engine
    labels: tuple[str, ...]
    multi_label: bool
    form: str = ""
    threads: int = 1
    fingerprint: str = ""  # changes with any file that the form is read from

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """One `{"label": "1", "scores": {"0": 0.1, "1": 0.9}}` a text; `label` is a list where labels overlap."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be a list of strings")
        answers = []
        for start in range(0, len(texts), WINDOW_ROWS):
            scores = self.score(texts[start : start + WINDOW_ROWS])
            for held, row in zip(scores.labels, scores.probabilities.tolist(), strict=True):
                label = held if self.multi_label else held[0]
                answers.append({"label": label, "scores": dict(zip(self.labels, row, strict=True))})
        return answers

    def score(self, texts: list[str], batch: int = 32) -> Scores:
        """Labels and probabilities in the order of `texts`, computed in batches of similar length."""
        start = time.perf_counter()
        tokens = self.engine.tokenize(texts)
        tokenize_s = time.perf_counter() - start
        batches = token_batches([len(row) for row in tokens], batch)
        found = [self.engine.forward(self.engine.collate([tokens[row] for row in rows])) for rows in batches]
        logits = np.concatenate(found)[np.argsort(np.concatenate(batches))]
        chosen = decide(logits, self.multi_label)
        labels = [[name for name, holds in zip(self.labels, row, strict=True) if holds] if self.multi_label
                  else [self.labels[row]] for row in chosen]  # fmt: skip
        return Scores(labels, probabilities(logits, self.multi_label), tokenize_s)


def token_batches(lengths: Sequence[int], most_rows: int) -> list[list[int]]:
    """Row numbers, the longest rows first, in batches of at most BATCH_TOKENS padded tokens and `most_rows` rows."""
    order, batches, start = sorted(range(len(lengths)), key=lambda row: -lengths[row]), [], 0
    while start < len(order):
        rows = max(1, min(most_rows, BATCH_TOKENS // max(1, lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def windows(rows: Iterable[Row]) -> Iterator[list[Row]]:
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
            values = [held if classifier.multi_label else held[0], *(round(number, 6) for number in numbers)]
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


def complain(row: Row, reported: int) -> None:
    """Say what is wrong with a row, as long as few were reported."""
    if reported < MOST_REPORTED:
        log.warning("line %d: %s%s", row.line, row.fault, "" if row.kept else "; left out of the output")
    elif reported == MOST_REPORTED:
        log.warning("further bad rows are only counted")


def score_lines(
    classifier: Classifier, table: Table, lines: Lines, out: BinaryIO, batch: int, progress: Progress,
    save: Callable[[Progress], None], input_bytes: int | None = None,
) -> Summary:  # fmt: skip
    """Score all that `lines` still holds; `save` is told of every window that is written."""
    start, tokenize_s, rows, reported, written = time.perf_counter(), 0.0, 0, 0, progress.written
    if not written:
        written = out.write(table.heading)
        out.flush()
    with tqdm(total=input_bytes, initial=progress.offset, unit="B", unit_scale=True, desc="score", leave=False,
              disable=None) as bar:  # fmt: skip
        for window in windows(READERS[table.format](lines, table)):
            for row in window:
                if row.fault:
                    complain(row, reported)
                    reported += 1
            scored, size, seconds = write_window(classifier, table, window, out, batch)
            rows, tokenize_s, written = rows + scored, tokenize_s + seconds, written + size
            progress = Progress(lines.offset, lines.number, written, progress.scored + scored,
                                progress.bad + len(window) - scored)  # fmt: skip
            save(progress)
            bar.set_postfix_str(f"{rows / (time.perf_counter() - start):.0f} rows/s", refresh=False)
            bar.update(lines.offset - bar.n)
    return Summary(progress, rows, time.perf_counter() - start, tokenize_s)


def identity_of(path: Path, classifier: Classifier, table: Table, batch: int, versions: dict[str, str]) -> dict:
    """All that an output depends on, as plain JSON values."""
    about = path.stat()
    with path.open("rb") as file:
        head = sha256(file.read(HEAD_BYTES)).hexdigest()
    return {"input": [str(path.resolve()), about.st_size, about.st_mtime_ns, head],
            "model": [classifier.fingerprint, classifier.form, classifier.threads, list(classifier.labels)],
            "layout": [table.format, table.text_column, table.delimiter, batch, WINDOW_ROWS, WINDOW_BYTES,
                       BATCH_TOKENS], "versions": versions}  # fmt: skip


def partial_of(output: Path) -> Path:
    """Where an output is written until it is whole."""
    return output.with_name(f"{output.name}.partial")


def sidecar_of(output: Path) -> Path:
    """Where it is kept how far a partial output has come."""
    return output.with_name(f"{output.name}.partial.json")


def kept_progress(output: Path, identity: dict) -> Progress:
    """Where a killed scoring of the same input by the same model and options stands; the start, where none is."""
    partial, sidecar = partial_of(output), sidecar_of(output)
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
        progress = Progress(**record["progress"])
        if record["identity"] == identity and partial.stat().st_size >= progress.written:
            log.info("%s holds %d scored rows; going on from line %d", partial, progress.scored, progress.line)
            return progress
        log.info("%s is of another input, model or options; starting anew", partial)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Progress()


def write_sidecar(output: Path, identity: dict, progress: Progress) -> None:
    """Keep how far the partial output has come; the file is whole or as it was."""
    sidecar = sidecar_of(output)
    fresh = sidecar.with_name(f"{sidecar.name}.new")
    fresh.write_text(json.dumps({"identity": identity, "progress": asdict(progress)}), encoding="utf-8")
    fresh.replace(sidecar)


def score_file(
    classifier: Classifier, table: Table, lines: Lines, output: Path, batch: int, identity: dict | None = None
) -> Summary:
    """Score to `OUTPUT.partial`, which is renamed when it is whole; with an `identity` it goes on where a killed
    scoring of the same identity stood, and the input must be a file."""
    progress = kept_progress(output, identity) if identity else Progress()
    if progress.offset:
        lines.stream.seek(progress.offset)
        lines = Lines(lines.stream, progress.offset, progress.line)
    else:
        sidecar_of(output).unlink(missing_ok=True)
    with partial_of(output).open("r+b" if progress.offset else "wb") as file:
        file.truncate(progress.written)
        file.seek(progress.written)

        def save(progress: Progress) -> None:
            os.fsync(file.fileno())
            if identity:
                write_sidecar(output, identity, progress)

        size = identity["input"][1] if identity else None
        summary = score_lines(classifier, table, lines, file, batch, progress, save, size)
    partial_of(output).replace(output)
    sidecar_of(output).unlink(missing_ok=True)
    return summary
