"""The linear baseline: stored as arrays, and equal to the scikit-learn pipeline that was fitted."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import sentence
from safetensors.numpy import load_file, save_file

from engines.engine import formats_in, load_engine, predict_logits, serving_files
from engines.linear import LINEAR_NAME, new_pipeline, write_linear
from engines.parameter_counts import count_parameters
from task import probabilities

# a word of one letter has three n-grams: " a", "a " and " a "
LETTERS = ["a", "b", "c", "a b", "b c", "a c"]


def fitted(texts: list[str], targets: Any) -> Any:
    targets = np.array(targets)
    return new_pipeline(multi_label=targets.ndim == 2).fit(texts, targets)


def random_texts(count: int) -> list[str]:
    rng = random.Random(count)
    return [sentence(rng, rng.randrange(2)) + f" ভাষা {row % 7}" for row in range(count)]


def make_targets(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "multi-label":
        return rng.integers(0, 2, (count, 3))
    if kind == "constant labels":
        targets = rng.integers(0, 2, (count, 3))
        targets[:, 1] = 0
        targets[:, 2] = 1
        return targets
    return np.arange(count) % {"two classes": 2, "four classes": 4}[kind]


@pytest.mark.parametrize("kind", ["two classes", "four classes", "multi-label", "constant labels"])
def test_the_stored_baseline_gives_the_probabilities_of_the_fitted_one(tmp_path, kind):
    targets = make_targets(kind, 60)
    pipeline = fitted(random_texts(60), targets)
    write_linear(pipeline, tmp_path)
    texts = [*random_texts(21), "", "unseen Ünïcode \u200d words\nin lines"]
    logits = predict_logits(load_engine(tmp_path, "linear", 64), texts)
    assert logits.dtype == np.float32 and np.isfinite(logits).all()
    answered = probabilities(logits, targets.ndim == 2)
    assert np.abs(answered - pipeline.predict_proba(texts)).max() < 1e-6


def test_a_baseline_is_one_file_without_pickle(tmp_path):
    write_linear(fitted(LETTERS, [0, 1, 0, 1, 0, 1]), tmp_path)
    (path,) = tmp_path.iterdir()
    assert serving_files(tmp_path, "linear") == [path]
    assert formats_in(tmp_path) == ["linear"]
    names = {"terms", "idf", "coefficients", "intercepts", "is_multi_label"}
    assert load_file(path).keys() == names


def test_equal_baselines_are_equal_files(tmp_path):
    contents = set()
    for _ in range(5):
        write_linear(fitted(LETTERS, [0, 1, 0, 1, 0, 1]), tmp_path)
        contents.add((tmp_path / LINEAR_NAME).read_bytes())
    assert len(contents) == 1


def test_counts_are_those_computed_by_hand(tmp_path):
    """9 n-grams; the coefficient of the first is zero."""
    binary = fitted(LETTERS, [0, 1, 0, 1, 0, 1])
    binary[-1].coef_[0, 0] = 0
    write_linear(binary, tmp_path)
    counts = count_parameters(tmp_path, "linear")
    assert counts.parameters == 9 + 1 + 9  # coefficients, intercept, document frequencies
    assert counts.nonzeros == counts.parameters - 1
    assert counts.sparsity == pytest.approx(1 / 9)
    multi_label = fitted(LETTERS, [[1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [0, 1]])
    for estimator in multi_label[-1].estimators_:
        estimator.coef_[0, 0] = 0
    write_linear(multi_label, tmp_path)
    counts = count_parameters(tmp_path, "linear")
    assert counts.parameters == 2 * (9 + 1) + 9
    assert counts.nonzeros == counts.parameters - 2
    assert counts.sparsity == pytest.approx(2 / 18)


def test_a_file_of_another_format_is_refused(tmp_path: Path):
    write_linear(fitted(LETTERS, [0, 1, 0, 1, 0, 1]), tmp_path)
    tensors = load_file(tmp_path / LINEAR_NAME)
    save_file(tensors, tmp_path / LINEAR_NAME, {"format": "word 1-2"})
    with pytest.raises(ValueError, match="has the format 'word 1-2', but must have 'char_wb"):
        load_engine(tmp_path, "linear", 64)
