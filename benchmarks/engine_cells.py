"""Figures and tables of bench_engines.py; a cell is one kind of input, shape and thread count."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engines.latency import INPUT_KINDS, STEADY_CORE_WAIT, Burst
from reporting.results import aligned_table

BASELINE = "torch fp32"
PEERS = (
    BASELINE,
    "torch bf16",
    "onnxruntime fp32",
    "onnxruntime quantize_dynamic",
    "openvino fp32",
    "nncf quantize",
)
OUR_FORMATS = ("onnx-int8", "onnx-static", "openvino-int8")
TOKENS = {  # kind of input of engines/latency.py -> tokens per text
    "latency_ms_p50_len32": "32",
    "latency_ms_p50_len128": "128",
    "latency_ms_p50": "real",
    "throughput_len32": "32",
    "throughput_len128": "128",
    "throughput": "real",
}
MIN_SPEEDUP = 4.0  # goal for torch fp32 / ours at batch 1
MS = 1000  # per second


class Ratio(NamedTuple):
    """How many times longer `slower` takes than `faster`: the median over rounds, and its noise.

    The noise is half the interquartile range as a fraction of the median. It does not include the
    difference between two starts of a process.
    """

    slower: str
    faster: str
    median: float
    noise: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ±{100 * self.noise:.1f} %"


class Cell(NamedTuple):
    """Times of all formats on one kind of input.

    `rounds_ms` maps a format to its milliseconds in each round: the median pass over each input,
    averaged over the inputs. `min_ms` is its fastest pass. `core_wait` is the fraction of the time
    in which runnable threads waited for a core.
    """

    shape: str
    threads: int
    batch: int
    tokens: str
    rounds_ms: dict[str, list[float]]
    min_ms: dict[str, float]
    core_wait: float

    @property
    def title(self) -> str:
        """What was timed."""
        return f"{self.shape}, threads {self.threads}, batch {self.batch}, tokens {self.tokens}"

    @property
    def is_busy(self) -> bool:
        """Whether other processes used the cores, so that the times cannot be trusted."""
        return self.core_wait > STEADY_CORE_WAIT

    def median_ms(self, name: str) -> float:
        """Median over the rounds."""
        return statistics.median(self.rounds_ms[name])

    def fastest(self, names: Sequence[str]) -> str:
        """The format with the lowest median."""
        return min(names, key=self.median_ms)

    def ratio_to_our_fastest(self, name: str) -> Ratio:
        """`name` / our fastest format, per round, so that machine noise affects both equally."""
        our_fastest = self.fastest(OUR_FORMATS)
        ratios = np.divide(self.rounds_ms[name], self.rounds_ms[our_fastest])
        low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
        return Ratio(name, our_fastest, median, (high - low) / 2 / median)

    def ratio_of_baseline(self) -> Ratio:
        """torch fp32 / our fastest format."""
        return self.ratio_to_our_fastest(BASELINE)

    def ratio_of_best_peer(self) -> Ratio:
        """The fastest peer / our fastest format."""
        return self.ratio_to_our_fastest(self.fastest(PEERS))

    @property
    def is_slower_than_peer(self) -> bool:
        """Whether the fastest peer is faster than our fastest format by more than the noise."""
        ratio = self.ratio_of_best_peer()
        return ratio.median * (1 + ratio.noise) < 1


def make_cell(shape: str, threads: int, kind: str, bursts: dict[str, list[Burst]]) -> Cell:
    """The cell of the bursts of all formats, one burst per round."""
    rounds_ms = {}
    min_ms = {}
    wait_s = 0.0
    elapsed_s = 0.0
    for name, rounds in bursts.items():
        rounds_ms[name] = []
        fastest_s = float("inf")
        for burst in rounds:
            medians = [statistics.median(passes) for passes in burst.seconds]
            rounds_ms[name].append(MS * statistics.mean(medians))
            fastest_s = min(fastest_s, *(min(passes) for passes in burst.seconds))
            wait_s += burst.core_wait_s
            elapsed_s += burst.elapsed_s
        min_ms[name] = MS * fastest_s
    batch = INPUT_KINDS[kind].batch
    return Cell(shape, threads, batch, TOKENS[kind], rounds_ms, min_ms, wait_s / elapsed_s)


def describe(cell: Cell) -> str:
    """The text that is printed when a cell is complete."""
    table = [["", "min (ms)", "median (ms)"]]
    for name in cell.rounds_ms:
        table.append([name, f"{cell.min_ms[name]:.2f}", f"{cell.median_ms(name):.2f}"])
    lines = [f"{cell.title}, rounds {len(cell.rounds_ms[BASELINE])}", aligned_table(table)]
    for ratio in (cell.ratio_of_baseline(), cell.ratio_of_best_peer()):
        lines.append(f"{ratio.slower} / {ratio.faster}: {ratio}")
    if cell.is_slower_than_peer:
        lines.append("our fastest format is SLOWER than the fastest peer")
    if cell.is_busy:
        lines.append("the machine was busy: do not trust this cell")
    return "\n".join(lines) + "\n"


def markdown(cells: list[Cell]) -> str:
    """A row per cell: median (min) ms of every format, and both ratios.

    `*` marks a busy machine, bold a cell in which a peer is faster.
    """
    names = [*PEERS, *OUR_FORMATS]
    heading = ["shape", "threads", "batch", "tokens", *names]
    heading += ["torch fp32 / ours", "best peer / ours"]
    table = [heading, ["---", *["--:"] * (len(heading) - 1)]]
    for cell in cells:
        baseline = cell.ratio_of_baseline()
        peer = cell.ratio_of_best_peer()
        bold = "**" if cell.is_slower_than_peer else ""
        busy = " *" if cell.is_busy else ""
        row = [f"{cell.shape}{busy}", str(cell.threads), str(cell.batch), cell.tokens]
        for name in names:
            row.append(f"{cell.median_ms(name):.2f} ({cell.min_ms[name]:.2f})")
        row.append(f"{baseline} ({baseline.faster})")
        row.append(f"{bold}{peer}{bold} ({peer.slower})")
        table.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def summary(cells: list[Cell]) -> str:
    """In how many cells the goal at batch 1 is met, and in how many a peer is faster."""
    speedups = [cell.ratio_of_baseline().median for cell in cells if cell.batch == 1]
    reached = sum(speedup >= MIN_SPEEDUP for speedup in speedups)
    slower = [cell.title for cell in cells if cell.is_slower_than_peer]
    busy = sum(cell.is_busy for cell in cells)
    lines = [
        f"batch 1, {BASELINE} / ours at least {MIN_SPEEDUP:.0f}: {reached} of {len(speedups)} "
        f"cells (minimum {min(speedups):.2f})",
        f"ours not slower than the fastest peer beyond noise: {len(cells) - len(slower)} of "
        f"{len(cells)} cells",
    ]
    lines += [f"slower: {title}" for title in slower]
    if busy:
        lines.append(f"busy machine: {busy} of {len(cells)} cells")
    return "\n".join(lines)
