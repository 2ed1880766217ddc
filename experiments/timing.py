"""One interleaved benchmark of all formats of a run, so that machine noise affects all of them
equally."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from typing import Any

from engines import latency
from engines.engine import ModelFormat
from engines.graphs import write_graphs
from experiments.stages import StageRunner
from export import GRAPHS
from runtime.artifacts import partial_path, read_record
from runtime.files import link_tree

log = logging.getLogger(__name__)

GRAPH_ENGINES = ("onnx", "openvino")


@dataclass(frozen=True)
class TimedFormat:
    """A format under the name that it is timed by; equal formats of several runs share it."""

    fingerprint: str  # of the stage that wrote it
    format_name: str
    timed_as: ModelFormat


def distinct_formats(runners: list[StageRunner]) -> list[TimedFormat]:
    """Every format of the runs once, each with a unique name."""
    timed: list[TimedFormat] = []
    for runner in runners:
        for model_format in runner.formats:
            if find_timed(timed, model_format) is None:
                renamed = replace(model_format, name=f"{model_format.name} {len(timed)}")
                fingerprint = read_record(model_format.directory)["fingerprint"]
                timed.append(TimedFormat(fingerprint, model_format.format_name, renamed))
    return timed


def find_timed(timed: list[TimedFormat], model_format: ModelFormat) -> TimedFormat | None:
    """The entry of an equal format, if any."""
    fingerprint = read_record(model_format.directory)["fingerprint"]
    for entry in timed:
        if (entry.fingerprint, entry.format_name) == (fingerprint, model_format.format_name):
            return entry
    return None


def teacher_graphs(runner: StageRunner, engines: list[str]) -> dict[str, ModelFormat]:
    """Engine -> the fp32 teacher as a graph of that engine, in a temporary copy of its
    directory."""
    if not engines:
        return {}
    copy = partial_path(runner.directory / "teacher", "graphs")
    shutil.rmtree(copy, ignore_errors=True)
    link_tree(runner.directory / "teacher", copy)
    write_graphs(copy)
    return {
        engine: ModelFormat(f"teacher in {engine}", copy, GRAPHS[engine].format_name)
        for engine in engines
    }


def benchmark_budget_s(runners: list[StageRunner]) -> float:
    """The seconds after which a benchmark takes its minimum of rounds: a quarter of the whole run,
    that is, a third of what the stages took when they were made."""
    seconds = {}
    for runner in runners:
        for row in runner.rows.values():
            seconds[row["directory"]] = row["seconds"]
    return sum(seconds.values()) / 3


def add_empty_times(runners: list[StageRunner]) -> None:
    """Add the columns of the benchmark to all rows, without values."""
    for runner in runners:
        for row in runner.rows.values():
            row |= dict.fromkeys(latency.TIMING_COLUMNS)


def add_times(runners: list[StageRunner]) -> None:
    """Add times and speedups to the rows of runs that share a teacher.

    The fp32 teacher is also timed in each engine that a row uses, as the baseline of that engine.
    """
    first = runners[0]
    timed = distinct_formats(runners)
    used_engines = {entry.timed_as.engine for entry in timed}
    baselines = teacher_graphs(first, sorted(used_engines.intersection(GRAPH_ENGINES)))
    to_time = [entry.timed_as for entry in timed] + list(baselines.values())
    log.info("benchmark: time %d formats, interleaved", len(to_time))
    times = latency.measure(
        to_time,
        first.splits["test"][:]["text"],
        first.options.max_length,
        first.options.device,
        first.options.seed,
        budget_s=benchmark_budget_s(runners),
    )
    baseline_names = {"torch": "teacher"}
    baseline_names |= {engine: graph.name for engine, graph in baselines.items()}
    for runner in runners:
        own_times: dict[str, Any] = {}
        engines = {}
        for model_format in runner.formats:
            own_times[model_format.name] = times[find_timed(timed, model_format).timed_as.name]
            engines[model_format.name] = model_format.engine
        latency.add_speedups(runner.rows, times | own_times, baseline_names, engines)
