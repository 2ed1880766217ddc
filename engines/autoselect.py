"""Which form serves fastest on this machine, with how many threads: found by measurement, once, and remembered.

Forms are timed from text to logits against the best one so far, in turn, so no more than two are in memory.
"""

from __future__ import annotations

import hashlib
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

from compression_config import UserError
from engines.engine import Engine, serving_files
from runtime import cpu

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

PAIR_BUDGET_S = 1.0  # that two candidates are timed against each other

DECISIVE_RATIO = 1.5  # ratio of times beyond which a duel is over after two rounds

SPIN_S = 0.04  # ONNX Runtime's threads hold their cores for 34 ms after a pass

MAX_CHOICES = 100

Candidate = tuple[str, int]  # form, threads


class UnservableFormat(UserError):
    """A form that does not load here, though its files are as they were made."""


class LoadedCandidate(NamedTuple):
    """A candidate that is loaded and timed."""

    form: str
    threads: int
    engine: Engine


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def time_passes(entrant: LoadedCandidate) -> np.ndarray:
    """Seconds of each sentence alone, and of BATCH of them together; from text to logits."""
    if entrant.form == "torch":
        import torch

        torch.set_num_threads(entrant.threads)
    time.sleep(SPIN_S)
    seconds = []
    for texts in [
        *([text] for text in TIMING_TEXTS),
        [TIMING_TEXTS[i % len(TIMING_TEXTS)] for i in range(TIMING_BATCH)],
    ]:
        start = time.perf_counter()
        entrant.engine.forward(entrant.engine.encode(texts))
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def compare_pair(one: LoadedCandidate, other: LoadedCandidate) -> tuple[LoadedCandidate, float]:
    """The faster of two and its texts per second, by the least of each time; half of the texts come one by one."""
    weights = np.array([TIMING_BATCH / len(TIMING_TEXTS)] * len(TIMING_TEXTS) + [1])
    least = [np.full(len(weights), np.inf)] * 2
    for entrant in (one, other):
        time_passes(entrant)  # warm up
    end = time.perf_counter() + PAIR_BUDGET_S
    for turn in count(1):
        least = [
            np.minimum(known, time_passes(entrant))
            for known, entrant in zip(least, (one, other), strict=True)
        ]
        costs = [float(weights @ known) for known in least]
        if turn >= 2 and (time.perf_counter() > end or max(costs) > DECISIVE_RATIO * min(costs)):
            break
    faster = int(costs[1] < costs[0])
    return (one, other)[faster], 2 * TIMING_BATCH / costs[faster]


def fastest(candidates: Sequence[Candidate], load: Callable[[str, int], Engine]) -> Candidate:
    """The fastest candidate of those that load; Unservable where none does."""
    best, speed, reasons = None, 0.0, []
    with torch_threads_kept(candidates):
        for form, threads in tqdm(candidates, desc="choose the engine", leave=False, disable=None):
            try:
                entrant = LoadedCandidate(form, threads, load(form, threads))
            except UnservableFormat as error:
                reasons.append(error)
                log.warning("%s is passed over: %s", form, error.lines[0])
                continue
            best, speed = compare_pair(best, entrant) if best else (entrant, 0.0)
    if best is None:
        raise reasons[0]
    if speed:
        log.info(
            "%s, threads: %d, is the fastest here: %.0f texts/s", best.form, best.threads, speed
        )
    return best.form, best.threads


@contextmanager
def torch_threads_kept(candidates: Sequence[Candidate]) -> Iterator[None]:
    """Give torch back its number of threads, which is process-wide, where the block may change it."""
    if not any(form == "torch" for form, _ in candidates):
        yield
        return
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def engine_versions() -> dict[str, str]:
    """The versions of what computes."""
    found = {}
    for name in sorted({name for names in ENGINE_PACKAGES.values() for name in names}):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def choice_key(model_dir: Path, candidates: Sequence[Candidate], digests: dict[str, str]) -> str:
    """What a choice depends on: the candidates' files, the CPU, its cores and the engines' versions."""
    paths = sorted(
        {
            path
            for form, _ in candidates
            for path in serving_files(model_dir, form)
            if path.is_file()
        }
    )
    files = {
        path.relative_to(model_dir).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in paths
    }
    files |= {name: digests[name] for name in files if name in digests}
    about = [files, list(candidates), cpu.cpu_name(), available_cores(), engine_versions()]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def choices_path() -> Path:
    """Where choices are remembered."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (
        (Path(cache) if cache else Path.home() / ".cache")
        / "text-classifier-compression"
        / "fastest.json"
    )


def read_choices() -> dict[str, list]:
    """Key -> [form, threads] of all choices made before; empty where none can be read."""
    try:
        found = json.loads(choices_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # the last: a user without a home
        return {}
    return found if isinstance(found, dict) else {}


def save_choice(key: str, chosen: Candidate) -> None:
    """Keep a choice for the next time, where the cache can be written."""
    known = dict(list(read_choices().items())[1 - MAX_CHOICES :]) | {key: list(chosen)}
    try:
        path = choices_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
        fresh.replace(path)
    except (OSError, RuntimeError) as error:
        log.info("the choice cannot be remembered: %s", error)


def choose_fastest(
    model_dir: Path,
    candidates: Sequence[Candidate],
    digests: dict[str, str],
    load: Callable[[str, int], Engine],
) -> Candidate:
    """The candidate that was or now is found to be the fastest; `digests` are the files' hashes, as far as known."""
    if len(candidates) == 1:
        return candidates[0]
    key = choice_key(model_dir, candidates, digests)
    known = read_choices().get(key)
    if known in [list(candidate) for candidate in candidates]:
        return known[0], known[1]
    log.info(
        "timing %d forms and thread counts, once: the choice is kept in %s",
        len(candidates),
        choices_path(),
    )
    chosen = fastest(candidates, load)
    save_choice(key, chosen)
    return chosen
