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

import processor
from compression_config import UserError
from engines import Engine, serving_files

log = logging.getLogger(__name__)

PACKAGES = {"torch": ("torch", "transformers", "accelerate"), "onnx": ("onnxruntime", "tokenizers"),
            "openvino": ("openvino", "tokenizers")}  # fmt: skip
SENTENCES = ("It rained.", "We had soup, bread and a little cheese.", "Has anybody seen the key to the garden gate?",
             "The train to the coast leaves at nine and stops at every village on the way, " * 2,
             "They walked along the river until the road ended, and there was nobody there to ask. " * 4)  # fmt: skip
BATCH = 32
DUEL_S = 1.0  # that two candidates are timed against each other
CLEAR = 1.5  # ratio of times beyond which a duel is over after two rounds
SPIN_S = 0.04  # ONNX Runtime's threads hold their cores for 34 ms after a pass
MOST_REMEMBERED = 100

Candidate = tuple[str, int]  # form, threads


class Unservable(UserError):
    """A form that does not load here, though its files are as they were made."""


class Entrant(NamedTuple):
    """A candidate that is loaded and timed."""

    form: str
    threads: int
    engine: Engine


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def passes(entrant: Entrant) -> np.ndarray:
    """Seconds of each sentence alone, and of BATCH of them together; from text to logits."""
    if entrant.form == "torch":
        import torch

        torch.set_num_threads(entrant.threads)
    time.sleep(SPIN_S)
    seconds = []
    for texts in [*([text] for text in SENTENCES), [SENTENCES[i % len(SENTENCES)] for i in range(BATCH)]]:
        start = time.perf_counter()
        entrant.engine.forward(entrant.engine.encode(texts))
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def duel(one: Entrant, other: Entrant) -> tuple[Entrant, float]:
    """The faster of two and its texts per second, by the least of each time; half of the texts come one by one."""
    weights = np.array([BATCH / len(SENTENCES)] * len(SENTENCES) + [1])
    least = [np.full(len(weights), np.inf)] * 2
    for entrant in (one, other):
        passes(entrant)  # warm up
    end = time.perf_counter() + DUEL_S
    for turn in count(1):
        least = [np.minimum(known, passes(entrant)) for known, entrant in zip(least, (one, other), strict=True)]
        costs = [float(weights @ known) for known in least]
        if turn >= 2 and (time.perf_counter() > end or max(costs) > CLEAR * min(costs)):
            break
    faster = int(costs[1] < costs[0])
    return (one, other)[faster], 2 * BATCH / costs[faster]


def fastest(candidates: Sequence[Candidate], load: Callable[[str, int], Engine]) -> Candidate:
    """The fastest candidate of those that load; Unservable where none does."""
    best, speed, reasons = None, 0.0, []
    with torch_threads_kept(candidates):
        for form, threads in tqdm(candidates, desc="choose the engine", leave=False, disable=None):
            try:
                entrant = Entrant(form, threads, load(form, threads))
            except Unservable as error:
                reasons.append(error)
                log.warning("%s is passed over: %s", form, error.lines[0])
                continue
            best, speed = duel(best, entrant) if best else (entrant, 0.0)
    if best is None:
        raise reasons[0]
    if speed:
        log.info("%s, threads: %d, is the fastest here: %.0f texts/s", best.form, best.threads, speed)
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


def versions() -> dict[str, str]:
    """The versions of what computes."""
    found = {}
    for name in sorted({name for names in PACKAGES.values() for name in names}):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def choice_key(model_dir: Path, candidates: Sequence[Candidate], digests: dict[str, str]) -> str:
    """What a choice depends on: the candidates' files, the CPU, its cores and the engines' versions."""
    paths = sorted({path for form, _ in candidates for path in serving_files(model_dir, form) if path.is_file()})
    files = {path.relative_to(model_dir).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    files |= {name: digests[name] for name in files if name in digests}
    about = [files, list(candidates), processor.name(), available_cores(), versions()]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def memory_path() -> Path:
    """Where choices are remembered."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "text-classifier-compression" / "fastest.json"


def remembered() -> dict[str, list]:
    """Key -> [form, threads] of all choices made before; empty where none can be read."""
    try:
        found = json.loads(memory_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # the last: a user without a home
        return {}
    return found if isinstance(found, dict) else {}


def remember(key: str, chosen: Candidate) -> None:
    """Keep a choice for the next time, where the cache can be written."""
    known = dict(list(remembered().items())[1 - MOST_REMEMBERED :]) | {key: list(chosen)}
    try:
        path = memory_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
        fresh.replace(path)
    except (OSError, RuntimeError) as error:
        log.info("the choice cannot be remembered: %s", error)


def choose(
    model_dir: Path, candidates: Sequence[Candidate], digests: dict[str, str], load: Callable[[str, int], Engine]
) -> Candidate:
    """The candidate that was or now is found to be the fastest; `digests` are the files' hashes, as far as known."""
    if len(candidates) == 1:
        return candidates[0]
    key = choice_key(model_dir, candidates, digests)
    known = remembered().get(key)
    if known in [list(candidate) for candidate in candidates]:
        return known[0], known[1]
    log.info("timing %d forms and thread counts, once: the choice is kept in %s", len(candidates), memory_path())
    chosen = fastest(candidates, load)
    remember(key, chosen)
    return chosen
