"""Reload every artifact under `OUTPUT/compressed_models` in this process and compare it with
what evaluation saw."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

sys.path.insert(0, str(Path(__file__).parent.parent))
from engines.engine import Engine, load_engine, predict_logits  # noqa: E402

torch.set_num_threads(1)


def plain_logits(directory: Path, texts: list[str]) -> np.ndarray:
    """Logits [rows, labels] of what plain transformers loads, in the batches that evaluation
    used."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)

    def forward(batch: dict) -> np.ndarray:
        with torch.inference_mode():
            return model(**batch).logits.numpy()

    encode = partial(tokenizer, padding=True, return_tensors="pt")
    return predict_logits(Engine(list, encode, forward), texts)


def check_torch(directory: Path, texts: list[str], seen: np.ndarray) -> None:
    """Same logits to 1e-5, and the same decisions from a plain pipeline."""
    np.testing.assert_allclose(plain_logits(directory, texts), seen, atol=1e-5, rtol=1e-5)
    classify = pipeline("text-classification", str(directory), device="cpu")
    labels = [classify.model.config.id2label[i] for i in seen.argmax(axis=1)]
    assert [result["label"] for result in classify(texts)] == labels


def check_onnx(directory: Path, texts: list[str], seen: np.ndarray) -> None:
    """Same logits to 1e-5 in the same batches: activations are quantized per batch."""
    np.testing.assert_allclose(
        predict_logits(load_engine(directory, "onnx", 32), texts), seen, atol=1e-5, rtol=1e-5
    )


def main(output: Path) -> None:
    """Every form of every experiment; prints how many were compared."""
    forms = 0
    for directory in sorted(
        path for path in (output / "compressed_models").iterdir() if path.is_dir()
    ):
        rows = pd.read_csv(directory / "results_final.csv")
        test = pd.read_parquet(output / "models" / directory.name / "splits" / "test.parquet")
        for row in rows[rows["directory"] == rows["directory"].iloc[-1]].itertuples():
            predictions = pd.read_parquet(
                output / "models" / directory.name / "predictions" / f"{row.stage}.parquet"
            )
            check = {"torch": check_torch, "onnx": check_onnx}[row.engine]
            check(directory, test["text"].tolist(), np.stack(predictions["logits"]))
            forms += 1
    print(f"{forms} forms reloaded")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
