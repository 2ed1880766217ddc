"""What labelling a large file costs: `inference.py` against `transformers.pipeline` on the same model and rows.

`python scripts/bench_inference.py MODEL_DIR FILE [FILE ...] [--texts 100000]`. MODEL_DIR is a finished model with
graphs; the texts of the labelled FILEs, in their order and repeated, make the rows. Timed in fresh processes: the
fastest form here, torch, and the pipeline at its best batch size. The pipeline is timed on fewer rows, spread evenly
over the file, without its start; ours are timed whole, from starting Python to the finished output. Also: peak memory
at a tenth of the rows and at all, and start-up and memory of every form of the model against torch's.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import psutil
from bench_engines import texts_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmark import machine_description, start_up
from compression_config import UserError
from engines.autoselect import available_cores
from engines.classifier import DEFAULT_MAX_TOKENS
from engines.engine import ModelFormat, formats_in, max_input_tokens
from reporting.results import aligned_table
from runtime.worker import measuring_process

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZES = (1, 8, 32, 128)
SAMPLE, TIMED = (
    2_000,
    10_000,
)  # rows on which the pipeline's batch size is chosen, and on which that one is timed
STARTS = 3  # of each form; the fastest counts
POLL_S = 0.02
SUMMARY = re.compile(r"([\d,]+) rows scored.*; (\d+) texts/s, (\d+) % of the time in tokenization")
ENGINE = re.compile(r"engine: (\S+), threads: (\d+)")


class Scoring(NamedTuple):
    """A run of `inference.py`: rows, wall seconds of the whole process, its peak resident memory (MiB), what it says
    of itself, and the form and threads that it used."""

    rows: int
    seconds: float
    peak_mib: float
    said_texts_s: int
    tokenization_percent: int
    form: str
    threads: int

    @property
    def texts_s(self) -> float:
        """Rows a second of the whole process."""
        return self.rows / self.seconds


def write_rows(path: Path, rows: list[str]) -> Path:
    """A CSV with the one column `text`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([text] for text in ["text", *rows])
    return path


def spaced(rows: list[str], count: int) -> list[str]:
    """`count` rows at even distances, in their order: a file's first rows may be of one source alone."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def resident_mib(process: psutil.Process) -> float:
    """Memory of a process and its children; 0 where it has just ended."""
    with suppress(psutil.Error):
        return (
            sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])
            / 2**20
        )
    return 0.0


def watched(command: list[str], cache: Path, log: Path) -> tuple[float, float]:
    """Seconds and peak resident memory (MiB) of a command, whose stderr goes to `log`."""
    with log.open("wb") as stderr:
        start, peak = time.perf_counter(), 0.0
        child = psutil.Popen(
            command, cwd=ROOT, stderr=stderr, env=os.environ | {"XDG_CACHE_HOME": str(cache)}
        )
        while True:
            peak = max(peak, resident_mib(child))
            with suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
                child.wait(POLL_S)
                break
        seconds = time.perf_counter() - start
    if child.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {child.returncode}:\n{log.read_text(encoding='utf-8')}"
        )
    return seconds, peak


def score(model_dir: Path, rows: Path, count: int, engine: str) -> Scoring:
    """Label a file with `inference.py`; output and log lie beside the file, named after the engine."""
    output, log = rows.with_suffix(f".{engine}.csv"), rows.with_suffix(f".{engine}.log")
    command = [
        sys.executable,
        "inference.py",
        "--model",
        str(model_dir.resolve()),
        "--input",
        str(rows),
        "--output",
        str(output),
        "--engine",
        engine,
    ]
    seconds, peak = watched(command, rows.parent / "cache", log)
    said = log.read_text(encoding="utf-8")
    scored, texts_s, percent = SUMMARY.search(said).groups()
    form, threads = ENGINE.search(said).groups()
    if int(scored.replace(",", "")) != count:
        raise SystemExit(f"{scored} of {count:,} rows were scored")
    return Scoring(count, seconds, peak, int(texts_s), int(percent), form, int(threads))


def pipeline_speeds(
    model_dir: str, sample: list[str], timed: list[str]
) -> tuple[dict[int, float], float, str]:
    """Texts a second of the plain pipeline at each batch size on `sample`, of the best one on `timed`; and what
    weights it computes with."""
    import torch
    from transformers import pipeline

    classify = pipeline("text-classification", model_dir, device="cpu")

    def speed(texts: list[str], size: int) -> float:
        start = time.perf_counter()
        answers = classify(texts, batch_size=size, truncation=True)
        assert len(answers) == len(texts)
        return len(texts) / (time.perf_counter() - start)

    speed(sample[:64], BATCH_SIZES[0])
    found = {size: speed(sample, size) for size in BATCH_SIZES}
    best = max(found, key=found.get)
    about = f"{str(classify.model.dtype).removeprefix('torch.')}, threads {torch.get_num_threads()}"
    return found, speed(timed, best), about


def start_ups(model_dir: Path, texts: list[str]) -> dict[str, dict[str, float]]:
    """Form -> the least seconds to its first answer and its memory (MiB), each form on all cores, in turn."""
    max_length = max_input_tokens(model_dir) or DEFAULT_MAX_TOKENS
    forms = [form for form in formats_in(model_dir) if form != "linear"]
    turns = [
        {
            form: start_up(
                ModelFormat(form, model_dir, form), texts, max_length, available_cores(), "cpu"
            )
            for form in forms
        }
        for _ in range(STARTS)
    ]
    return {
        form: {name: min(turn[form][name] for turn in turns) for name in ("load_s", "rss_mb")}
        for form in forms
    }


def describe(scoring: Scoring, what: str) -> str:
    """A run of `inference.py` in a line."""
    return (
        f"{what} ({scoring.form}, threads {scoring.threads}): {scoring.rows:,} rows in {scoring.seconds:.1f} s, "
        f"{scoring.texts_s:.0f} texts/s of the whole process; it says {scoring.said_texts_s} texts/s, "
        f"{scoring.tokenization_percent} % of the time in tokenization"
    )


def compare_speed(model_dir: Path, rows: list[str], folder: Path) -> None:
    """Print the speed of ours and the pipeline's, and memory at a tenth of the rows and at all."""
    tenth = spaced(rows, max(1, len(rows) // 10))
    part, whole = write_rows(folder / "part.csv", tenth), write_rows(folder / "whole.csv", rows)
    few = write_rows(folder / "few.csv", rows[:1])
    score(
        model_dir, few, 1, "auto"
    )  # measures which form is the fastest, once; the next runs remember it
    some = score(model_dir, part, len(tenth), "auto")
    print(describe(some, "inference.py"), flush=True)
    ours = score(model_dir, whole, len(rows), "auto")
    print(describe(ours, "inference.py"), flush=True)
    score(model_dir, few.rename(folder / "few_torch.csv"), 1, "torch")  # how many threads
    in_torch = score(model_dir, whole, len(rows), "torch")
    print(describe(in_torch, "inference.py --engine torch"), flush=True)
    sample, timed = spaced(rows, SAMPLE), spaced(rows, TIMED)
    with measuring_process() as call:
        tried, peer, about = call(pipeline_speeds, str(model_dir), sample, timed)
    print(
        f"pipeline ({about}) on {len(sample):,} rows: "
        + ", ".join(f"batch {size} {speed:.0f} texts/s" for size, speed in tried.items())
    )
    print(
        f"pipeline, batch {max(tried, key=tried.get)}, on {len(timed):,} rows: {peer:.0f} texts/s without its start; "
        f"{len(rows):,} rows would take {len(rows) / peer:.0f} s\n"
    )
    print(f"inference.py / pipeline: {ours.texts_s / peer:.2f}")
    print(f"inference.py --engine torch / pipeline: {in_torch.texts_s / peer:.2f}")
    print(f"inference.py / inference.py --engine torch: {ours.texts_s / in_torch.texts_s:.2f}")
    print(
        f"peak memory of inference.py: {some.peak_mib:.0f} MiB at {some.rows:,} rows, {ours.peak_mib:.0f} MiB at "
        f"{ours.rows:,}, ratio {ours.peak_mib / some.peak_mib:.2f}\n",
        flush=True,
    )


def compare_starts(model_dir: Path, rows: list[str]) -> None:
    """Print start-up and memory of every form, and how much less they are than torch's."""
    found = start_ups(model_dir, rows)
    torch = found["torch"]
    lines = [["form", "load (s)", "memory (MiB)", "torch / it, load", "torch / it, memory"]]
    lines += [
        [
            form,
            f"{one['load_s']:.2f}",
            f"{one['rss_mb']:.0f}",
            f"{torch['load_s'] / one['load_s']:.2f}",
            f"{torch['rss_mb'] / one['rss_mb']:.2f}",
        ]
        for form, one in found.items()
    ]
    print(aligned_table(lines))


def parse_options() -> argparse.Namespace:
    """The command line, checked before anything is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", metavar="MODEL_DIR", type=Path, help="a finished model, with its graphs"
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="labelled files whose texts make the rows"
    )
    parser.add_argument(
        "--texts", metavar="INT", type=int, default=100_000, help="rows to label (default: 100000)"
    )
    options = parser.parse_args()
    forms = formats_in(options.model)
    if "torch" not in forms or not any(form.startswith("onnx/") for form in forms):
        parser.error(
            f"MODEL_DIR is {options.model}, but must hold model.safetensors and onnx/*.onnx"
        )
    if options.texts < 1:
        parser.error(f"--texts is {options.texts}, but must be at least 1")
    return options


def main() -> int:
    """All of it in one run."""
    options = parse_options()
    try:
        texts = [text for file in options.files for text in texts_of(file)]
    except UserError as error:
        print(*error.lines, sep="\n", file=sys.stderr)
        return 2
    rows = list(islice(cycle(texts), options.texts))
    about = machine_description() | {
        name: version(name) for name in ("torch", "transformers", "onnxruntime")
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(
        f"{len(rows):,} rows of {len(texts):,} texts, {sum(map(len, rows)) / len(rows):.0f} characters each\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        compare_speed(options.model, rows, Path(folder))
    compare_starts(options.model, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
