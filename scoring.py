"""Files of texts to files with labels, window by window: rows stay in order, memory is bounded, a killed run goes on.

What was read is written back byte for byte with the results behind it; only lines of plain text become a CSV.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from compression_config import UserError
from engines import Engine, decide, probabilities

log = logging.getLogger(__name__)

SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "txt"}
SEPARATORS = {"csv": ",;\t|", "tsv": "\t"}  # the one that parts a header into most columns, the first among equals
USUAL_NAMES = ("text", "comment", "comments", "tweet", "content", "sentence")
WINDOW_ROWS, WINDOW_BYTES = 4096, 2**24  # a window ends at whichever comes first
BATCH_TOKENS = 4096  # of a batch, padding included
LONGEST_CELL = 2**20  # characters; a quote that is still open then is a stray one
FIRST_OBJECTS = 100  # of a JSON Lines file, whose keys are taken for its columns
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


class Lines:
    """The lines of a byte stream, decoded for a parser (bytes that are no UTF-8 as surrogates); it knows where it
    stands, keeps the bytes of the row that is being read, and takes lines back."""

    def __init__(self, stream: BinaryIO, offset: int = 0, number: int = 1):
        self.stream, self.offset, self.number = stream, offset, number
        self.taken: list[bytes] = []
        self.returned: deque[bytes] = deque()
        self.ended = False

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        raw = self.returned.popleft() if self.returned else self.stream.readline()
        if not raw:
            self.ended = True
            raise StopIteration
        text = raw.removeprefix(codecs.BOM_UTF8) if self.offset == 0 else raw
        self.taken.append(raw)
        self.offset, self.number = self.offset + len(raw), self.number + 1
        return text.decode("utf-8", "surrogateescape")

    def row(self) -> bytes:
        """The bytes taken since the last call."""
        raw, self.taken = b"".join(self.taken), []
        return raw

    def give_back(self, kept: int = 0) -> None:
        """Put back the lines taken since the last row, all but the first `kept`."""
        lines, self.taken = self.taken[kept:], self.taken[:kept]
        self.returned.extendleft(reversed(lines))
        self.offset, self.number = self.offset - sum(map(len, lines)), self.number - len(lines)
        self.ended = False


@dataclass(frozen=True)
class Table:
    """How an input is laid out: its format, where the texts are, and what the output's first line says."""

    format: str
    text_column: str = ""
    columns: tuple[str, ...] = ()
    delimiter: str = ","
    newline: bytes = b"\n"
    heading: bytes = b""  # of the output


class Row(NamedTuple):
    """A row as it was read; one with a fault has no text to score."""

    line: int
    raw: bytes
    text: str
    fault: str
    kept: bool  # whether the row can be written at all


def result_columns(labels: Sequence[str]) -> list[str]:
    """The columns that a scoring adds."""
    return ["label", *(f"probability_{label}" for label in labels)]


def csv_line(cells: Iterable[str], delimiter: str) -> bytes:
    """Cells as a line without its end, quoted where they must be."""
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter, lineterminator="").writerow(cells)
    return line.getvalue().encode("utf-8", "surrogateescape")


def text_fault(text: Any) -> str:
    """Why something is no text that can be scored; nothing where it is one."""
    if not isinstance(text, str):
        return "has no text" if text is None else "its text is not a string"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "its text is not UTF-8"
    return "" if text.strip() else "its text is blank"


def named_column(names: Sequence[str], wanted: str | None) -> str:
    """The column that holds the texts; UserError where that is not clear."""
    listed = ", ".join(names)
    if wanted is not None:
        if names.count(wanted) != 1:
            raise UserError(f"--text_column is {wanted}, but must be one of the columns: {listed}")
        return wanted
    usual = list(names) if len(names) == 1 else [name for name in names if name.strip().casefold() in USUAL_NAMES]
    if len(usual) != 1:
        raise UserError(f"--text_column is not given, but must name one of the columns: {listed}")
    return usual[0]


def check_free(names: Iterable[str], added: Sequence[str], where: str) -> None:
    """UserError where the input already has a column that the scoring adds."""
    if taken := [name for name in added if name in set(names)]:
        raise UserError(f"--input is {where}, but must not have the column {taken[0]!r} already")


def separated_table(lines: Lines, kind: str, wanted: str | None, labels: Sequence[str], where: str) -> Table:
    """The layout that the header of a CSV or TSV says."""
    header = next(lines, None)
    if header is None:
        raise UserError(f"--input is {where}, but must begin with a line of column names")
    lines.give_back()
    delimiter, names = SEPARATORS[kind][0], []
    for candidate in SEPARATORS[kind]:
        try:
            found = next(csv.reader([header], delimiter=candidate, strict=True))
        except csv.Error:  # a name with a line break in it, or lines that end otherwise
            continue
        if len(found) > len(names):
            delimiter, names = candidate, found
    if not names or any(text_fault(name) == "its text is not UTF-8" for name in names):
        raise UserError(f"--input is {where}, but must begin with a line of column names in UTF-8")
    next(lines)
    raw, added = lines.row(), result_columns(labels)
    newline = b"\r\n" if raw.endswith(b"\r\n") else b"\n"
    check_free(names, added, where)
    heading = raw.rstrip(b"\r\n") + delimiter.encode() + csv_line(added, delimiter) + newline
    return Table(kind, named_column(names, wanted), tuple(names), delimiter, newline, heading)


def objects_table(lines: Lines, kind: str, wanted: str | None, labels: Sequence[str], where: str) -> Table:
    """The layout of JSON Lines: the keys of its first objects are its columns."""
    names: dict[str, None] = {}
    for _, line in zip(range(FIRST_OBJECTS), lines, strict=False):
        found = read_object(line)
        names |= dict.fromkeys(found) if isinstance(found, dict) else {}
    lines.give_back()
    if not names:
        raise UserError(f"--input is {where}, but must hold a JSON object a line")
    check_free(names, result_columns(labels), where)
    return Table(kind, named_column(list(names), wanted), result_columns(labels))


def plain_table(lines: Lines, kind: str, wanted: str | None, labels: Sequence[str], where: str) -> Table:
    """Lines of text, which become a CSV with the column `text`."""
    if wanted is not None:
        raise UserError(f"--text_column is {wanted}, but must not be given for txt, which has no columns")
    return Table(kind, heading=csv_line(["text", *result_columns(labels)], ",") + b"\n")


def separated_rows(lines: Lines, table: Table) -> Iterator[Row]:
    """Rows of a CSV or TSV, blank lines left out; a stray quote costs its own line, not what follows."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(lines, delimiter=table.delimiter)
    where, fault = table.columns.index(table.text_column), ""
    while True:
        line = lines.number
        try:
            cells = next(reader)
            fault = "a quote is not closed" if lines.ended else ""
        except StopIteration:
            return
        except csv.Error as error:
            fault = "a quote is not closed" if "field limit" in str(error) else "a carriage return inside the line"
        if fault:
            lines.give_back(kept=1)
        elif cells and len(cells) != len(table.columns):
            fault = f"{len(cells)} cells under {len(table.columns)} columns"
        raw = lines.row()
        if fault:
            yield Row(line, raw, "", fault, kept=False)
        elif cells:
            yield Row(line, raw, cells[where], text_fault(cells[where]), kept=True)


def read_object(line: str) -> Any:
    """The value of a line of JSON; None where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def object_rows(lines: Lines, table: Table) -> Iterator[Row]:
    """Rows of JSON Lines, blank lines left out."""
    for content in lines:
        line, raw = lines.number - 1, lines.row()
        found = read_object(content)
        if isinstance(found, dict):
            taken = [name for name in table.columns if name in found]
            fault = f"has {taken[0]!r} already" if taken else text_fault(found.get(table.text_column))
            yield Row(line, raw, found.get(table.text_column), fault, kept=not taken)
        elif content.strip():
            yield Row(line, raw, "", "is no JSON object", kept=False)


def plain_rows(lines: Lines, table: Table) -> Iterator[Row]:
    """Rows of plain text, one a line."""
    for content in lines:
        text = content.rstrip("\r\n")
        yield Row(lines.number - 1, lines.row(), text, text_fault(text), kept=True)


def separated_result(row: Row, table: Table, added: dict[str, Any]) -> bytes:
    """The row's line with the results behind it."""
    body, ending = row.raw.rstrip(b"\r\n"), b"\r\n" if row.raw.endswith(b"\r\n") else b"\n"
    ending = ending if row.raw.endswith(b"\n") else table.newline
    return body + table.delimiter.encode() + csv_line(as_cells(added), table.delimiter) + ending


def object_result(row: Row, table: Table, added: dict[str, Any]) -> bytes:
    """The row's object with the results as its last keys."""
    body = row.raw.rstrip()[:-1].rstrip()
    return body + (b"" if body.endswith(b"{") else b", ") + json.dumps(added, ensure_ascii=False)[1:].encode() + b"\n"


def plain_result(row: Row, table: Table, added: dict[str, Any]) -> bytes:
    """The text and the results as a line of a CSV."""
    return csv_line([row.text, *as_cells(added)], ",") + b"\n"


def as_cells(added: dict[str, Any]) -> list[str]:
    """Results as cells: labels joined by `|`, what is missing empty, six decimals."""
    joined = ["|".join(value) if isinstance(value, list) else value for value in added.values()]
    return ["" if value is None else f"{value:.6f}" if isinstance(value, float) else value for value in joined]


TABLES: dict[str, Callable[[Lines, str, str | None, Sequence[str], str], Table]] = {
    "csv": separated_table, "tsv": separated_table, "jsonl": objects_table, "txt": plain_table,
}  # fmt: skip
READERS: dict[str, Callable[[Lines, Table], Iterator[Row]]] = {
    "csv": separated_rows, "tsv": separated_rows, "jsonl": object_rows, "txt": plain_rows,
}  # fmt: skip
WRITERS: dict[str, Callable[[Row, Table, dict[str, Any]], bytes]] = {
    "csv": separated_result, "tsv": separated_result, "jsonl": object_result, "txt": plain_result,
}  # fmt: skip


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
