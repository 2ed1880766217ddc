"""Bytes of the exported formats and peak memory of static calibration; random weights, real shapes.

`python -m benchmarks.bench_graphs [--texts 10000]`. Part 1 writes every graph of a model with the
shape of `distilbert-base-multilingual-cased` and prints its bytes as a fraction of the fp32
graph's. Part 2 calibrates a model with the shape of BERT base on 16 and on `--texts` texts, each in
a fresh process, and prints the peak memory in excess of the fp32 model and of the process before
calibration.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, PretrainedConfig

from benchmarks.inputs import BINARY_TASK, random_wordpiece
from benchmarks.pair_sizes import STUDENT
from engines.engine import serving_files
from engines.graphs import Calibration, write_onnx
from export import GRAPHS
from runtime.artifacts import measure_cost
from runtime.worker import measuring_process

MAX_SHARE = {8: 0.26, 4: 0.14}  # bits -> largest allowed fraction of the fp32 graph's bytes
MAX_EXTRA_MIB = 1024  # peak memory in excess of the fp32 model
MIB = 2**20
FEW_TEXTS = 16
CALIBRATED_FORMATS = {"onnx-static": "static.onnx", "openvino-int8": "int8.xml"}  # -> file name
SOURCE = "source.onnx"


def write_model(config: PretrainedConfig, directory: Path) -> None:
    """Write a checkpoint with random weights, a tokenizer, and the fp32 ONNX graph."""
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    random_wordpiece(config.vocab_size).save_pretrained(directory)
    write_onnx(directory, directory / SOURCE)


def random_texts(count: int) -> list[str]:
    """Texts of 5 to 40 random words of BERT base's random tokenizer."""
    rng = random.Random(0)
    vocabulary = random_wordpiece(BertConfig().vocab_size).get_vocab()
    words = [token for token in vocabulary if token.isalpha()]
    return [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(count)]


def print_sizes(directory: Path) -> None:
    """Print the bytes of every format as a fraction of the fp32 format of the same engine."""
    write_model(STUDENT, directory)
    calibration = Calibration(directory, ["a b c", "d e f"] * 4, 64)
    fp32_bytes: dict[str, int] = {}  # engine -> bytes; fp32 is the first format of each engine
    for name, graph in GRAPHS.items():
        (directory / graph.format_name).parent.mkdir(exist_ok=True)
        graph.write(directory / SOURCE, directory / graph.format_name, calibration, ())
        total = sum(path.stat().st_size for path in serving_files(directory, graph.format_name))
        engine = name.partition("-")[0]
        share = total / fp32_bytes.setdefault(engine, total)
        limit = ""
        if graph.bits in MAX_SHARE:
            limit = f" (at most {MAX_SHARE[graph.bits]:.0%})"
        print(f"{name}: {total / 1e6:.1f} MB, {share:.1%}{limit}", flush=True)


def calibrate(name: str, directory: Path, count: int) -> tuple[float, float, float]:
    """Write one calibrated graph; (seconds, memory before in MiB, peak memory in MiB)."""
    before_mib = psutil.Process().memory_info().rss / MIB
    start = time.perf_counter()
    texts = random_texts(count)
    target = directory / CALIBRATED_FORMATS[name]
    with measure_cost() as cost:
        calibration = Calibration(directory, texts, 128)
        GRAPHS[name].write(directory / SOURCE, target, calibration, ())
    return time.perf_counter() - start, before_mib, cost["peak_memory_mb"]


def print_memory(directory: Path, count: int) -> None:
    """Print the peak memory of calibration on few and on many texts."""
    write_model(BertConfig(**BINARY_TASK.config()), directory)
    model_mib = (directory / SOURCE).stat().st_size / MIB
    print(f"BERT base, fp32 graph of {model_mib:.0f} MiB", flush=True)
    for name in CALIBRATED_FORMATS:
        for texts in (FEW_TEXTS, count):
            with measuring_process() as call:
                seconds, before_mib, peak_mib = call(calibrate, name, directory, texts)
            extra_mib = peak_mib - before_mib - model_mib
            print(
                f"{name}, {texts} texts: {seconds:.0f} s, peak {peak_mib:.0f} MiB, "
                f"{extra_mib:.0f} MiB in excess of process and model (at most {MAX_EXTRA_MIB})",
                flush=True,
            )


def main(argv: list[str] | None = None) -> None:
    """Measure sizes, then memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--texts", type=int, default=10_000, help="texts to calibrate on (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        sizes_dir = Path(folder) / "sizes"
        memory_dir = Path(folder) / "memory"
        sizes_dir.mkdir()
        memory_dir.mkdir()
        print_sizes(sizes_dir)
        print_memory(memory_dir, options.texts)


if __name__ == "__main__":
    main()
