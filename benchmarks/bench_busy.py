"""How far other processes move a measured speedup, by the statistic that is reported and by others.

`python -m benchmarks.bench_busy [--rounds 3] [--threads 1]`. A large torch model (8 layers) and a
small ONNX int8 graph (2 layers), both with random weights, are timed as a run times its formats:
on a machine that does nothing else, with one busy core, and with every core busy. A busy core runs
an endless Python loop that is bound to it. Prints the speedup of the small model for each round
and load:

- `median`: the ratio of medians over all passes;
- `fastest`: the ratio of medians over the inputs of their fastest passes, which is reported;
- `CPU`: the same of the CPU time of the fastest passes;
- `reported`: the value in the results of a run, or n/a if the fastest passes were interrupted.

Run it on a machine that does nothing else.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.inputs import BINARY_TASK, MAX_LENGTH, random_splits, random_wordpiece
from engines import graphs, latency
from engines.engine import ModelFormat
from export import GRAPHS
from reporting.results import aligned_table
from runtime.cpu import own_cores
from runtime.logs import set_up_process

VOCAB_SIZE = 8000
LARGE = {"num_hidden_layers": 8, "hidden_size": 384, "intermediate_size": 1536}
SMALL = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 512}
HEADS = 4
NUM_TEXTS = 200
KIND = "latency_ms_p50"
SMALL_GRAPH = "onnx-int8"
BUSY_LOOP = """
import os
import sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    pass
"""
MAX_MOVE = 0.15  # of a reported ratio under load

Figures = dict[str, Any]


@contextmanager
def busy_cores(cores: list[int]) -> Iterator[None]:
    """Every core of the list runs an endless loop during the block."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP, str(core)]) for core in cores]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def write_models(directory: Path) -> tuple[list[ModelFormat], list[str]]:
    """The large and the small model, and texts in their vocabulary."""
    tokenizer = random_wordpiece(VOCAB_SIZE)
    texts = random_splits(list(tokenizer.get_vocab()), NUM_TEXTS)["train"][:]["text"]
    for name, shape in (("large", LARGE), ("small", SMALL)):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCAB_SIZE,
            num_attention_heads=HEADS,
            pad_token_id=tokenizer.pad_token_id,
            **shape,
            **BINARY_TASK.config(),
        )
        BertForSequenceClassification(config).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    small = directory / "small"
    source = directory / "source.onnx"
    graphs.write_onnx(small, source)
    graph = GRAPHS[SMALL_GRAPH]
    (small / "onnx").mkdir()
    calibration = graphs.Calibration(small, texts, MAX_LENGTH)
    graph.write(source, small / graph.format_name, calibration, ())
    formats = [
        ModelFormat("large", directory / "large", "torch"),
        ModelFormat("small", small, graph.format_name),
    ]
    return formats, texts


def median_of_passes(bursts: list[latency.Burst]) -> float:
    """Seconds: the median over all passes."""
    return statistics.median(np.concatenate(latency.seconds_by_input(bursts)).tolist())


def figures_of(formats: list[ModelFormat], texts: list[str], threads: int) -> Figures:
    """The speedup of the small model by each statistic, and how busy the machine was."""
    bursts = latency.time_formats(formats, texts, MAX_LENGTH, "cpu", threads, [KIND])
    rows = {}
    for name, of_format in bursts.items():
        rows[name] = latency.timing_metrics(of_format, threads)
    large, small = rows["large"], rows["small"]
    medians = {name: median_of_passes(of_format[KIND]) for name, of_format in bursts.items()}
    return {
        "median": medians["large"] / medians["small"],
        "fastest": large[KIND] / small[KIND],
        "CPU": large["latency_ms_cpu"] / small["latency_ms_cpu"],
        "reported": latency.speedup(large, small),
        "rows": rows,
    }


def cells_of(load: str, figures: Figures) -> list[str]:
    """A line of the table."""
    cells = [load]
    for name in ("median", "fastest", "CPU", "reported"):
        value = figures[name]
        cells.append("n/a" if value is None else f"{value:.2f}x")
    for row in figures["rows"].values():
        cells += [f"{row[KIND]:.2f}", f"{row['latency_ms_cpu']:.2f}", f"{row['best_wait']:.3f}"]
    small = figures["rows"]["small"]
    cells += [f"{small['other_load']:.2f}", f"{small['core_wait']:.2f}", str(small["steady"])]
    return cells


def largest_move(rounds: list[dict[str, Figures]], statistic: str) -> float | None:
    """The largest |ratio under load / median ratio without load - 1|, of the ratios that are
    reported; None if there is none."""
    quiet = [figures["quiet"][statistic] for figures in rounds]
    reported_quiet = [value for value in quiet if value is not None]
    moves = []
    for loads in rounds:
        for load, figures in loads.items():
            value = figures[statistic]
            if load != "quiet" and value is not None and reported_quiet:
                moves.append(abs(value / statistics.median(reported_quiet) - 1))
    return max(moves, default=None)


def main(argv: list[str] | None = None) -> None:
    """Measure, print one line per round and load, then the largest move of each statistic."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="of each engine (default: 1)")
    options = parser.parse_args(argv)
    set_up_process()
    cores = own_cores()
    loads = {"quiet": [], "first core busy": cores[:1], "last core busy": cores[-1:]}
    loads["every core busy"] = cores
    headings = ["load", "median", "fastest", "CPU", "reported"]
    for name in ("large", "small"):
        headings += [f"{name} ms", "CPU ms", "wait"]
    headings += ["other load", "core wait", "steady"]
    table = [headings]
    rounds = []
    with tempfile.TemporaryDirectory() as directory:
        formats, texts = write_models(Path(directory))
        for _ in range(options.rounds):
            figures = {}
            for load, busy in loads.items():
                with busy_cores(busy):
                    figures[load] = figures_of(formats, texts, options.threads)
                table.append(cells_of(load, figures[load]))
                print("  ".join(table[-1]), file=sys.stderr, flush=True)
            rounds.append(figures)
    print(aligned_table(table))
    for statistic in ("median", "fastest", "CPU", "reported"):
        move = largest_move(rounds, statistic)
        text = "never reported under load" if move is None else f"moved by up to {100 * move:.0f} %"
        print(f"{statistic}: {text}")
    move = largest_move(rounds, "reported")
    print("ok" if move is None or move < MAX_MOVE else "FAILED: a reported ratio moved")


if __name__ == "__main__":
    main()
