"""The format and the number of threads that serve fastest here, measured once and cached.

Each candidate is timed from text to logits, interleaved with the fastest one so far, so at most two
are in memory.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from engines.engine import Engine, serving_files
from runtime import cpu
from runtime.errors import UserError
from runtime.files import json_digest, write_json

log = logging.getLogger(__name__)

ENGINE_PACKAGES = {
    "torch": ("torch", "transformers", "accelerate"),
    "onnx": ("onnxruntime", "tokenizers"),
    "openvino": ("openvino", "tokenizers"),
}

TIMING_TEXTS = (
    "It rained.",
    "We had soup, bread and a little cheese.",
    "Has anybody seen the key to the garden gate?",
    "The train to the coast leaves at nine and stops at every village on the way, " * 2,
    "They walked along the river until the road ended, and there was nobody there to ask. " * 4,
)

TIMING_BATCH = 32

PAIR_BUDGET_S = 1.0  # time limit of the comparison of two candidates

DECISIVE_RATIO = 1.5  # ratio of times beyond which a comparison ends after two rounds

MIN_ROUNDS = 2

SPIN_S = 0.04  # ONNX Runtime's threads keep their cores busy for 34 ms after a pass

MAX_CHOICES = 100

Candidate = tuple[str, int]  # format name, threads


class UnservableFormat(UserError):
    """A format that fails to load on this machine, though its files are unchanged."""


class LoadedCandidate(NamedTuple):
    """A candidate in memory."""

    format_name: str
    threads: int
    engine: Engine


def available_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def timing_workload() -> list[list[str]]:
    """The batches of a timing: each text separately, then TIMING_BATCH texts together."""
    repeats = TIMING_BATCH // len(TIMING_TEXTS) + 1
    large_batch = list(TIMING_TEXTS * repeats)[:TIMING_BATCH]
    return [[text] for text in TIMING_TEXTS] + [large_batch]


def time_passes(candidate: LoadedCandidate) -> np.ndarray:
    """Seconds from text to logits of each batch of the workload."""
    if candidate.format_name == "torch":
        import torch

        torch.set_num_threads(candidate.threads)
    time.sleep(SPIN_S)
    seconds = []
    for texts in timing_workload():
        start = time.perf_counter()
        candidate.engine.forward(candidate.engine.encode(texts))
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def workload_seconds(seconds: np.ndarray) -> float:
    """Seconds for 2 * TIMING_BATCH texts, of which half are in batches of one."""
    repeats = TIMING_BATCH / len(TIMING_TEXTS)
    return float(repeats * seconds[: len(TIMING_TEXTS)].sum() + seconds[len(TIMING_TEXTS)])


def compare_pair(first: LoadedCandidate, second: LoadedCandidate) -> tuple[LoadedCandidate, float]:
    """The faster candidate and its texts per second, from the fastest pass of each batch."""
    first_seconds = time_passes(first)  # warm-up
    second_seconds = time_passes(second)
    end = time.perf_counter() + PAIR_BUDGET_S
    for completed in count(1):
        first_seconds = np.minimum(first_seconds, time_passes(first))
        second_seconds = np.minimum(second_seconds, time_passes(second))
        first_cost = workload_seconds(first_seconds)
        second_cost = workload_seconds(second_seconds)
        ratio = max(first_cost, second_cost) / min(first_cost, second_cost)
        is_out_of_time = time.perf_counter() > end
        if completed >= MIN_ROUNDS and (is_out_of_time or ratio > DECISIVE_RATIO):
            break
    if second_cost < first_cost:
        return second, 2 * TIMING_BATCH / second_cost
    return first, 2 * TIMING_BATCH / first_cost


def fastest(candidates: Sequence[Candidate], load: Callable[[str, int], Engine]) -> Candidate:
    """The fastest of the candidates that load; UnservableFormat if none does."""
    best: LoadedCandidate | None = None
    texts_per_s = 0.0
    errors = []
    with torch_threads_kept(candidates):
        for format_name, threads in tqdm(
            candidates, desc="choose the engine", leave=False, disable=None
        ):
            try:
                engine = load(format_name, threads)
            except UnservableFormat as error:
                errors.append(error)
                log.warning("%s is skipped: %s", format_name, error.lines[0])
                continue
            candidate = LoadedCandidate(format_name, threads, engine)
            if best is None:
                best = candidate
            else:
                best, texts_per_s = compare_pair(best, candidate)
    if best is None:
        raise errors[0]
    if texts_per_s:
        log.info(
            "%s, threads: %d, is the fastest here: %.0f texts/s",
            best.format_name,
            best.threads,
            texts_per_s,
        )
    return best.format_name, best.threads


@contextmanager
def torch_threads_kept(candidates: Sequence[Candidate]) -> Iterator[None]:
    """Restore torch's process-wide number of threads if the block may change it."""
    if not any(format_name == "torch" for format_name, _ in candidates):
        yield
        return
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def engine_versions() -> dict[str, str]:
    """The installed versions of the engines' packages."""
    names = set()
    for packages in ENGINE_PACKAGES.values():
        names.update(packages)
    versions = {}
    for name in sorted(names):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def choice_key(model_dir: Path, candidates: Sequence[Candidate], hashes: dict[str, str]) -> str:
    """A digest of what a choice depends on: the candidates' files, the CPU, cores and versions.

    A file is identified by its hash if known, else by its size and time.
    """
    paths = set()
    for format_name, _ in candidates:
        paths.update(serving_files(model_dir, format_name))
    files = {}
    for path in sorted(paths):
        if path.is_file():
            name = path.relative_to(model_dir).as_posix()
            files[name] = hashes.get(name) or [path.stat().st_size, path.stat().st_mtime_ns]
    return json_digest(
        [files, list(candidates), cpu.cpu_name(), available_cores(), engine_versions()]
    )


def choices_path() -> Path:
    """The file in which choices are cached."""
    cache = os.environ.get("XDG_CACHE_HOME")
    cache_dir = Path(cache) if cache else Path.home() / ".cache"
    return cache_dir / "text-classifier-compression" / "fastest.json"


def read_choices() -> dict[str, list]:
    """Key -> [format name, threads] of the cached choices; empty if they cannot be read."""
    try:
        choices = json.loads(choices_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a user without a home directory
        return {}
    return choices if isinstance(choices, dict) else {}


def save_choice(key: str, choice: Candidate) -> None:
    """Add a choice to the cache, if it is writable, and keep only the newest MAX_CHOICES."""
    choices = read_choices()
    choices[key] = list(choice)
    newest = list(choices.items())[-MAX_CHOICES:]
    try:
        path = choices_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(newest))
    except (OSError, RuntimeError) as error:
        log.info("the choice cannot be cached: %s", error)


def choose_fastest(
    model_dir: Path,
    candidates: Sequence[Candidate],
    hashes: dict[str, str],
    load: Callable[[str, int], Engine],
) -> Candidate:
    """The fastest candidate, from the cache or by measurement.

    `hashes` are those of the model's files, as far as known; `load(format_name, threads)` loads.
    """
    if len(candidates) == 1:
        return candidates[0]
    key = choice_key(model_dir, candidates, hashes)
    cached = read_choices().get(key)
    for format_name, threads in candidates:
        if cached == [format_name, threads]:
            return format_name, threads
    log.info(
        "timing %d combinations of format and threads once; the choice is cached in %s",
        len(candidates),
        choices_path(),
    )
    choice = fastest(candidates, load)
    save_choice(key, choice)
    return choice
