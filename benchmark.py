"""Latency and throughput of all forms of a run, timed in turn, so that the machine's moods hit them alike."""

import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from evaluation import Form
from inference import Engine, load

SINGLE_TEXTS, ROUNDS, WARM_UP = 60, 3, 3
LARGE_BATCH, LARGE_BATCHES = 32, 3


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(engines: dict[str, Engine], chunks: list[list[str]], rounds: int, what: str) -> dict[str, list[float]]:
    """Name -> seconds of each forward pass: for each chunk of texts every engine in turn, after a warm-up."""
    batches = {name: [engine.encode(chunk) for chunk in chunks] for name, engine in engines.items()}
    for name, engine in engines.items():
        for batch in batches[name][:WARM_UP]:
            engine.forward(batch)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in tqdm(range(rounds * len(chunks)), desc=f"benchmark, {what}", leave=False):
        for name, engine in engines.items():
            batch = batches[name][turn % len(chunks)]
            seconds[name].append(seconds_of(lambda engine=engine, batch=batch: engine.forward(batch)))
    return seconds


def measure(
    forms: list[Form], texts: list[str], max_length: int, device: str, seed: int
) -> dict[str, dict[str, float]]:
    """Form name -> `latency_ms_p50`, `latency_ms_p95` (batch 1) and `throughput` (texts/s, batch 32).

    Forward passes alone on test texts of their own length; tokenization is not timed (the linear reference has no
    other work, so its time includes its vectorizer). Every engine uses `threads` threads.
    """
    threads = torch.get_num_threads()
    engines = {form.name: load(form.path, form.engine, max_length, threads, device) for form in forms}
    texts = random.Random(seed).sample(texts, min(len(texts), LARGE_BATCH * LARGE_BATCHES))
    single = interleaved(engines, [[text] for text in texts[:SINGLE_TEXTS]], ROUNDS, "batch 1")
    large = [texts[i : i + LARGE_BATCH] for i in range(0, len(texts), LARGE_BATCH)]
    many = interleaved(engines, large, ROUNDS, "batch 32")
    counts = [len(large[i % len(large)]) for i in range(ROUNDS * len(large))]
    return {name: {"latency_ms_p50": 1000 * statistics.median(single[name]),
                   "latency_ms_p95": 1000 * float(np.percentile(single[name], 95)),
                   "throughput": statistics.median(n / s for n, s in zip(counts, many[name], strict=True)),
                   "threads": threads} for name in engines}  # fmt: skip


def add_speedups(
    rows: dict[str, dict], times: dict[str, dict], baselines: dict[str, str], engines: dict[str, str]
) -> None:
    """Put times into `rows`, and their ratios to the fp32 teacher: in torch, and in the row's own engine.

    `engines` maps row -> engine; `baselines` maps engine -> the timed form that is the fp32 teacher there.
    `speedup_engine` is None where the teacher has no form in that engine (the linear reference).
    """
    for name, row in rows.items():
        row |= times[name]
        same_engine = baselines.get(engines[name])
        p50 = row["latency_ms_p50"]
        row["speedup_torch"] = times[baselines["torch"]]["latency_ms_p50"] / p50
        row["speedup_engine"] = times[same_engine]["latency_ms_p50"] / p50 if same_engine else None


