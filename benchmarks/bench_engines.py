"""Our int8 graphs against what a plain user can serve the same model with: random weights, real lengths of texts.

`python scripts/bench_engines.py FILE [--out DIR] [--rounds 12] [--shapes minilm bert-base] [--threads 1 2]`. FILE is
labelled; its texts train the tokenizer, calibrate, and give the real lengths. All forms of a shape are timed in one
run, in turn, each engine in a process of its own. Prints min and median of every form, and two ratios of each cell:
torch fp32 / our fastest int8, and the fastest peer / our fastest int8; then a summary and a Markdown table. Peers are
served with their defaults but for the number of threads, and start from the same fp32 graph as ours; weights and
ranges do not change a time.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peers import plain_dynamic, plain_nncf
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, BertConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import benchmark
from compression_config import UserError
from corpus.columns import detect_text_column
from corpus.readers import read_file
from encoders.scratch import train_wordpiece
from engines import graphs
from engines.engine import Engine, engine_name, graph_engine, load_engine
from export import GRAPHS
from reporting.results import aligned_table
from runtime.logs import set_up_process
from task import Task

Loader = Callable[
    [Path, str, int, int, str], Engine
]  # (directory, form, tokens of a text, threads, device)

SHAPES = {  # layers, width, heads, feed-forward neurons
    "minilm": (6, 384, 12, 1536),
    "bert-base": (12, 768, 12, 3072),
    "tiny": (2, 64, 1, 256),
}
VOCABULARY = 30_522
MAX_LENGTH = 128
CALIBRATION_TEXTS = 128
LEAST_ROUNDS, BUDGET_S = 4, 240  # a cell that has taken this long ends after its least rounds
FEWEST_ROUNDS = 3
GOAL = 4.0  # torch fp32 / ours, at batch 1
KINDS = {
    "latency_ms_p50_len32": "32",
    "latency_ms_p50_len128": "128",
    "latency_ms_p50": "real",
    "throughput_len32": "32",
    "throughput_len128": "128",
    "throughput": "real",
}  # benchmark's kind -> tokens
INPUTS = ["input_ids", "attention_mask"]


def load_bfloat16(folder: Path, form: str, max_length: int, threads: int, device: str) -> Engine:
    """The checkpoint as `model.to(bfloat16)`."""
    torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(folder).to(torch.bfloat16).eval()

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return (
                model(**{name: torch.from_numpy(batch[name]) for name in INPUTS})
                .logits.float()
                .numpy()
            )

    return graph_engine(folder, max_length, INPUTS, run)


def load_openvino_plain(
    folder: Path, form: str, max_length: int, threads: int, device: str
) -> Engine:
    """A graph as `compile_model` takes it: where the CPU has bf16, floats are computed in that."""
    import openvino

    compiled = openvino.Core().compile_model(
        folder / form, "CPU", {"INFERENCE_NUM_THREADS": threads}
    )
    request, output = compiled.create_infer_request(), compiled.output(0)
    return graph_engine(
        folder, max_length, INPUTS, lambda batch: request.infer(batch)[output].copy()
    )


class Contender(NamedTuple):
    """A form that is timed: what it is read from, and how."""

    form: str
    load_engine: Loader = load_engine

    @property
    def engine(self) -> str:
        """Whose process holds it."""
        return engine_name(self.form)


REFERENCE = "torch fp32"
PEERS = {
    REFERENCE: Contender("torch"),
    "torch bf16": Contender("torch", load_bfloat16),
    "onnxruntime fp32": Contender(GRAPHS["onnx"].form),
    "onnxruntime quantize_dynamic": Contender("onnx/plain_dynamic.onnx"),
    "openvino fp32": Contender(GRAPHS["openvino"].form, load_openvino_plain),
    "nncf quantize": Contender("openvino/plain_nncf.xml", load_openvino_plain),
}
OURS = {row: Contender(GRAPHS[row].form) for row in ("onnx-int8", "onnx-static", "openvino-int8")}
CONTENDERS = PEERS | OURS


def texts_of(path: str) -> list[str]:
    """The texts of a labelled file that are not blank, in its order."""
    table = read_file(path, "FILE")
    return [text for text in table[detect_text_column(table)].to_pylist() if text and text.strip()]


def write_shape(shape: str, texts: list[str], folder: Path) -> None:
    """A checkpoint of random weights and all its graphs."""
    layers, width, heads, neurons = SHAPES[shape]
    tokenizer = train_wordpiece(texts, MAX_LENGTH)
    config = BertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=neurons,
        pad_token_id=tokenizer.pad_token_id,
        **Task(("0", "1"), False).config(),
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    graphs.write_graphs(folder)
    source, chosen = (
        folder / GRAPHS["onnx"].form,
        random.Random(0).sample(texts, min(len(texts), CALIBRATION_TEXTS)),
    )
    calibration = graphs.Calibration(folder, chosen, MAX_LENGTH)
    plain_dynamic(source, folder / PEERS["onnxruntime quantize_dynamic"].form)
    plain_nncf(source, folder / PEERS["nncf quantize"].form, calibration)
    for row in OURS:
        GRAPHS[row].write(source, folder / GRAPHS[row].form, calibration, ())


def prepare(name: str, folder: Path, texts: list[str], threads: int) -> None:
    """Load a form into this process, and tokenize the inputs that `benchmark.burst` will time it on."""
    contender = CONTENDERS[name]
    served = contender.load(folder, contender.form, MAX_LENGTH, threads, "cpu")
    benchmark.TIMED_CALLS[name] = {
        kind: [
            partial(served.forward, benchmark.cut_to_length(served.encode(chunk), tokens))
            for chunk in benchmark.input_batches(texts, batch, tokens)
        ]
        for kind, (batch, tokens) in benchmark.INPUT_KINDS.items()
        if kind in KINDS
    }


class Cell(NamedTuple):
    """One kind of input on one shape with so many threads: the milliseconds of each form in each round (mean over its
    inputs, of each the median pass), and of its fastest pass; and the share of the time that threads lacked a core."""

    shape: str
    threads: int
    batch: int
    tokens: str
    rounds_ms: dict[str, list[float]]
    min_ms: dict[str, float]
    core_wait: float

    @property
    def title(self) -> str:
        """What was timed, in words."""
        return f"{self.shape}, threads {self.threads}, batch {self.batch}, tokens {self.tokens}"


class Ratio(NamedTuple):
    """How much faster `under` is than `over`: the median of the rounds' ratios, and their noise, half of what is
    between the quartiles as a share of the median; it knows nothing of how two starts of a process differ."""

    over: str
    under: str
    median: float
    noise: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ±{100 * self.noise:.1f} %"


def fastest(cell: Cell, names: dict[str, Contender]) -> str:
    """The form with the least median."""
    return min(names, key=lambda name: statistics.median(cell.rounds_ms[name]))


def ratio(cell: Cell, over: str) -> Ratio:
    """`over` against our fastest, round by round, so that a slow moment of the machine hits both."""
    ours = fastest(cell, OURS)
    found = np.divide(cell.rounds_ms[over], cell.rounds_ms[ours])
    low, median, high = (float(value) for value in np.percentile(found, (25, 50, 75)))
    return Ratio(over, ours, median, (high - low) / 2 / median)


def against_torch(cell: Cell) -> Ratio:
    """torch fp32 / our fastest."""
    return ratio(cell, REFERENCE)


def against_peer(cell: Cell) -> Ratio:
    """The fastest peer / our fastest."""
    return ratio(cell, fastest(cell, PEERS))


def loses(cell: Cell) -> bool:
    """Whether the fastest peer is faster by more than the noise."""
    found = against_peer(cell)
    return found.median * (1 + found.noise) < 1


def timed_rounds(
    call: dict[str, Callable], kind: str, rounds: int
) -> dict[str, list[benchmark.Burst]]:
    """Form -> its bursts; every round visits all forms once, with the same inputs, starting one form further on."""
    found: dict[str, list[benchmark.Burst]] = {name: [] for name in call}
    names, end = list(call), time.perf_counter() + BUDGET_S
    for turn in range(rounds):
        if turn >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(call[name](benchmark.time_burst, name, kind, turn))
    return found


def cell_of(shape: str, threads: int, kind: str, bursts: dict[str, list[benchmark.Burst]]) -> Cell:
    """What the bursts of all forms come to."""
    rounds = {
        name: [1000 * statistics.mean(map(statistics.median, one.seconds)) for one in found]
        for name, found in bursts.items()
    }
    least = {
        name: 1000 * min(min(passes) for one in found for passes in one.seconds)
        for name, found in bursts.items()
    }
    every = [one for found in bursts.values() for one in found]
    core_wait = sum(one.core_wait_s for one in every) / sum(one.elapsed_s for one in every)
    return Cell(
        shape, threads, benchmark.INPUT_KINDS[kind][0], KINDS[kind], rounds, least, core_wait
    )


def measure(
    shape: str, folder: Path, texts: list[str], threads: int, rounds: int
) -> Iterator[Cell]:
    """Every cell of a shape and number of threads, as soon as it is timed."""
    with benchmark.engine_processes(
        {contender.engine for contender in CONTENDERS.values()}
    ) as processes:
        call = {name: processes[contender.engine] for name, contender in CONTENDERS.items()}
        for name in tqdm(call, desc=f"load {shape}", leave=False):
            call[name](prepare, name, folder, texts, threads)
        for kind in tqdm(KINDS, desc=f"{shape}, threads {threads}", leave=False):
            yield cell_of(shape, threads, kind, timed_rounds(call, kind, rounds))


def describe(cell: Cell) -> str:
    """A cell as it is printed while others are timed."""
    rows = [["", "min (ms)", "median (ms)"]]
    rows += [
        [name, f"{cell.min_ms[name]:.2f}", f"{statistics.median(found):.2f}"]
        for name, found in cell.rounds_ms.items()
    ]
    found = [
        f"{one.over} / {one.under}: {one}" for one in (against_torch(cell), against_peer(cell))
    ]
    busy = "\nthe machine was busy: do not trust this cell" if is_busy(cell) else ""
    count = len(cell.rounds_ms[REFERENCE])
    return (
        f"{cell.title}, rounds {count}\n{aligned_table(rows)}\n{found[0]}\n{found[1]}"
        f"{', OURS LOSES' if loses(cell) else ''}{busy}\n"
    )


def is_busy(cell: Cell) -> bool:
    """Whether others held our cores."""
    return cell.core_wait > benchmark.STEADY_CORE_WAIT


def markdown(cells: list[Cell]) -> str:
    """A row per cell: median (min) ms of every form, and both ratios; `*` marks a busy machine, bold a loss."""
    lines = [
        [
            "shape",
            "threads",
            "batch",
            "tokens",
            *CONTENDERS,
            "torch fp32 / ours",
            "best peer / ours",
        ]
    ]
    lines.append(["---"] + ["--:"] * (len(lines[0]) - 1))
    for cell in cells:
        peer, mark = against_peer(cell), "**" if loses(cell) else ""
        times = [
            f"{statistics.median(found):.2f} ({cell.min_ms[name]:.2f})"
            for name, found in cell.rounds_ms.items()
        ]
        lines.append(
            [
                cell.shape + (" *" if is_busy(cell) else ""),
                str(cell.threads),
                str(cell.batch),
                cell.tokens,
                *times,
                f"{against_torch(cell)} ({peer.under})",
                f"{mark}{peer}{mark} ({peer.over})",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(cells: list[Cell]) -> str:
    """In how many cells the goal at batch 1 holds, and in how many ours is not slower than the fastest peer."""
    alone = [against_torch(cell).median for cell in cells if cell.batch == 1]
    reached, lost = (
        sum(found >= GOAL for found in alone),
        [cell.title for cell in cells if loses(cell)],
    )
    busy = sum(map(is_busy, cells))
    lines = [
        f"batch 1, {REFERENCE} / ours at least {GOAL:.0f}: {reached} of {len(alone)} cells "
        f"(least {min(alone):.2f})",
        f"ours not slower than the fastest peer beyond noise: {len(cells) - len(lost)} of {len(cells)} cells",
        *(f"slower: {title}" for title in lost),
    ]
    return "\n".join(lines + ([f"busy machine: {busy} of {len(cells)} cells"] if busy else []))


def parse_options() -> argparse.Namespace:
    """The command line, checked before anything is written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE", help="a labelled file")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="keep the models and times.json there (default: not)",
    )
    parser.add_argument(
        "--rounds", metavar="INT", type=int, default=12, help="most rounds of a cell (default: 12)"
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["minilm", "bert-base"])
    parser.add_argument("--threads", metavar="INT", nargs="+", type=int, default=[1, 2])
    options = parser.parse_args()
    if options.rounds < FEWEST_ROUNDS:
        parser.error(
            f"--rounds is {options.rounds}, but must be at least {FEWEST_ROUNDS}: noise is their spread"
        )
    if min(options.threads) < 1:
        parser.error(f"--threads is {min(options.threads)}, but must be at least 1")
    for shape in options.shapes:
        if options.out and (options.out / shape).exists():
            parser.error(f"--out is {options.out}, but must not hold {shape} already")
    return options


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Write and time all shapes, and print what was found."""
    texts = texts_of(options.file)
    lengths = random.Random(0).sample(texts, min(len(texts), 32 * benchmark.TIMING_PLANS[32].most))
    about = benchmark.machine_description() | {
        name: version(name) for name in ("torch", "onnxruntime", "openvino", "nncf")
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    cells: list[Cell] = []
    for shape in options.shapes:
        (folder / shape).mkdir(parents=True)
        write_shape(shape, texts, folder / shape)
        for threads in options.threads:
            for cell in measure(shape, folder / shape, lengths, threads, options.rounds):
                cells.append(cell)
                print(describe(cell), flush=True)
                found = {"machine": about, "cells": [one._asdict() for one in cells]}
                (folder / "times.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(summary(cells), markdown(cells), sep="\n\n")


def main() -> int:
    """Compare, in a directory that is kept where the command line names one."""
    options = parse_options()
    set_up_process()
    try:
        with tempfile.TemporaryDirectory() as folder:
            compare(options, options.out or Path(folder))
    except UserError as error:
        print(*error.lines, sep="\n", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
