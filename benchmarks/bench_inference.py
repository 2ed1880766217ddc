"""Speed and memory of labelling a large file: `inference.py` against `transformers.pipeline`.

`python -m benchmarks.bench_inference MODEL_DIR FILE [FILE ...] [--texts 100000]`. MODEL_DIR is a
finished model with graphs. The texts of the labelled FILEs, in order and repeated, are the rows.
Measured in fresh processes: `inference.py` with its fastest format, with torch, and the pipeline at
its best batch size. `inference.py` is timed on all rows, from the start of Python to the finished
output. The pipeline is timed on fewer rows, spaced evenly over the file, and without its start.
Also measured: peak memory at a tenth of the rows and at all, and start-up time and memory of every
format of the model in comparison with torch.
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

from benchmarks.inputs import read_texts
from engines.autoselect import available_cores
from engines.classifier import DEFAULT_MAX_TOKENS
from engines.engine import ModelFormat, formats_in, max_input_tokens
from engines.startup import measure_startup
from reporting.results import aligned_table
from runtime.errors import UserError
from runtime.machine import machine_description
from runtime.worker import measuring_process

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZES = (1, 8, 32, 128)
SAMPLE_ROWS = 2_000  # on which the pipeline's batch size is chosen
TIMED_ROWS = 10_000  # on which the pipeline is timed at that batch size
WARM_UP_ROWS = 64
STARTS = 3  # per format; the fastest counts
POLL_S = 0.02
MIB = 2**20
SUMMARY = re.compile(
    r"([\d,]+) rows labelled.*; (\d+) texts/s, (\d+) % of the time in tokenization"
)
ENGINE = re.compile(r"engine: (\S+), threads: (\d+)")


class Scoring(NamedTuple):
    """One run of `inference.py`: time and peak memory of the process, and the figures it logged."""

    rows: int
    seconds: float
    peak_mib: float
    logged_texts_s: int
    tokenization_percent: int
    format_name: str
    threads: int

    @property
    def texts_s(self) -> float:
        """Rows per second of the process, including its start."""
        return self.rows / self.seconds

    def describe(self, command: str) -> str:
        """One line."""
        return (
            f"{command} ({self.format_name}, threads {self.threads}): {self.rows:,} rows in "
            f"{self.seconds:.1f} s, {self.texts_s:.0f} texts/s including the start; it logged "
            f"{self.logged_texts_s} texts/s, {self.tokenization_percent} % of the time in "
            "tokenization"
        )


class PipelineSpeed(NamedTuple):
    """Texts per second of `transformers.pipeline`: on the sample, and at the best batch size."""

    by_batch_size: dict[int, float]
    texts_s: float
    dtype: str
    threads: int

    @property
    def best_batch_size(self) -> int:
        """The fastest batch size."""
        return max(self.by_batch_size, key=self.by_batch_size.get)


def write_rows(path: Path, rows: list[str]) -> Path:
    """Write a CSV with one column, `text`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        for text in rows:
            writer.writerow([text])
    return path


def evenly_spaced(rows: list[str], count: int) -> list[str]:
    """`count` evenly spaced rows, in order: the first rows of a file may come from one source."""
    count = min(count, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def resident_mib(process: psutil.Process) -> float:
    """Resident memory (MiB) of a process and its children; 0 if it has just ended."""
    with suppress(psutil.Error):
        processes = [process, *process.children(recursive=True)]
        return sum(member.memory_info().rss for member in processes) / MIB
    return 0.0


def has_ended(process: psutil.Popen, timeout_s: float) -> bool:
    """Whether a process ends within `timeout_s`."""
    try:
        process.wait(timeout_s)
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
        return False
    return True


def run_and_measure(command: list[str], cache: Path, log: Path) -> tuple[float, float]:
    """Seconds and peak resident memory (MiB) of a command; its stderr is written to `log`."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    peak_mib = 0.0
    with log.open("wb") as stderr:
        start = time.perf_counter()
        process = psutil.Popen(command, cwd=ROOT, stderr=stderr, env=environment)
        while not has_ended(process, POLL_S):
            peak_mib = max(peak_mib, resident_mib(process))
        seconds = time.perf_counter() - start
    if process.returncode:
        error = log.read_text(encoding="utf-8")
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{error}")
    return seconds, peak_mib


def score_file(model_dir: Path, rows: Path, count: int, engine: str) -> Scoring:
    """Label a file of `count` rows with `inference.py`; output and log are beside the file."""
    output = rows.with_suffix(f".{engine}.csv")
    log = rows.with_suffix(f".{engine}.log")
    command = [sys.executable, "inference.py", "--model", str(model_dir.resolve())]
    command += ["--input", str(rows), "--output", str(output), "--engine", engine]
    seconds, peak_mib = run_and_measure(command, rows.parent / "cache", log)
    logged = log.read_text(encoding="utf-8")
    scored, texts_s, percent = SUMMARY.search(logged).groups()
    format_name, threads = ENGINE.search(logged).groups()
    if int(scored.replace(",", "")) != count:
        raise SystemExit(f"{scored} of {count:,} rows were labelled")
    return Scoring(
        rows=count,
        seconds=seconds,
        peak_mib=peak_mib,
        logged_texts_s=int(texts_s),
        tokenization_percent=int(percent),
        format_name=format_name,
        threads=int(threads),
    )


def measure_pipeline(model_dir: str, sample: list[str], timed: list[str]) -> PipelineSpeed:
    """Choose the pipeline's batch size on `sample`, then time it on `timed`."""
    import torch
    from transformers import pipeline

    classify = pipeline("text-classification", model_dir, device="cpu")

    def texts_per_second(texts: list[str], batch_size: int) -> float:
        start = time.perf_counter()
        answers = classify(texts, batch_size=batch_size, truncation=True)
        assert len(answers) == len(texts)
        return len(texts) / (time.perf_counter() - start)

    texts_per_second(sample[:WARM_UP_ROWS], BATCH_SIZES[0])
    speeds = {size: texts_per_second(sample, size) for size in BATCH_SIZES}
    best = max(speeds, key=speeds.get)
    dtype = str(classify.model.dtype).removeprefix("torch.")
    return PipelineSpeed(speeds, texts_per_second(timed, best), dtype, torch.get_num_threads())


def measure_starts(model_dir: Path, texts: list[str]) -> dict[str, dict[str, float]]:
    """Format -> `load_s` and `rss_mb`, the minimum of STARTS interleaved starts on all cores."""
    max_length = max_input_tokens(model_dir) or DEFAULT_MAX_TOKENS
    names = [name for name in formats_in(model_dir) if name != "linear"]
    minima: dict[str, dict[str, float]] = {name: {} for name in names}
    for _ in range(STARTS):
        for name in names:
            model_format = ModelFormat(name, model_dir, name)
            start = measure_startup(model_format, texts, max_length, available_cores(), "cpu")
            for figure, value in start.items():
                minima[name][figure] = min(value, minima[name].get(figure, value))
    return minima


def compare_speed(model_dir: Path, rows: list[str], folder: Path) -> None:
    """Print the speed of `inference.py` and of the pipeline, and memory at two numbers of rows."""
    tenth = evenly_spaced(rows, max(1, len(rows) // 10))
    tenth_file = write_rows(folder / "tenth.csv", tenth)
    all_file = write_rows(folder / "all.csv", rows)
    warm_up_file = write_rows(folder / "warm_up.csv", rows[:1])

    # The first run of each engine measures which format and threads are fastest, and caches it.
    score_file(model_dir, warm_up_file, 1, "auto")
    on_tenth = score_file(model_dir, tenth_file, len(tenth), "auto")
    print(on_tenth.describe("inference.py"), flush=True)
    on_all = score_file(model_dir, all_file, len(rows), "auto")
    print(on_all.describe("inference.py"), flush=True)
    torch_warm_up_file = write_rows(folder / "torch_warm_up.csv", rows[:1])
    score_file(model_dir, torch_warm_up_file, 1, "torch")
    in_torch = score_file(model_dir, all_file, len(rows), "torch")
    print(in_torch.describe("inference.py --engine torch"), flush=True)

    sample = evenly_spaced(rows, SAMPLE_ROWS)
    timed = evenly_spaced(rows, TIMED_ROWS)
    with measuring_process() as call:
        pipeline = call(measure_pipeline, str(model_dir), sample, timed)
    speeds = [f"batch {size} {speed:.0f} texts/s" for size, speed in pipeline.by_batch_size.items()]
    print(
        f"pipeline ({pipeline.dtype}, threads {pipeline.threads}) on {len(sample):,} rows: "
        f"{', '.join(speeds)}"
    )
    print(
        f"pipeline, batch {pipeline.best_batch_size}, on {len(timed):,} rows: "
        f"{pipeline.texts_s:.0f} texts/s without its start; {len(rows):,} rows would take "
        f"{len(rows) / pipeline.texts_s:.0f} s\n"
    )
    print(f"inference.py / pipeline: {on_all.texts_s / pipeline.texts_s:.2f}")
    print(f"inference.py --engine torch / pipeline: {in_torch.texts_s / pipeline.texts_s:.2f}")
    print(f"inference.py / inference.py --engine torch: {on_all.texts_s / in_torch.texts_s:.2f}")
    print(
        f"peak memory of inference.py: {on_tenth.peak_mib:.0f} MiB at {on_tenth.rows:,} rows, "
        f"{on_all.peak_mib:.0f} MiB at {on_all.rows:,}, "
        f"ratio {on_all.peak_mib / on_tenth.peak_mib:.2f}\n",
        flush=True,
    )


def compare_starts(model_dir: Path, rows: list[str]) -> None:
    """Print start-up time and memory of every format, and torch's divided by them."""
    starts = measure_starts(model_dir, rows)
    torch = starts["torch"]
    table = [["format", "load (s)", "memory (MiB)", "torch / it, load", "torch / it, memory"]]
    for name, figures in starts.items():
        table.append(
            [
                name,
                f"{figures['load_s']:.2f}",
                f"{figures['rss_mb']:.0f}",
                f"{torch['load_s'] / figures['load_s']:.2f}",
                f"{torch['rss_mb'] / figures['rss_mb']:.2f}",
            ]
        )
    print(aligned_table(table))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked before anything is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", metavar="MODEL_DIR", type=Path, help="a finished model with its graphs"
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="labelled files whose texts are the rows"
    )
    parser.add_argument(
        "--texts", metavar="INT", type=int, default=100_000, help="rows (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    names = formats_in(options.model)
    if "torch" not in names or not any(name.startswith("onnx/") for name in names):
        parser.error(
            f"MODEL_DIR is {options.model}, but must contain model.safetensors and onnx/*.onnx"
        )
    if options.texts < 1:
        parser.error(f"--texts is {options.texts}, but must be at least 1")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measure speed, then start-up."""
    options = parse_arguments(argv)
    texts: list[str] = []
    try:
        for file in options.files:
            texts += read_texts(file)
    except UserError as error:
        return error.print_to_stderr("bench_inference.py")
    rows = list(islice(cycle(texts), options.texts))
    environment = machine_description()
    for package in ("torch", "transformers", "onnxruntime"):
        environment[package] = version(package)
    print(", ".join(f"{name} {value}" for name, value in environment.items()))
    characters = sum(map(len, rows)) / len(rows)
    print(
        f"{len(rows):,} rows from {len(texts):,} texts, {characters:.0f} characters per row\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        compare_speed(options.model, rows, Path(folder))
    compare_starts(options.model, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
