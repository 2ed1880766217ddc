"""What the README's own pair weighs, step by step: random weights, so bytes only.

`python scripts/pair_sizes.py`. A BanglaBERT-shaped teacher (ELECTRA base, 32,000 tokens) and a student shaped like
`distilbert-base-multilingual-cased` (119,547 tokens), whose vocabulary is trimmed to 12,000 and whose feed-forward
blocks are halved, then int8 in ONNX. Prints a Markdown table of the files that serving needs.
"""

import sys
import tempfile
from pathlib import Path

import torch
from bench_pruning import TASK, texts, wordpiece
from transformers import AutoModelForSequenceClassification, DistilBertConfig, ElectraConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
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
    **TASK.config(),
)
STUDENT = DistilBertConfig(vocab_size=119_547, **TASK.config())


def main() -> None:
    """Make each step's directory from the one before."""
    with tempfile.TemporaryDirectory() as name:
        folders = {
            step: Path(name) / step
            for step in ("teacher", "student", "trimmed", "narrowed", "int8")
        }
        for step, config in (("teacher", TEACHER), ("student", STUDENT)):
            torch.manual_seed(0)
            AutoModelForSequenceClassification.from_config(config).save_pretrained(folders[step])
            tokenizer = wordpiece(config.vocab_size)
            tokenizer.save_pretrained(folders[step])
        splits = texts(list(tokenizer.get_vocab()))
        calibration = {"max_length": 64, "calibration_samples": 32}
        for step in ("trimmed", "narrowed", "int8"):
            folders[step].mkdir()
        trim_vocabulary(
            folders["student"], splits, TASK, folders["trimmed"], Options(trim_vocab="12000")
        )
        narrow_ffn(
            folders["trimmed"],
            splits,
            TASK,
            folders["narrowed"],
            Options(ffn_width=0.5, device="cpu", **calibration),
        )
        quantize(
            folders["narrowed"],
            splits,
            TASK,
            folders["int8"],
            Options(quant_method="dynamic", **calibration),
        )
        rows = {
            "teacher, BanglaBERT's shape": ("teacher", "torch"),
            "student, mDistilBERT's shape": ("student", "torch"),
            "`--trim_vocab 12000`": ("trimmed", "torch"),
            "`--ffn_width 0.5`": ("narrowed", "torch"),
            "`--quant_method dynamic`, ONNX": ("int8", "onnx"),
        }
        print("| step | MB | compression |\n|---|--:|--:|")
        sizes = {
            row: size_on_disk(ModelFormat(row, folders[step], engine))["size_mb"]
            for row, (step, engine) in rows.items()
        }
        whole = sizes["teacher, BanglaBERT's shape"]
        for row, size in sizes.items():
            print(f"| {row} | {size:.1f} | {whole / size:.2f}x |")


if __name__ == "__main__":
    main()
