"""Bytes of the README's pair of models after each step; random weights, so no quality.

`python -m benchmarks.pair_sizes`. The teacher has the shape of BanglaBERT (ELECTRA base, 32,000
tokens). The student has the shape of `distilbert-base-multilingual-cased` (119,547 tokens). Its
vocabulary is trimmed to 12,000 tokens, its feed-forward width is halved, and it is quantized to
int8 in ONNX. Prints a Markdown table of the size of the files that serving needs.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
)

from benchmarks.inputs import BINARY_TASK, random_splits, random_wordpiece
from compression_config import Options
from engines.engine import ModelFormat
from evaluation import size_on_disk
from pruning import narrow_ffn, trim_vocabulary
from quantization import quantize

TEACHER = ElectraConfig(
    vocab_size=32_000,
    embedding_size=768,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    **BINARY_TASK.config(),
)
STUDENT = DistilBertConfig(vocab_size=119_547, **BINARY_TASK.config())
CALIBRATION = {"max_length": 64, "calibration_samples": 32}
TEACHER_ROW = "teacher, BanglaBERT's shape"
ROWS = {  # row of the table -> (step, engine)
    TEACHER_ROW: ("teacher", "torch"),
    "student, mDistilBERT's shape": ("student", "torch"),
    "`--trim_vocab 12000`": ("trimmed", "torch"),
    "`--ffn_width 0.5`": ("narrowed", "torch"),
    "`--quant_method dynamic`, ONNX": ("int8", "onnx"),
}


def write_random_model(config: PretrainedConfig, directory: Path) -> None:
    """Write a checkpoint with random weights and a random tokenizer."""
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    random_wordpiece(config.vocab_size).save_pretrained(directory)


def write_steps(folder: Path) -> None:
    """Write the model directory of every step; each step starts from the previous one."""
    write_random_model(TEACHER, folder / "teacher")
    write_random_model(STUDENT, folder / "student")
    splits = random_splits(list(random_wordpiece(STUDENT.vocab_size).get_vocab()))
    for step in ("trimmed", "narrowed", "int8"):
        (folder / step).mkdir()
    trim_options = Options(trim_vocab="12000")
    trim_vocabulary(folder / "student", splits, BINARY_TASK, folder / "trimmed", trim_options)
    narrow_options = Options(ffn_width=0.5, device="cpu", **CALIBRATION)
    narrow_ffn(folder / "trimmed", splits, BINARY_TASK, folder / "narrowed", narrow_options)
    quantize_options = Options(quant_method="dynamic", **CALIBRATION)
    quantize(folder / "narrowed", splits, BINARY_TASK, folder / "int8", quantize_options)


def main(argv: list[str] | None = None) -> None:
    """Write all steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    sizes_mb = {}
    with tempfile.TemporaryDirectory() as name:
        write_steps(Path(name))
        for row, (step, engine) in ROWS.items():
            sizes_mb[row] = size_on_disk(ModelFormat(row, Path(name) / step, engine))["size_mb"]
    print("| step | MB | compression |")
    print("|---|--:|--:|")
    for row, size_mb in sizes_mb.items():
        print(f"| {row} | {size_mb:.1f} | {sizes_mb[TEACHER_ROW] / size_mb:.2f}x |")


if __name__ == "__main__":
    main()
