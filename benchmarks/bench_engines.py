"""Latency of the exported int8 formats compared with common alternatives for serving the same
model.

`python -m benchmarks.bench_engines FILE [--out DIR] [--rounds 12] [--shapes minilm bert-base]
[--threads 1 2]`. The models have random weights: weights and quantization ranges do not change a
time. The texts of the labeled FILE train the tokenizer, calibrate, and give the real lengths. All
formats of a shape are timed interleaved in one run, each engine in its own process. The peers
(peers.py) start from the same fp32 graph and use default settings except for the number of threads.

Prints the minimum and median of every format and two ratios per cell: torch fp32 / our fastest int8
format, and the fastest peer / our fastest int8 format; then a summary and a Markdown table.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, BertConfig

from benchmarks import peers
from benchmarks.engine_cells import (
    OUR_FORMATS,
    TOKENS,
    Cell,
    describe,
    make_cell,
    markdown,
    summary,
)
from benchmarks.inputs import BINARY_TASK, MAX_LENGTH, read_texts
from encoders.scratch import train_wordpiece
from engines import graphs, latency
from engines.engine import Engine, engine_name, load_engine
from export import GRAPHS
from runtime.errors import UserError
from runtime.logs import set_up_process
from runtime.machine import machine_description

# (model directory, format, maximum tokens per text, threads, device) -> engine
Loader = Callable[[Path, str, int, int, str], Engine]


class Shape(NamedTuple):
    """The dimensions of a BERT encoder."""

    layers: int
    hidden_size: int
    heads: int
    ffn_width: int


class Contender(NamedTuple):
    """A format that is timed, and what loads it."""

    format_name: str
    load: Loader = load_engine

    @property
    def engine(self) -> str:
        """The engine, whose process serves the format."""
        return engine_name(self.format_name)


SHAPES = {
    "minilm": Shape(6, 384, 12, 1536),
    "bert-base": Shape(12, 768, 12, 3072),
    "tiny": Shape(2, 64, 1, 256),
}
VOCAB_SIZE = 30_522
CALIBRATION_TEXTS = 128
LARGEST_BATCH = 32
BUDGET_S = 240  # a cell that has taken this long ends after ROUNDS_BEYOND_BUDGET rounds
ROUNDS_BEYOND_BUDGET = 4
MIN_ROUNDS = 3  # the noise of a ratio is the spread of its rounds
DYNAMIC_PEER = "onnx/plain_dynamic.onnx"
NNCF_PEER = "openvino/plain_nncf.xml"
CONTENDERS = {
    "torch fp32": Contender("torch"),
    "torch bf16": Contender("torch", peers.load_torch_bfloat16),
    "onnxruntime fp32": Contender(GRAPHS["onnx"].format_name),
    "onnxruntime quantize_dynamic": Contender(DYNAMIC_PEER),
    "openvino fp32": Contender(GRAPHS["openvino"].format_name, peers.load_openvino_with_defaults),
    "nncf quantize": Contender(NNCF_PEER, peers.load_openvino_with_defaults),
    **{name: Contender(GRAPHS[name].format_name) for name in OUR_FORMATS},
}


def write_checkpoint(shape: Shape, texts: list[str], directory: Path) -> None:
    """Write a checkpoint with random weights and a tokenizer trained on `texts`."""
    tokenizer = train_wordpiece(texts, MAX_LENGTH)
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn_width,
        pad_token_id=tokenizer.pad_token_id,
        **BINARY_TASK.config(),
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_formats(texts: list[str], directory: Path) -> None:
    """Add the graphs of all contenders to a checkpoint."""
    graphs.write_graphs(directory)
    source = directory / GRAPHS["onnx"].format_name
    sample = random.Random(0).sample(texts, min(len(texts), CALIBRATION_TEXTS))
    calibration = graphs.Calibration(directory, sample, MAX_LENGTH)
    peers.quantize_dynamic_with_defaults(source, directory / DYNAMIC_PEER)
    peers.nncf_quantize_with_defaults(source, directory / NNCF_PEER, calibration)
    for name in OUR_FORMATS:
        GRAPHS[name].write(source, directory / GRAPHS[name].format_name, calibration, ())


def prepare(name: str, directory: Path, texts: list[str], threads: int) -> None:
    """Load a format into this process and tokenize the inputs of `latency.time_burst`."""
    contender = CONTENDERS[name]
    engine = contender.load(directory, contender.format_name, MAX_LENGTH, threads, "cpu")
    calls: dict[str, list[Callable[[], object]]] = {}
    for kind in TOKENS:
        batch, tokens = latency.INPUT_KINDS[kind]
        chunks = latency.input_batches(texts, batch, tokens)
        calls[kind] = [latency.forward_call(engine, chunk, tokens) for chunk in chunks]
    latency.TIMED_CALLS[name] = calls


def time_rounds(
    calls: dict[str, Callable], kind: str, rounds: int
) -> dict[str, list[latency.Burst]]:
    """Format -> its bursts. Every round times all formats once, with the same inputs.

    Each round starts with another format, so that no format always follows the same one.
    """
    bursts: dict[str, list[latency.Burst]] = {name: [] for name in calls}
    names = list(calls)
    end = time.perf_counter() + BUDGET_S
    for turn in range(rounds):
        if turn >= ROUNDS_BEYOND_BUDGET and time.perf_counter() > end:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            bursts[name].append(calls[name](latency.time_burst, name, kind, turn))
    return bursts


def time_shape(
    shape: str, directory: Path, texts: list[str], threads: int, rounds: int
) -> Iterator[Cell]:
    """Every cell of a shape and thread count, as soon as it is complete."""
    engines = {contender.engine for contender in CONTENDERS.values()}
    with latency.engine_processes(engines) as processes:
        calls = {name: processes[contender.engine] for name, contender in CONTENDERS.items()}
        for name, call in tqdm(calls.items(), desc=f"load {shape}", leave=False):
            call(prepare, name, directory, texts, threads)
        for kind in tqdm(TOKENS, desc=f"{shape}, threads {threads}", leave=False):
            yield make_cell(shape, threads, kind, time_rounds(calls, kind, rounds))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked before anything is written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE", help="a labeled file")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="keep the models and times.json in this directory"
    )
    parser.add_argument(
        "--rounds",
        metavar="INT",
        type=int,
        default=12,
        help="maximum rounds per cell (default: %(default)s)",
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["minilm", "bert-base"])
    parser.add_argument("--threads", metavar="INT", nargs="+", type=int, default=[1, 2])
    options = parser.parse_args(argv)
    if options.rounds < MIN_ROUNDS:
        parser.error(f"--rounds is {options.rounds}, but must be at least {MIN_ROUNDS}")
    if min(options.threads) < 1:
        parser.error(f"--threads is {min(options.threads)}, but must be at least 1")
    for shape in options.shapes:
        if options.out and (options.out / shape).exists():
            parser.error(f"--out is {options.out}, but must not contain {shape} already")
    return options


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Write and time all shapes, and print the cells, the summary and the table."""
    texts = read_texts(options.file)
    timed_count = LARGEST_BATCH * latency.TIMING_PLANS[LARGEST_BATCH].max_rounds
    timed_texts = random.Random(0).sample(texts, min(len(texts), timed_count))
    machine = machine_description()
    for package in ("torch", "onnxruntime", "openvino", "nncf"):
        machine[package] = version(package)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    cells: list[Cell] = []
    for shape in options.shapes:
        directory = folder / shape
        directory.mkdir(parents=True)
        write_checkpoint(SHAPES[shape], texts, directory)
        write_formats(texts, directory)
        for threads in options.threads:
            for cell in time_shape(shape, directory, timed_texts, threads, options.rounds):
                cells.append(cell)
                print(describe(cell), flush=True)
                record = {"machine": machine, "cells": [cell._asdict() for cell in cells]}
                (folder / "times.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(summary(cells), markdown(cells), sep="\n\n")


def main(argv: list[str] | None = None) -> int:
    """Compare, in `--out` or in a temporary directory."""
    options = parse_arguments(argv)
    set_up_process()
    try:
        with tempfile.TemporaryDirectory() as folder:
            compare(options, options.out or Path(folder))
    except UserError as error:
        return error.print_to_stderr("bench_engines.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
