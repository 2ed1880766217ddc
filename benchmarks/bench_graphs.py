"""Bytes of exported forms, and the memory of static calibration: random weights, real shapes.

`python scripts/bench_graphs.py` writes every graph of a model shaped like `distilbert-base-multilingual-cased` and
prints its bytes as a share of the fp32 graph's; then calibrates a BERT-base shape on few and on 10,000 texts, each in a
fresh process, and prints the peak memory above the process that has loaded the libraries.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from bench_pruning import TASK, wordpiece
from pair_sizes import STUDENT
from transformers import AutoModelForSequenceClassification, BertConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from engines import graphs
from engines.engine import serving_files
from export import GRAPHS
from runtime.artifacts import measure_cost
from runtime.worker import measuring_process

MOST = {8: 0.26, 4: 0.14}  # bits -> largest share of the fp32 graph's bytes
MOST_MIB = 1024  # above the fp32 model
CALIBRATED = {"onnx-static": graphs.onnx_static, "openvino-int8": graphs.openvino_int8}


def write_model(config, folder: Path) -> None:
    """A checkpoint of random weights with a tokenizer, and its fp32 graph beside it."""
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    wordpiece(config.vocab_size).save_pretrained(folder)
    graphs.write_onnx(folder, folder / "source.onnx")


def texts_of(count: int) -> list[str]:
    """Random texts of 5 to 40 words of the tokenizer."""
    rng = random.Random(0)
    words = [word for word in wordpiece(BertConfig().vocab_size).get_vocab() if word.isalpha()]
    return [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(count)]


def sizes(folder: Path) -> None:
    """Print the bytes of every form as a share of its engine's fp32 form."""
    write_model(STUDENT, folder)
    calibration = ["a b c", "d e f"] * 4
    whole: dict[str, int] = {}
    for row, graph in GRAPHS.items():
        (folder / graph.form).parent.mkdir(exist_ok=True)
        graph.write(
            folder / "source.onnx",
            folder / graph.form,
            graphs.Calibration(folder, calibration, 64),
            (),
        )
        total = sum(path.stat().st_size for path in serving_files(folder, graph.form))
        share = total / whole.setdefault(row.split("-")[0], total)
        limit = f" (at most {MOST[graph.bits]:.0%})" if graph.bits in MOST else ""
        print(f"{row}: {total / 1e6:.1f} MB, {share:.1%}{limit}", flush=True)


def calibrate(row: str, folder: str, count: int) -> tuple[float, float, float]:
    """Seconds, and resident memory (MiB) before and at its peak, of one calibration."""
    before = psutil.Process().memory_info().rss / 2**20
    start, texts = time.perf_counter(), texts_of(count)
    with measure_cost() as cost:
        CALIBRATED[row](
            Path(folder) / "source.onnx",
            Path(folder) / f"{row}.xml",
            graphs.Calibration(Path(folder), texts, 128),
            (),
        )
    return time.perf_counter() - start, before, cost["peak_memory_mb"]


def memory(folder: Path, count: int) -> None:
    """Print the peak of calibrating on few texts and on many."""
    write_model(BertConfig(**TASK.config()), folder)
    model = (folder / "source.onnx").stat().st_size / 2**20
    print(f"BERT-base, fp32 graph of {model:.0f} MiB", flush=True)
    for row in CALIBRATED:
        for texts in (16, count):
            with measuring_process() as call:
                seconds, before, peak = call(calibrate, row, str(folder), texts)
            print(
                f"{row}, {texts} texts: {seconds:.0f} s, peak {peak:.0f} MiB, {peak - before - model:.0f} MiB above "
                f"process and model (at most {MOST_MIB})",
                flush=True,
            )


def main() -> None:
    """Both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=10_000, help="texts to calibrate on")
    count = parser.parse_args().texts
    with tempfile.TemporaryDirectory() as folder:
        for name in ("sizes", "memory"):
            (Path(folder) / name).mkdir()
        sizes(Path(folder) / "sizes")
        memory(Path(folder) / "memory", count)


if __name__ == "__main__":
    main()
