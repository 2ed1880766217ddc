"""Quality of a form on the test split, measured from its directory in a process that did not make it.

Also the linear reference: TF-IDF and logistic regression on the same split, which a transformer must beat.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import DatasetDict
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, roc_auc_score

from compression_config import ComputeOptions, SeedOptions
from console import start_worker
from data import label_array
from encoders import Task
from inference import count_weights, load, predict_logits, serving_files


@dataclass(frozen=True)
class Form:
    """A way of serving one model: the row it fills, its directory and its engine (torch, onnx or linear)."""

    name: str
    path: Path
    engine: str


def decide(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Class ids [rows] by the largest logit, or 0/1 [rows, labels] where the sigmoid passes one half."""
    return (logits > 0).astype(int) if multi_label else logits.argmax(axis=1)


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Softmax over classes, or a sigmoid per label; [rows, labels]."""
    if multi_label:
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def macro_f1(labels: np.ndarray, decisions: np.ndarray) -> float:
    """The headline metric: F1 of each class or label, averaged without weights; 0 where one is never predicted."""
    return float(f1_score(labels, decisions, average="macro", zero_division=0))


def agreement(decisions: np.ndarray, teacher_decisions: np.ndarray) -> float:
    """Share of rows on which all decisions are the teacher's."""
    same = decisions == teacher_decisions
    return float((same.all(axis=1) if same.ndim == 2 else same).mean())


def quality(logits: np.ndarray, labels: np.ndarray, task: Task) -> dict[str, float]:
    """Accuracy, macro-F1, ROC-AUC, and F1, precision and recall: of the positive class where there are two,
    else of each label as `f1.<label>`. Accuracy of multi-label rows counts rows with every label right."""
    decisions, scores = decide(logits, task.multi_label), probabilities(logits, task.multi_label)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, decisions, labels=range(len(task.labels)), average=None, zero_division=0)  # fmt: skip
    binary = len(task.labels) == 2 and not task.multi_label
    roc_auc = roc_auc_score(labels, scores[:, 1] if binary else scores, average="macro", multi_class="ovr")
    found = {"accuracy": accuracy_score(labels, decisions), "macro_f1": macro_f1(labels, decisions), "roc_auc": roc_auc}
    for i, label in enumerate(task.labels):
        suffix = "" if binary else f".{label}"
        if i or not binary:
            found |= {f"f1{suffix}": f1[i], f"precision{suffix}": precision[i], f"recall{suffix}": recall[i]}
    return {name: float(value) for name, value in found.items()}


def write_predictions(path: Path, ids: list[int], labels: np.ndarray, logits: np.ndarray, multi_label: bool) -> None:
    """Every test row's id, label, logits and probabilities, as Parquet."""
    rows = {"id": ids, "label": labels.tolist(), "logits": logits.tolist(),
            "probabilities": probabilities(logits, multi_label).tolist()}  # fmt: skip
    pd.DataFrame(rows).to_parquet(path, index=False)


def read_logits(path: Path) -> np.ndarray:
    """The logits [rows, labels] that `write_predictions` wrote."""
    return np.stack(pd.read_parquet(path, columns=["logits"])["logits"])


def size_on_disk(form: Form) -> dict[str, Any]:
    """Bytes and names of the files needed to serve the form."""
    files = serving_files(form.path, form.engine)
    total = sum(file.stat().st_size for file in files)
    names = " ".join(str(file.relative_to(form.path)) for file in files)
    return {"bytes": total, "size_mb": total / 1e6, "files": names}


def evaluate(
    form: Form, test_path: Path, task: Task, options: ComputeOptions, teacher_path: Path, out_path: Path
) -> dict[str, Any]:
    """Reload the form, predict the test split, write the predictions to `out_path`; the row without times.

    `teacher_path` holds the teacher's predictions, the reference of `agreement`.
    """
    test = pd.read_parquet(test_path)
    labels = np.stack(test["label"]) if task.multi_label else test["label"].to_numpy()
    engine = load(form.path, form.engine, options.max_length, device=options.device)
    logits = predict_logits(engine, test["text"].tolist(), options.batch, f"evaluate {form.name}")
    write_predictions(out_path, test["id"].tolist(), labels, logits, task.multi_label)
    counts = count_weights(form.path, form.engine)
    row = quality(logits, labels, task)
    row["agreement"] = agreement(decide(logits, task.multi_label), decide(read_logits(teacher_path), task.multi_label))
    return row | size_on_disk(form) | {
        "parameters": counts.parameters, "nonzeros": counts.nonzeros, "sparsity": counts.sparsity}  # fmt: skip


def fit_linear(model_in: str, splits: DatasetDict, task: Task, out_dir: Path, options: SeedOptions) -> Path:
    """Stage `linear`: TF-IDF of character 2- to 5-grams and logistic regression (C = 10); starts from nothing."""
    import joblib
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    classifier = LogisticRegression(C=10, max_iter=1000, random_state=options.seed)
    pipeline = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True),
        OneVsRestClassifier(classifier) if task.multi_label else classifier)  # fmt: skip
    pipeline.fit(splits["train"][:]["text"], label_array(splits["train"]))
    joblib.dump(pipeline, out_dir / "linear.joblib")
    return out_dir


@contextmanager
def fresh_process() -> Iterator[Callable[..., Any]]:
    """`call(function, *arguments)` in one other process, started anew: it has seen no model of ours."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=start_worker) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()

