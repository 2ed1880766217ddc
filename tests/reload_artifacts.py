"""`python reload_artifacts.py OUTPUT EXPERIMENT ...` reloads the final models of experiments and
compares them with the predictions of their runs."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

sys.path.insert(0, str(Path(__file__).parent.parent))
from engines.engine import Engine, load_engine, predict_logits  # noqa: E402

MAX_LENGTH = 32
TOLERANCE = 1e-5

torch.set_num_threads(1)


def transformers_logits(directory: Path, texts: list[str]) -> np.ndarray:
    """Logits [rows, labels] of what plain transformers loads, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)

    def forward(batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            return model(**batch).logits.numpy()

    collate = partial(tokenizer, padding=True, return_tensors="pt")
    return predict_logits(Engine(list, collate, forward), texts, batch=1)


def check_torch(directory: Path, texts: list[str], expected: np.ndarray) -> None:
    """Same logits, and the same decisions from a plain pipeline."""
    logits = transformers_logits(directory, texts)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    classify = pipeline("text-classification", str(directory), device="cpu")
    labels = [classify.model.config.id2label[i] for i in expected.argmax(axis=1)]
    assert [result["label"] for result in classify(texts)] == labels


def check_onnx(directory: Path, texts: list[str], expected: np.ndarray) -> None:
    """Same logits."""
    logits = predict_logits(load_engine(directory, "onnx", MAX_LENGTH), texts)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)


CHECKS = {"torch": check_torch, "onnx": check_onnx}


def check_artifact(directory: Path, run: Path) -> int:
    """Check all formats of the final model in `directory`; `run` contains its predictions."""
    rows = pd.read_csv(directory / "results_final.csv")
    final_rows = rows[rows["directory"] == rows["directory"].iloc[-1]]
    test = pd.read_parquet(run / "splits" / "test.parquet")
    for row in final_rows.itertuples():
        predictions = pd.read_parquet(run / "predictions" / f"{row.stage}.parquet")
        expected = np.stack(predictions["logits"])
        CHECKS[row.engine](directory, test["text"].tolist(), expected)
    return len(final_rows)


def main(output: Path, experiments: list[str]) -> None:
    """Check the named experiments, and print how many formats were compared."""
    count = 0
    for name in experiments:
        count += check_artifact(output / "compressed_models" / name, output / "models" / name)
    print(f"{count} formats reloaded")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
