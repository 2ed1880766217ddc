"""Latency, throughput, start-up time and memory of formats, measured interleaved.

Every round visits each format once, with the same inputs. Each engine has one worker process that
keeps its formats loaded. The time is that of the forward pass of a tokenized batch, on the CPU or a
GPU.

Other processes slow long passes more often than short ones, so a ratio of medians depends on the
load of the machine. The time of an input is therefore its fastest pass. If even the fastest passes
were interrupted, their times are reported, but no ratio of them.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from tqdm import tqdm

from engines.engine import Engine, ModelFormat, load_engine
from engines.startup import measure_startup
from runtime.cpu import core_wait_s, own_cores

# call(function, *arguments) runs the function in a worker process and returns its result
Call = Callable[..., Any]


class InputKind(NamedTuple):
    """The shape of a timed input: texts in a batch, tokens in a text (None: the text's own
    length)."""

    batch: int
    tokens: int | None


INPUT_KINDS = {  # by the column that the time fills
    "latency_ms_p50": InputKind(1, None),
    "latency_ms_p50_len32": InputKind(1, 32),
    "latency_ms_p50_len128": InputKind(1, 128),
    "throughput": InputKind(32, None),
    "throughput_len32": InputKind(32, 32),
    "throughput_len128": InputKind(32, 128),
    "tokenize_ms": InputKind(1, None),
}

TIMING_COLUMNS = (
    *INPUT_KINDS,
    "latency_ms_p95",
    "latency_ms_min",
    "latency_ms_cpu",
    "spread",
    "best_wait",
    "core_wait",
    "other_load",
    "steady",
    "load_s",
    "rss_mb",
    "threads",
    "speedup_torch",
    "speedup_engine",
)

BUDGET_S = (
    2.0  # at most, per format and kind of input; after it, only the minimum of rounds is completed
)
WARM_UP_S = 0.5  # maximum per burst
MIN_WARM_UP_S = 0.02
STEADY_SPREAD = 1.25  # maximum of median / min over the passes of one input
STEADY_CORE_WAIT = 0.05  # maximum fraction of the time that ready threads waited for a core
STEADY_OTHER_LOAD = 0.1  # maximum fraction of all cores that other processes used
MAX_BEST_WAIT = 0.1  # maximum fraction of the fastest passes in which a thread lacked a core
BUSY_TIMES = ("user", "nice", "system", "irq", "softirq", "steal", "interrupt", "dpc")
MAX_IDLE_CHECKS = 250
IDLE_CHECK_S = 0.002
IDLE_CPU_S = 0.0005  # CPU time within a check below which the process counts as idle


class TimingPlan(NamedTuple):
    """How long one kind of input is timed."""

    inputs: int  # per burst
    passes: int  # timed passes over each input, after one that is not timed
    min_rounds: int  # regardless of the time that they take
    max_rounds: int  # if BUDGET_S suffices


TIMING_PLANS = {  # by the number of texts in a batch
    1: TimingPlan(inputs=5, passes=4, min_rounds=3, max_rounds=12),
    32: TimingPlan(inputs=1, passes=2, min_rounds=2, max_rounds=6),
}

# State of a worker process: format -> kind of input -> the calls to time. It is a global because a
# loaded model cannot be passed between the calls of a process pool; the parent's stays empty.
TIMED_CALLS: dict[str, dict[str, list[Callable[[], object]]]] = {}


class Pass(NamedTuple):
    """One timed forward pass."""

    seconds: float  # wall-clock time
    cpu_s: float  # CPU time of all threads of the process
    wait_s: float  # time that ready threads of the process waited for a core; 0 except on Linux


@dataclass(frozen=True)
class Burst:
    """Timed passes over a few inputs of one format."""

    passes: list[list[Pass]]  # [inputs][passes]
    elapsed_s: float  # of the whole burst without warm-up
    core_wait_s: float  # seconds within it that ready threads waited for a core
    other_s: float  # CPU seconds within it of other processes, on all cores of this process

    @property
    def seconds(self) -> list[list[float]]:
        """The wall-clock seconds of each pass [inputs][passes]."""
        return [[one.seconds for one in passes] for passes in self.passes]


def measure(
    formats: list[ModelFormat],
    texts: list[str],
    max_length: int,
    device: str,
    seed: int,
    threads: int | None = None,
    kinds: Collection[str] = tuple(INPUT_KINDS),
    *,
    with_startup: bool = True,
    budget_s: float = math.inf,
) -> dict[str, dict[str, Any]]:
    """Format name -> the columns of `timing_metrics` and `measure_startup`, and `threads`.

    All engines use the same number of threads, by default torch's. `kinds` are keys of INPUT_KINDS;
    `latency_ms_p50` must be among them. `with_startup=False` leaves out load time and memory. After
    `budget_s` seconds, every kind of input gets only its minimum of rounds. The linear baseline has
    no tokenizer, so its time includes the vectorizer.
    """
    import torch

    threads = threads or torch.get_num_threads()
    num_texts = min(len(texts), 32 * TIMING_PLANS[32].max_rounds)
    sample = random.Random(seed).sample(texts, num_texts)
    deadline_s = time.perf_counter() + budget_s
    startups = {}
    if with_startup:
        for model_format in tqdm(formats, desc="benchmark, fresh processes", leave=False):
            startups[model_format.name] = measure_startup(
                model_format, sample, max_length, threads, device
            )
    bursts = time_formats(formats, sample, max_length, device, threads, kinds, deadline_s)
    rows = {}
    for model_format in formats:
        row = timing_metrics(bursts[model_format.name], threads)
        rows[model_format.name] = row | startups.get(model_format.name, {}) | {"threads": threads}
    return rows


def time_formats(
    formats: list[ModelFormat],
    texts: list[str],
    max_length: int,
    device: str,
    threads: int,
    kinds: Collection[str],
    deadline_s: float = math.inf,
) -> dict[str, dict[str, list[Burst]]]:
    """Format name -> kind of input -> bursts. A kind that a format cannot be timed on is absent.

    The time until `deadline_s` (of `perf_counter`) is shared equally by the kinds.
    """
    calls: dict[str, Call] = {}
    available: dict[str, list[str]] = {}
    bursts: dict[str, dict[str, list[Burst]]] = {entry.name: {} for entry in formats}
    with engine_processes({entry.engine for entry in formats}) as processes:
        for entry in tqdm(formats, desc="benchmark, load", leave=False):
            call = processes[entry.engine]
            calls[entry.name] = call
            available[entry.name] = call(
                prepare_format,
                entry.name,
                entry.directory,
                entry.format_name,
                texts,
                max_length,
                threads,
                device,
            )
        for position, kind in enumerate(kinds):
            timed = {name: call for name, call in calls.items() if kind in available[name]}
            left_s = (deadline_s - time.perf_counter()) / (len(kinds) - position)
            for name, bursts_of_kind in time_interleaved(timed, kind, left_s).items():
                bursts[name][kind] = bursts_of_kind
    return bursts


@contextmanager
def engine_processes(engines: set[str]) -> Iterator[dict[str, Call]]:
    """Engine -> the `call` of its own worker process."""
    from runtime.worker import measuring_process

    with ExitStack() as stack:
        yield {engine: stack.enter_context(measuring_process()) for engine in sorted(engines)}


def time_interleaved(
    calls: dict[str, Call], kind: str, budget_s: float = math.inf
) -> dict[str, list[Burst]]:
    """Format name -> its bursts. Every round visits all formats once, with the same inputs.

    `calls` maps each format to the `call` of the process that has it loaded. After `budget_s`
    seconds, and after BUDGET_S per format, only the minimum of rounds is completed.
    """
    plan = TIMING_PLANS[INPUT_KINDS[kind].batch]
    deadline_s = time.perf_counter() + min(budget_s, BUDGET_S * len(calls))
    bursts: dict[str, list[Burst]] = {name: [] for name in calls}
    for turn in tqdm(range(plan.max_rounds), desc=f"benchmark, {kind}", leave=False):
        if turn >= plan.min_rounds and time.perf_counter() > deadline_s:
            break
        for name, call in calls.items():
            bursts[name].append(call(time_burst, name, kind, turn))
    return bursts


def timing_metrics(bursts: dict[str, list[Burst]], threads: int) -> dict[str, Any]:
    """The columns of a format from its bursts by kind of input; None for a kind that was not timed.

    A time is the median over inputs of their fastest passes. `spread` is median / min over the
    passes of one input at batch 1 and the text's own length, as the median over all such inputs;
    `best_wait` is the fraction of the fastest of these passes in which a thread lacked a core
    (`interrupted_s`). `core_wait` is the fraction of all the time in which ready threads waited for
    a core, and `other_load` the fraction of all cores that other processes used. `threads` are
    those of the engine.
    """
    row: dict[str, Any] = dict.fromkeys(INPUT_KINDS)
    for kind, bursts_of_kind in bursts.items():
        batch = INPUT_KINDS[kind].batch
        p50_s = statistics.median(one.seconds for one in fastest_passes(bursts_of_kind))
        row[kind] = 1000 * p50_s if batch == 1 else batch / p50_s
    inputs = seconds_by_input(bursts["latency_ms_p50"])
    fastest = fastest_passes(bursts["latency_ms_p50"])
    passes_s = np.concatenate(inputs)
    row["latency_ms_p95"] = 1000 * float(np.percentile(passes_s, 95))
    row["latency_ms_min"] = 1000 * float(passes_s.min())
    row["latency_ms_cpu"] = 1000 * statistics.median(one.cpu_s for one in fastest)
    row["spread"] = statistics.median(statistics.median(passes) / min(passes) for passes in inputs)
    interrupted = sum(interrupted_s(one, threads) for one in fastest)
    row["best_wait"] = interrupted / sum(one.seconds for one in fastest)
    every_burst = [burst for bursts_of_kind in bursts.values() for burst in bursts_of_kind]
    elapsed_s = sum(burst.elapsed_s for burst in every_burst)
    row["core_wait"] = sum(burst.core_wait_s for burst in every_burst) / elapsed_s
    other_s = sum(burst.other_s for burst in every_burst)
    row["other_load"] = max(0.0, other_s) / elapsed_s / len(own_cores())
    row["steady"] = is_steady(row["spread"], row["core_wait"], row["other_load"])
    return row


def fastest_passes(bursts: list[Burst]) -> list[Pass]:
    """The fastest pass over each timed input, of all bursts together."""
    fastest = []
    for burst in bursts:
        for passes in burst.passes:
            fastest.append(min(passes, key=attrgetter("seconds")))
    return fastest


def interrupted_s(one: Pass, threads: int) -> float:
    """Seconds of a pass in which its threads lacked a core.

    A single thread computes all the time, so it is wall-clock time minus CPU time. Several threads
    wait for each other; their waiting for a core is counted by the kernel, with some of the time
    around the pass, so that short passes count as interrupted earlier. It is at most the pass.
    """
    if threads == 1:
        return max(0.0, one.seconds - one.cpu_s)
    return min(max(0.0, one.wait_s), one.seconds)


def seconds_by_input(bursts: list[Burst]) -> list[list[float]]:
    """The seconds of each pass, as one list per timed input, of all bursts together."""
    inputs: list[list[float]] = []
    for burst in bursts:
        inputs += burst.seconds
    return inputs


def is_steady(spread: float, core_wait: float, other_load: float) -> bool:
    """Whether the machine was quiet: passes took about equally long, no thread waited for a core,
    and other processes did little."""
    return (
        spread <= STEADY_SPREAD
        and core_wait <= STEADY_CORE_WAIT
        and other_load <= STEADY_OTHER_LOAD
    )


def speedup(baseline: dict[str, Any], times: dict[str, Any]) -> float | None:
    """How many times faster a format is than the baseline; None if the times do not tell.

    They do not if the fastest passes of either were interrupted by other processes.
    """
    if max(baseline["best_wait"], times["best_wait"]) > MAX_BEST_WAIT:
        return None
    return baseline["latency_ms_p50"] / times["latency_ms_p50"]


def add_speedups(
    rows: dict[str, dict],
    times: dict[str, dict],
    baselines: dict[str, str],
    engines: dict[str, str],
) -> None:
    """Add to each row its times and its speedups over the fp32 teacher: in torch, and in its own
    engine.

    `engines` maps row -> engine; `baselines` maps engine -> the timed format that is the fp32
    teacher in it. `speedup_engine` is None if the teacher has no format in that engine (the linear
    baseline); both are None if the machine was too busy for a ratio.
    """
    for name, row in rows.items():
        row |= times[name]
        row["speedup_torch"] = speedup(times[baselines["torch"]], times[name])
        row["speedup_engine"] = None
        if engines[name] in baselines:
            row["speedup_engine"] = speedup(times[baselines[engines[name]]], times[name])


# The functions below run in the worker process of an engine.


def prepare_format(
    name: str,
    directory: Path,
    format_name: str,
    texts: list[str],
    max_length: int,
    threads: int,
    device: str,
) -> list[str]:
    """Load a format into this process and tokenize its inputs; returns the kinds of input to time
    it on.

    Fixed lengths above `max_length` are left out, and for the linear baseline all fixed lengths and
    the tokenization.
    """
    engine = load_engine(directory, format_name, max_length, threads, device)
    calls = {}
    for kind, (batch, tokens) in INPUT_KINDS.items():
        is_tokenizing = kind == "tokenize_ms"
        if tokens is not None and tokens > max_length:
            continue
        if format_name == "linear" and (tokens is not None or is_tokenizing):
            continue
        batches = input_batches(texts, batch, tokens)
        if is_tokenizing:
            calls[kind] = [partial(engine.encode, batch_texts) for batch_texts in batches]
        else:
            calls[kind] = [forward_call(engine, batch_texts, tokens) for batch_texts in batches]
    TIMED_CALLS[name] = calls
    return list(calls)


def forward_call(engine: Engine, texts: list[str], tokens: int | None) -> Callable[[], object]:
    """A function without arguments that runs the forward pass on the tokenized texts."""
    return partial(engine.forward, cut_to_length(engine.encode(texts), tokens))


def input_batches(texts: list[str], batch: int, tokens: int | None) -> list[list[str]]:
    """The batches of one kind of input: enough for all rounds; for a fixed length a single one,
    whose texts are long enough to be cut."""
    if tokens is not None:
        words: list[str] = []
        for text in texts:
            words += text.split()
        endless_words = cycle(words)
        return [[" ".join(islice(endless_words, 2 * tokens)) for _ in range(batch)]]
    plan = TIMING_PLANS[batch]
    endless_texts = cycle(texts)
    return [list(islice(endless_texts, batch)) for _ in range(plan.inputs * plan.max_rounds)]


def cut_to_length(batch: Any, tokens: int | None) -> Any:
    """A tokenized batch [rows, longest] cut to `tokens` columns; its last one ([SEP]) is kept.

    Unchanged if `tokens` is None.
    """
    if tokens is None:
        return batch
    cut = {}
    for name, values in batch.items():
        last = values.shape[1] - 1
        cut[name] = values[:, [*range(tokens - 1), last]]
    return type(batch)(cut)


def time_burst(name: str, kind: str, turn: int) -> Burst:
    """Time the next few inputs of a loaded format, after a warm-up; return when the cores are
    idle."""
    calls = TIMED_CALLS[name][kind]
    plan = TIMING_PLANS[INPUT_KINDS[kind].batch]
    first = turn * plan.inputs
    chosen = [calls[(first + offset) % len(calls)] for offset in range(plan.inputs)]
    warm_up(chosen[0])
    start_s = time.perf_counter()
    waited_before_s = core_wait_s()
    other_before_s = other_cpu_s()
    passes = [time_passes(call, plan.passes) for call in chosen]
    elapsed_s = time.perf_counter() - start_s
    waited_s = core_wait_s() - waited_before_s
    other_s = other_cpu_s() - other_before_s
    wait_until_idle()
    return Burst(passes, elapsed_s, waited_s, other_s)


def time_passes(call: Callable[[], object], passes: int) -> list[Pass]:
    """Times of each pass, after one that is not timed."""
    time_pass(call)
    return [time_pass(call) for _ in range(passes)]


def time_pass(call: Callable[[], object]) -> Pass:
    """The times of one call."""
    waited_before_s = core_wait_s()
    cpu_before_s = time.process_time()
    start_s = time.perf_counter()
    call()
    seconds = time.perf_counter() - start_s
    cpu_s = time.process_time() - cpu_before_s
    return Pass(seconds, cpu_s, core_wait_s() - waited_before_s)


def other_cpu_s() -> float:
    """CPU seconds on the cores of this process that were not its own: other processes, and the
    host (steal). Counted in ticks of 10 ms on Linux."""
    cores = psutil.cpu_times(percpu=True)
    busy_s = 0.0
    for core in own_cores():
        if core < len(cores):
            times = cores[core]._asdict()
            busy_s += sum(times[name] for name in BUSY_TIMES if name in times)
    return busy_s - time.process_time()


def warm_up(call: Callable[[], object]) -> None:
    """Repeat a call for MIN_WARM_UP_S, and until threads no longer wait for a core, at most
    WARM_UP_S.

    The kernel of a virtual machine may wake a thread pool on a single core; it takes about 0.1 s
    until the threads are spread over the cores.
    """
    deadline_s = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < deadline_s:
        start_s = time.perf_counter()
        waited_before_s = core_wait_s()
        while time.perf_counter() - start_s < MIN_WARM_UP_S:
            call()
        waited_s = core_wait_s() - waited_before_s
        if waited_s <= STEADY_CORE_WAIT * (time.perf_counter() - start_s):
            return


def wait_until_idle() -> None:
    """Wait until the thread pools of this process sleep, at most half a second.

    After a pass, threads of ONNX Runtime spin for 34 ms and those of OpenMP for 3-7 ms (measured;
    longer on some CPUs) and would take a core from the next engine. The engines keep their default
    settings, as in normal use.
    """
    for _ in range(MAX_IDLE_CHECKS):
        used_s = time.process_time()
        time.sleep(IDLE_CHECK_S)
        if time.process_time() - used_s < IDLE_CPU_S:
            return
