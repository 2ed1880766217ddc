"""The linear baseline: TF-IDF of character n-grams and logistic regression, without pickle.

It is fitted by scikit-learn and stored as arrays in one safetensors file, `linear.safetensors`:

| tensor | content |
|---|---|
| `terms` | the n-grams in the order of the features: a JSON list of strings, as UTF-8 bytes |
| `idf` | the inverse document frequency of each n-gram |
| `coefficients`, `intercepts` | [classes or labels, n-grams]; one row if there are two classes |
| `is_multi_label` | 1 if any number of labels applies to a text, else 0 |

The settings of the vectorizer are not read from the file: they are those of this module, and
`FORMAT` changes with them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import UserError

LINEAR_NAME = "linear.safetensors"

OLD_LINEAR_NAME = "linear.joblib"  # a pickle, which older versions wrote; it is never opened

FORMAT = "char_wb 2-5, sublinear, 1"  # in the metadata of the file

VECTORIZER = {"analyzer": "char_wb", "ngram_range": (2, 5), "sublinear_tf": True}

MAX_LOGIT = 28.0  # of a label that is the same in every training row: a probability of 1 - 1e-12


@dataclass(frozen=True)
class LinearModel:
    """A fitted baseline; `coefficients` [rows, n-grams], `intercepts` [rows]."""

    vectorizer: Any  # a fitted TfidfVectorizer
    coefficients: np.ndarray
    intercepts: np.ndarray
    multi_label: bool

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Logits [texts, classes or labels], float32.

        Their softmax (multi-label: sigmoid) is what `predict_proba` of the pipeline returns.
        """
        scores = self.vectorizer.transform(texts) @ self.coefficients.T + self.intercepts
        if len(self.intercepts) == 1 and not self.multi_label:
            scores = np.hstack([np.zeros_like(scores), scores])  # two classes have one row
        return scores.astype(np.float32)


def new_pipeline(*, multi_label: bool) -> Any:
    """The scikit-learn pipeline to fit: character 2- to 5-grams, logistic regression (C = 10)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    classifier = LogisticRegression(C=10, max_iter=1000)
    if multi_label:
        classifier = OneVsRestClassifier(classifier)
    return make_pipeline(TfidfVectorizer(min_df=2, **VECTORIZER), classifier)


def write_linear(pipeline: Any, model_dir: Path) -> None:
    """Write a fitted `new_pipeline` into a directory; UserError if a value is not finite."""
    from safetensors.numpy import save

    vectorizer, classifier = pipeline[0], pipeline[-1]
    estimators = getattr(classifier, "estimators_", [classifier])
    rows = [_coefficients(estimator, len(vectorizer.idf_)) for estimator in estimators]
    terms = json.dumps(vectorizer.get_feature_names_out().tolist(), ensure_ascii=False)
    tensors = {
        "terms": np.frombuffer(terms.encode("utf-8", "surrogatepass"), np.uint8),
        "idf": vectorizer.idf_,
        # safetensors would write the bytes of a Fortran array in the wrong order
        "coefficients": np.ascontiguousarray(np.concatenate([values for values, _ in rows])),
        "intercepts": np.concatenate([intercepts for _, intercepts in rows]),
        "is_multi_label": np.array([hasattr(classifier, "estimators_")], np.uint8),
    }
    for name in ("idf", "coefficients", "intercepts"):
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"the linear baseline: a value of {name} is not finite (nan or inf)")
    # a single entry of metadata: safetensors writes several in a random order
    (model_dir / LINEAR_NAME).write_bytes(save(tensors, {"format": FORMAT}))


def _coefficients(estimator: Any, num_terms: int) -> tuple[np.ndarray, np.ndarray]:
    """The coefficients [rows, n-grams] and intercepts [rows] of a fitted estimator."""
    if hasattr(estimator, "coef_"):
        return estimator.coef_, estimator.intercept_
    # the constant predictor of a label that is the same in every training row
    is_always_set = estimator.predict(np.zeros((1, 1)))[0]
    return np.zeros((1, num_terms)), np.array([MAX_LOGIT if is_always_set else -MAX_LOGIT])


def read_tensors(model_dir: Path) -> dict[str, np.ndarray]:
    """The tensors of the file; ValueError if it has another format."""
    from safetensors import safe_open

    with safe_open(model_dir / LINEAR_NAME, "numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{LINEAR_NAME} has the format {metadata.get('format')!r}, but must have {FORMAT!r}"
            )
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def read_linear(model_dir: Path) -> LinearModel:
    """The baseline in a directory; ValueError if its file has another format."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    tensors = read_tensors(model_dir)
    terms = json.loads(tensors["terms"].tobytes().decode("utf-8", "surrogatepass"))
    vectorizer = TfidfVectorizer(vocabulary=terms, **VECTORIZER)
    vectorizer.idf_ = tensors["idf"]
    return LinearModel(
        vectorizer,
        tensors["coefficients"],
        tensors["intercepts"],
        multi_label=bool(tensors["is_multi_label"].item()),
    )
