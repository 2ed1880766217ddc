"""Quality of a form on the test split, measured from its directory in a process that did not make it.

Also the linear reference: TF-IDF and logistic regression on the same split, which a transformer must beat.
"""

import json
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
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    multilabel_confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

from artifacts import packed_bytes
from compression_config import ComputeOptions, SeedOptions
from console import spoken_level, start_worker
from data import label_array
from encoders import Task
from engines import decide, engine_of, load, predict_logits, probabilities, serving_files
from uncertainty import bootstrap, brier, expected_calibration_error, mcnemar, paired_bootstrap
from weights import count_weights


@dataclass(frozen=True)
class Form:
    """A way of serving one model: the row it fills, its directory, and what is served of it: torch, linear, or a graph
    (`onnx/model_q4.onnx`; `onnx` where it is the only one)."""

    name: str
    path: Path
    served: str

    @property
    def engine(self) -> str:
        """What serves it: torch, onnx, openvino or linear."""
        return engine_of(self.served)


def macro_f1(labels: np.ndarray, decisions: np.ndarray) -> float:
    """The headline metric: F1 of each class or label, averaged without weights; 0 where one is never predicted."""
    return float(f1_score(labels, decisions, average="macro", zero_division=0))


def agreement(decisions: np.ndarray, teacher_decisions: np.ndarray) -> float:
    """Share of rows on which all decisions are the teacher's."""
    return float(all_right(teacher_decisions, decisions).mean())


def quality(logits: np.ndarray, labels: np.ndarray, task: Task) -> dict[str, Any]:
    """Accuracy, macro-F1, ROC-AUC, Matthews correlation, calibration, confusion, labels never predicted; and F1,
    precision and recall of each class or label, `f1.<label>`, without suffix of the second of two classes. Accuracy
    of multi-label rows counts rows with every label right; their Matthews correlation is the mean over labels."""
    decisions, scores = decide(logits, task.multi_label), probabilities(logits, task.multi_label)
    binary = len(task.labels) == 2 and not task.multi_label
    columns = zip(labels.T, decisions.T, strict=True) if task.multi_label else [(labels, decisions)]
    found = {
        "accuracy": accuracy_score(labels, decisions), "macro_f1": macro_f1(labels, decisions),
        "roc_auc": roc_auc_score(labels, scores[:, 1] if binary else scores, average="macro", multi_class="ovr"),
        "mcc": np.mean([matthews_corrcoef(*pair) for pair in columns]),
        "ece": expected_calibration_error(scores, labels, task.multi_label),
        "brier": brier(scores, labels, task.multi_label),
    }  # fmt: skip
    per_label = precision_recall_fscore_support(
        labels, decisions, labels=range(len(task.labels)), average=None, zero_division=0)  # fmt: skip
    for name, values in zip(("precision", "recall", "f1"), per_label[:3], strict=True):
        found |= {name: values[1]} if binary else {}
        found |= {f"{name}.{label}": value for label, value in zip(task.labels, values, strict=True)}
    found = {name: float(value) for name, value in found.items()} | {"confusion": confusion(labels, decisions, task)}
    missed = never_predicted(decisions, task)
    return found | ({"never_predicted": missed} if missed else {})


def confusion(labels: np.ndarray, decisions: np.ndarray, task: Task) -> list:
    """Counts [true class, decided class]; in multi-label [label, truth, decision] of 0/1."""
    if task.multi_label:
        return multilabel_confusion_matrix(labels, decisions).tolist()
    return confusion_matrix(labels, decisions, labels=range(len(task.labels))).tolist()


def never_predicted(decisions: np.ndarray, task: Task) -> str:
    """Names of the labels that no row is given."""
    given = decisions.sum(axis=0) if task.multi_label else np.bincount(decisions, minlength=len(task.labels))
    return ", ".join(label for label, number in zip(task.labels, given, strict=True) if not number)


def intervals(labels: np.ndarray, decisions: np.ndarray, reference: np.ndarray, task: Task, seed: int) -> dict:
    """95 % bootstrap intervals; and the difference from the teacher's (`reference`) decisions, tested in pairs."""
    count = len(task.labels)
    right, reference_right = (all_right(labels, decided) for decided in (decisions, reference))
    return {**bootstrap(labels, decisions, count, seed), **paired_bootstrap(labels, decisions, reference, count, seed),
            "mcnemar_p": mcnemar(right, reference_right)}  # fmt: skip


def all_right(labels: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """Mask of the rows on which every decision is right."""
    same = labels == decisions
    return same.all(axis=1) if same.ndim == 2 else same


def slices(test: pd.DataFrame, labels: np.ndarray, decisions: np.ndarray) -> dict[str, float]:
    """Rows, macro-F1 and accuracy of each value of `group` and `rows`, such as `macro_f1[group=female]`; labels that
    neither occur nor are decided in a slice are left out of its mean."""
    found = {}
    for column in ("group", "rows"):
        for value, rows in test.groupby(column).indices.items() if column in test else ():
            name = f"[{column}={value}]"
            found |= {f"rows{name}": len(rows), f"accuracy{name}": accuracy_score(labels[rows], decisions[rows]),
                      f"macro_f1{name}": f1_score(labels[rows], decisions[rows], average="macro",
                                                  zero_division=np.nan)}  # fmt: skip
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
    files = serving_files(form.path, form.served)
    total = sum(file.stat().st_size for file in files)
    names = " ".join(str(file.relative_to(form.path)) for file in files)
    return {"bytes": total, "size_mb": total / 1e6, "files": names}


def notes(form: Form) -> dict[str, str]:
    """What config.json tells of the form: decision thresholds that were folded into its head, as `label: value`, and
    the layers that were left in full precision."""
    path = form.path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tuned, whole = config.get("decision_thresholds", {}), config.get("layers_left_whole", {}).get(form.name, [])
    found = {"thresholds": ", ".join(f"{label}: {value:.4f}" for label, value in tuned.items()),
             "layers_left_whole": ", ".join(whole)}  # fmt: skip
    return {name: text for name, text in found.items() if text}


def read_split(path: Path, task: Task) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows of a split, and their labels: class ids [rows], or 0/1 [rows, labels]."""
    rows = pd.read_parquet(path)
    return rows, np.stack(rows["label"]).astype(int) if task.multi_label else rows["label"].to_numpy()


def evaluate(
    form: Form, test_path: Path, task: Task, options: ComputeOptions, teacher_path: Path, out_path: Path,
    validation_path: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Reload the form, predict the test split, write the predictions to `out_path`; the row without times.

    `teacher_path` holds the teacher's predictions, the reference of `agreement`. Where the quality gate asks for it,
    the row holds `validation_macro_f1` too.
    """
    test, labels = read_split(test_path, task)
    engine = load(form.path, form.served, options.max_length, device=options.device)
    logits = predict_logits(engine, test["text"].tolist(), options.batch, f"evaluate {form.name}")
    validated = {}
    if validation_path:
        rows, truth = read_split(validation_path, task)
        decided = decide(predict_logits(engine, rows["text"].tolist(), options.batch), task.multi_label)
        validated["validation_macro_f1"] = macro_f1(truth, decided)
    write_predictions(out_path, test["id"].tolist(), labels, logits, task.multi_label)
    counts = count_weights(form.path, form.served)
    packed = packed_bytes(serving_files(form.path, form.served), form.path)
    decisions, teachers = (decide(one, task.multi_label) for one in (logits, read_logits(teacher_path)))
    row = quality(logits, labels, task) | {"agreement": agreement(decisions, teachers)}
    row |= intervals(labels, decisions, teachers, task, options.seed) | slices(test, labels, decisions)
    return row | validated | notes(form) | size_on_disk(form) | {
        "parameters": counts.parameters, "nonzeros": counts.nonzeros, "sparsity": counts.sparsity,
        "packed_bytes": packed, "packed_mb": packed / 1e6}  # fmt: skip


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
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=start_worker, initargs=(spoken_level(),)) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()

