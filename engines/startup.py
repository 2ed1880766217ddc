"""How long a format takes from a fresh Python process to its first answer, and how much memory it
uses.

`python -m engines.startup` is that process: it reads its task from stdin and prints its report.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from engines.engine import ModelFormat, load_engine

ROOT = Path(__file__).resolve().parent.parent
NUM_TEXTS = 5  # answered before memory is read


def measure_startup(
    model_format: ModelFormat, texts: list[str], max_length: int, threads: int, device: str
) -> dict[str, float]:
    """`load_s`: seconds from the start of a fresh process to its first answer; `rss_mb`: its
    resident memory (MiB) after five answers."""
    directory = str(model_format.directory.resolve())
    task = [directory, model_format.format_name, max_length, threads, device, texts[:NUM_TEXTS]]
    start_s = time.perf_counter()  # a system-wide clock: the other process reads the same one
    process = subprocess.run(
        [sys.executable, "-m", "engines.startup"],
        input=json.dumps(task),
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    report = json.loads(process.stdout.splitlines()[-1])
    return {"load_s": report["first_answer_s"] - start_s, "rss_mb": report["rss_mb"]}


def answer_in_fresh_process() -> None:
    """Load the format that stdin names, answer its texts one by one, print the time of the first
    answer (seconds of `perf_counter`) and the resident memory (MiB)."""
    directory, format_name, max_length, threads, device, texts = json.load(sys.stdin)
    engine = load_engine(directory, format_name, max_length, threads, device)
    answer_times = []
    for text in texts:
        engine.forward(engine.encode([text]))
        answer_times.append(time.perf_counter())
    rss_mb = psutil.Process().memory_info().rss / 2**20
    print(json.dumps({"first_answer_s": answer_times[0], "rss_mb": rss_mb}))


if __name__ == "__main__":
    answer_in_fresh_process()
