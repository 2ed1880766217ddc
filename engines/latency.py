"""Latency, throughput, start-up time and memory of formats, measured interleaved.

Machine noise then affects all formats equally: every round visits each format once, with the same
input. Each engine has one worker process that keeps its formats loaded. The time is that of the
forward pass of a tokenized batch, on the CPU or a GPU.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from engines.engine import Engine, ModelFormat, load_engine
from engines.startup import measure_startup

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

BUDGET_S = 2.0  # per format and kind of input; after it, only the minimum of rounds is completed
WARM_UP_S = 0.5  # maximum per burst
MIN_WARM_UP_S = 0.02
STEADY_SPREAD = 1.25  # maximum of median / min over the passes of one input
STEADY_CORE_WAIT = 0.05  # maximum fraction of the time that ready threads waited for a core
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


@dataclass(frozen=True)
class Burst:
    """Timed passes over a few inputs of one format."""

    seconds: list[list[float]]  # [inputs][passes]
    elapsed_s: float  # of the whole burst without warm-up
    core_wait_s: float  # seconds within it that ready threads waited for a core


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
) -> dict[str, dict[str, Any]]:
    """Format name -> the columns of `timing_metrics` and `measure_startup`, and `threads`.

    All engines use the same number of threads, by default torch's. `kinds` are keys of INPUT_KINDS;
    `latency_ms_p50` must be among them. `with_startup=False` leaves out load time and memory. The
    linear baseline has no tokenizer, so its time includes the vectorizer.
    """
    import torch

    threads = threads or torch.get_num_threads()
    num_texts = min(len(texts), 32 * TIMING_PLANS[32].max_rounds)
    sample = random.Random(seed).sample(texts, num_texts)
    bursts = time_formats(formats, sample, max_length, device, threads, kinds)
    rows = {}
    for model_format in tqdm(formats, desc="benchmark, fresh processes", leave=False):
        row = timing_metrics(bursts[model_format.name])
        if with_startup:
            row |= measure_startup(model_format, sample, max_length, threads, device)
        row["threads"] = threads
        rows[model_format.name] = row
    return rows


def time_formats(
    formats: list[ModelFormat],
    texts: list[str],
    max_length: int,
    device: str,
    threads: int,
    kinds: Collection[str],
) -> dict[str, dict[str, list[Burst]]]:
    """Format name -> kind of input -> bursts. A kind that a format cannot be timed on is absent."""
    calls: dict[str, Call] = {}
    available: dict[str, list[str]] = {}
    bursts: dict[str, dict[str, list[Burst]]] = {entry.name: {} for entry in formats}
    with engine_processes({entry.engine for entry in formats}) as processes:
        for entry in formats:
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
        for kind in kinds:
            timed = {name: call for name, call in calls.items() if kind in available[name]}
            for name, bursts_of_kind in time_interleaved(timed, kind).items():
                bursts[name][kind] = bursts_of_kind
    return bursts


@contextmanager
def engine_processes(engines: set[str]) -> Iterator[dict[str, Call]]:
    """Engine -> the `call` of its own worker process."""
    from runtime.worker import measuring_process

    with ExitStack() as stack:
        yield {engine: stack.enter_context(measuring_process()) for engine in sorted(engines)}


def time_interleaved(calls: dict[str, Call], kind: str) -> dict[str, list[Burst]]:
    """Format name -> its bursts. Every round visits all formats once, with the same inputs.

    `calls` maps each format to the `call` of the process that has it loaded.
    """
    plan = TIMING_PLANS[INPUT_KINDS[kind].batch]
    deadline_s = time.perf_counter() + BUDGET_S * len(calls)
    bursts: dict[str, list[Burst]] = {name: [] for name in calls}
    for turn in tqdm(range(plan.max_rounds), desc=f"benchmark, {kind}", leave=False):
        if turn >= plan.min_rounds and time.perf_counter() > deadline_s:
            break
        for name, call in calls.items():
            bursts[name].append(call(time_burst, name, kind, turn))
    return bursts


def timing_metrics(bursts: dict[str, list[Burst]]) -> dict[str, Any]:
    """The columns of a format from its bursts by kind of input; None for a kind that was not timed.

    `spread` is median / min over the passes of one input at batch 1 and the text's own length, as
    the median over all such inputs. `core_wait` is the time that ready threads waited for a core,
    as a fraction of all the time.
    """
    row: dict[str, Any] = dict.fromkeys(INPUT_KINDS)
    elapsed_s = 0.0
    waited_s = 0.0
    for kind, bursts_of_kind in bursts.items():
        batch = INPUT_KINDS[kind].batch
        p50_s = statistics.median(np.concatenate(seconds_by_input(bursts_of_kind)).tolist())
        row[kind] = 1000 * p50_s if batch == 1 else batch / p50_s
        elapsed_s += sum(burst.elapsed_s for burst in bursts_of_kind)
        waited_s += sum(burst.core_wait_s for burst in bursts_of_kind)
    inputs = seconds_by_input(bursts["latency_ms_p50"])
    spread = statistics.median(statistics.median(passes) / min(passes) for passes in inputs)
    core_wait = waited_s / elapsed_s
    passes_s = np.concatenate(inputs)
    row["latency_ms_p95"] = 1000 * float(np.percentile(passes_s, 95))
    row["spread"] = spread
    row["latency_ms_min"] = 1000 * float(passes_s.min())
    row["core_wait"] = core_wait
    row["steady"] = is_steady(spread, core_wait)
    return row


def seconds_by_input(bursts: list[Burst]) -> list[list[float]]:
    """The seconds of each pass, as one list per timed input, of all bursts together."""
    inputs: list[list[float]] = []
    for burst in bursts:
        inputs += burst.seconds
    return inputs


def is_steady(spread: float, core_wait: float) -> bool:
    """Whether times can be trusted: passes took about equally long, and the cores were not
    shared."""
    return spread <= STEADY_SPREAD and core_wait <= STEADY_CORE_WAIT


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
    baseline).
    """
    torch_ms = times[baselines["torch"]]["latency_ms_p50"]
    for name, row in rows.items():
        row |= times[name]
        latency_ms = row["latency_ms_p50"]
        row["speedup_torch"] = torch_ms / latency_ms
        row["speedup_engine"] = None
        if engines[name] in baselines:
            baseline = times[baselines[engines[name]]]
            row["speedup_engine"] = baseline["latency_ms_p50"] / latency_ms


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
    seconds = [time_passes(call, plan.passes) for call in chosen]
    elapsed_s = time.perf_counter() - start_s
    waited_s = core_wait_s() - waited_before_s
    wait_until_idle()
    return Burst(seconds, elapsed_s, waited_s)


def time_passes(call: Callable[[], object], passes: int) -> list[float]:
    """Seconds of each pass, after one that is not timed."""
    seconds_of(call)
    return [seconds_of(call) for _ in range(passes)]


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def core_wait_s() -> float:
    """Seconds that threads of this process have been ready to run without a core; 0 except on
    Linux."""
    waited_ns = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has just ended
            waited_ns += int(file.read_text().split()[1])
    return waited_ns / 1e9


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
