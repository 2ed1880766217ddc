"""Every figure of the results, computed again from the files on disk by other code: plain
transformers and ONNX Runtime for logits, pandas and counting for metrics, file sizes for bytes.

The file has twelve classes, whose names are not in the order in which they occur, texts that are
longer than --max_length, and a group column.
"""

import io
import json
import math
import random
import tarfile
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pytest
import torch
import zstandard
from builders import FILLER, write_csv
from measuring import quick_measuring
from safetensors import safe_open
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tiny_training import run_arguments
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from main import main

CLASSES = [f"topic {number}" for number in (7, 12, 1, 10, 3, 11, 2, 9, 4, 8, 5, 6)]

MAX_LENGTH = 16

ROWS_PER_CLASS = 40

OPTIONS = (
    "--pipeline kd_prune_quant --teacher_path scratch:2x64 --teacher_epochs 8 --epochs 4 "
    f"--fine_tune_epochs 1 --batch 16 --max_length {MAX_LENGTH} --precision fp32 --lr 2e-3 "
    "--teacher_lr 2e-3 --quant_method dynamic --export onnx --max_f1_drop 1 --group_column writer"
)

TORCH_ROWS = {"teacher": "teacher", "student": "distill", "pruned": "prune", "dynamic": "quantize"}

QUALITY_ROWS = [*TORCH_ROWS, "onnx", "linear"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, in_measuring_process) -> Path:
    """The output directory of a run."""
    rng = random.Random(3)
    rows = []
    for number in range(ROWS_PER_CLASS * len(CLASSES)):
        class_id = number % len(CLASSES)
        words = rng.choices(FILLER, k=rng.randint(4, 30))  # up to twice the maximum length
        words.insert(rng.randrange(len(words)), "abcdefghijkl"[class_id] * 3)
        writer = rng.choice(["ann", "bob", "cem"])
        rows.append([" ".join([*words, str(number)]), CLASSES[class_id], writer])
    output = tmp_path_factory.mktemp("figures")
    path = write_csv(output / "file.csv", ["text", "topic", "writer"], rows)
    with quick_measuring(in_measuring_process):
        assert main(run_arguments(path, output, OPTIONS)) == 0
    return output


@pytest.fixture(scope="module")
def rows(run) -> dict[str, dict]:
    """Stage -> row of results_final.json."""
    text = (run / "compressed_models" / "run" / "results_final.json").read_text(encoding="utf-8")
    return {row["stage"]: row for row in json.loads(text)["rows"]}


@pytest.fixture(scope="module")
def test_rows(run) -> pd.DataFrame:
    """The test rows, found again in the file by their ids, with the label as text."""
    file = pd.read_csv(run / "file.csv")
    ids = pd.read_parquet(run / "models" / "run" / "splits" / "test.parquet")["id"]
    return file.loc[ids]


def train_rows(run: Path) -> pd.DataFrame:
    ids = pd.read_parquet(run / "models" / "run" / "splits" / "train.parquet")["id"]
    return pd.read_csv(run / "file.csv").loc[ids]


def torch_logits(directory: Path, texts: list[str]) -> pd.DataFrame:
    """Logits by a plain `from_pretrained`, one text at a time, with the labels as columns."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = []
    for text in texts:
        batch = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**batch).logits[0].numpy())
    labels = [model.config.id2label[number] for number in range(len(CLASSES))]
    return pd.DataFrame(rows, columns=labels)


def onnx_logits(directory: Path, texts: list[str]) -> pd.DataFrame:
    session = onnxruntime.InferenceSession(directory / "onnx" / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = []
    for text in texts:
        batch = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="np")
        inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        rows.append(session.run(["logits"], inputs)[0][0])
    id2label = json.loads((directory / "config.json").read_text(encoding="utf-8"))["id2label"]
    return pd.DataFrame(rows, columns=[id2label[str(number)] for number in range(len(CLASSES))])


def linear_logits(run: Path, texts: list[str]) -> pd.DataFrame:
    """The baseline, fitted again."""
    train = train_rows(run)
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True
    )
    features = vectorizer.fit_transform(train["text"])
    classifier = LogisticRegression(C=10, max_iter=1000).fit(features, train["topic"])
    scores = classifier.predict_log_proba(vectorizer.transform(texts))
    return pd.DataFrame(scores, columns=classifier.classes_)


@pytest.fixture(scope="module")
def logits(run, test_rows) -> dict[str, pd.DataFrame]:
    """Stage -> logits of the test rows."""
    models = run / "models" / "run"
    texts = test_rows["text"].tolist()
    logits = {stage: torch_logits(models / name, texts) for stage, name in TORCH_ROWS.items()}
    logits["onnx"] = onnx_logits(models / "export", texts)
    logits["linear"] = linear_logits(run, texts)
    return logits


def decisions_of(logits: pd.DataFrame) -> list[str]:
    return logits.idxmax(axis=1).tolist()


def f1_by_class(labels: list[str], decisions: list[str]) -> dict[str, float]:
    """F1 by counting; 0 for a class that is neither right nor predicted."""
    values = {}
    for name in sorted(CLASSES):
        pairs = list(zip(labels, decisions, strict=True))
        hits = sum(label == name == decision for label, decision in pairs)
        errors = sum((label == name) != (decision == name) for label, decision in pairs)
        values[name] = 2 * hits / (2 * hits + errors) if hits or errors else 0.0
    return values


def macro_f1(labels: list[str], decisions: list[str]) -> float:
    return sum(f1_by_class(labels, decisions).values()) / len(CLASSES)


def test_the_run_is_worth_checking(test_rows, logits, rows):
    """Long texts, every class, and a teacher that is neither perfect nor guessing."""
    assert (test_rows["text"].str.split().str.len() > MAX_LENGTH).sum() > 20
    assert set(test_rows["topic"]) == set(CLASSES)
    assert 0.3 < rows["teacher"]["macro_f1"] < 1
    assert len({decision for decision in decisions_of(logits["teacher"])}) > 6


@pytest.mark.parametrize("stage", QUALITY_ROWS)
def test_decisions_accuracy_and_f1(stage, test_rows, logits, rows):
    labels = test_rows["topic"].tolist()
    decisions = decisions_of(logits[stage])
    row = rows[stage]
    correct = [label == decision for label, decision in zip(labels, decisions, strict=True)]
    assert row["accuracy"] == pytest.approx(sum(correct) / len(correct))
    assert row["macro_f1"] == pytest.approx(macro_f1(labels, decisions))
    for name, value in f1_by_class(labels, decisions).items():
        assert row[f"f1.{name}"] == pytest.approx(value)
        predicted = decisions.count(name)
        hits = sum(label == name == one for label, one in zip(labels, decisions, strict=True))
        assert row[f"precision.{name}"] == pytest.approx(hits / predicted if predicted else 0)
        assert row[f"recall.{name}"] == pytest.approx(hits / labels.count(name))


@pytest.mark.parametrize("stage", QUALITY_ROWS)
def test_confusion_has_true_classes_as_rows_in_the_order_of_the_labels(
    stage, test_rows, logits, rows
):
    names = logits["teacher"].columns.tolist()
    labels = test_rows["topic"].tolist()
    pairs = list(zip(labels, decisions_of(logits[stage]), strict=True))
    expected = [[pairs.count((true, guess)) for guess in names] for true in names]
    assert rows[stage]["confusion"] == expected
    assert np.array(expected).T.tolist() != expected or stage == "linear"


@pytest.mark.parametrize("stage", QUALITY_ROWS)
def test_correlation_of_matthews(stage, test_rows, logits, rows):
    """Gorodkin (2004), R_K, from the covariances of one-hot rows."""
    truth = pd.get_dummies(test_rows["topic"]).reindex(columns=sorted(CLASSES), fill_value=0)
    guess = pd.get_dummies(pd.Series(decisions_of(logits[stage])))
    guess = guess.reindex(columns=sorted(CLASSES), fill_value=0)
    truth = truth.to_numpy(float) - truth.to_numpy(float).mean(axis=0)
    guess = guess.to_numpy(float) - guess.to_numpy(float).mean(axis=0)
    expected = (truth * guess).sum() / math.sqrt((truth**2).sum() * (guess**2).sum())
    assert rows[stage]["mcc"] == pytest.approx(expected)


def softmax_rows(logits: pd.DataFrame) -> list[dict[str, float]]:
    rows = []
    for row in logits.to_dict("records"):
        weights = {name: math.exp(value) for name, value in row.items()}
        total = sum(weights.values())
        rows.append({name: weight / total for name, weight in weights.items()})
    return rows


@pytest.mark.parametrize("stage", [*TORCH_ROWS, "onnx"])
def test_calibration_error_brier_score_and_roc_area(stage, test_rows, logits, rows):
    labels = test_rows["topic"].tolist()
    probabilities = softmax_rows(logits[stage])
    bins: dict[int, list[float]] = {}
    brier = 0.0
    for label, row in zip(labels, probabilities, strict=True):
        best = max(row, key=row.get)
        bins.setdefault(math.ceil(row[best] * 15), []).append(row[best] - (best == label))
        brier += sum((value - (name == label)) ** 2 for name, value in row.items())
    gap = sum(abs(sum(values)) for values in bins.values())
    assert rows[stage]["ece"] == pytest.approx(gap / len(labels), abs=1e-5)
    assert rows[stage]["brier"] == pytest.approx(brier / len(labels), abs=1e-5)
    areas = []
    for name in CLASSES:
        inside = [
            row[name] for row, label in zip(probabilities, labels, strict=True) if label == name
        ]
        outside = [
            row[name] for row, label in zip(probabilities, labels, strict=True) if label != name
        ]
        wins = sum((a > b) + (a == b) / 2 for a in inside for b in outside)
        areas.append(wins / (len(inside) * len(outside)))
    assert rows[stage]["roc_auc"] == pytest.approx(sum(areas) / len(areas), abs=1e-4)


@pytest.mark.parametrize("stage", QUALITY_ROWS)
def test_agreement_and_the_difference_from_the_teacher(stage, test_rows, logits, rows):
    labels = test_rows["topic"].tolist()
    decisions = decisions_of(logits[stage])
    teacher = decisions_of(logits["teacher"])
    same = [one == other for one, other in zip(decisions, teacher, strict=True)]
    row = rows[stage]
    assert row["agreement"] == pytest.approx(sum(same) / len(same))
    difference = macro_f1(labels, decisions) - macro_f1(labels, teacher)
    assert row["delta_macro_f1"] == pytest.approx(difference)
    assert row["delta_macro_f1_low"] <= difference <= row["delta_macro_f1_high"]
    assert row["macro_f1_low"] <= row["macro_f1"] <= row["macro_f1_high"]


@pytest.mark.parametrize("stage", QUALITY_ROWS)
@pytest.mark.parametrize("writer", ["ann", "bob", "cem"])
def test_slices(stage, writer, test_rows, logits, rows):
    chosen = (test_rows["writer"] == writer).to_numpy()
    labels = test_rows["topic"].to_numpy()[chosen].tolist()
    decisions = np.array(decisions_of(logits[stage]))[chosen].tolist()
    row = rows[stage]
    correct = [label == decision for label, decision in zip(labels, decisions, strict=True)]
    assert row[f"rows[group={writer}]"] == chosen.sum()
    assert row[f"accuracy[group={writer}]"] == pytest.approx(sum(correct) / len(correct))
    present = {*labels, *decisions}
    values = [value for name, value in f1_by_class(labels, decisions).items() if name in present]
    assert row[f"macro_f1[group={writer}]"] == pytest.approx(sum(values) / len(values))


def serving_files(run: Path, stage: str) -> list[Path]:
    """The files of a format, by hand."""
    models = run / "models" / "run"
    if stage == "linear":
        return [models / "linear" / "linear.safetensors"]
    directory = models / TORCH_ROWS.get(stage, "export")
    tokenizer = [directory / "tokenizer.json", directory / "tokenizer_config.json"]
    weights = "onnx/model.onnx" if stage == "onnx" else "model.safetensors"
    return [directory / "config.json", directory / weights, *tokenizer]


@pytest.mark.parametrize("stage", QUALITY_ROWS)
def test_bytes_and_ratios(stage, run, rows):
    row = rows[stage]
    size = sum(path.stat().st_size for path in serving_files(run, stage))
    teacher_size = sum(path.stat().st_size for path in serving_files(run, "teacher"))
    assert row["bytes"] == size
    assert row["size_mb"] == pytest.approx(size / 1e6)
    assert row["compression_ratio"] == pytest.approx(teacher_size / size)
    assert {Path(name).name for name in row["files"].split()} == {
        path.name for path in serving_files(run, stage)
    }
    packed = len(zstd_tar(serving_files(run, stage)))
    assert row["packed_bytes"] == pytest.approx(packed, rel=0.01)
    assert row["packed_mb"] == pytest.approx(row["packed_bytes"] / 1e6)
    assert row["packed_ratio"] == pytest.approx(
        rows["teacher"]["packed_bytes"] / row["packed_bytes"]
    )


def zstd_tar(files: list[Path]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in files:
            archive.add(path, arcname=path.name)
    return zstandard.ZstdCompressor(level=9).compress(content.getvalue())


@pytest.mark.parametrize("stage", ["teacher", "student", "pruned"])
def test_parameters_zeros_and_sparsity(stage, run, rows):
    path = run / "models" / "run" / TORCH_ROWS[stage] / "model.safetensors"
    total = nonzeros = encoder_total = encoder_nonzeros = 0
    with safe_open(path, "np") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            total += tensor.size
            nonzeros += np.count_nonzero(tensor)
            if "encoder.layer" in name and tensor.ndim == 2:
                encoder_total += tensor.size
                encoder_nonzeros += np.count_nonzero(tensor)
    assert rows[stage]["parameters"] == total
    assert rows[stage]["nonzeros"] == nonzeros
    assert rows[stage]["sparsity"] == pytest.approx(1 - encoder_nonzeros / encoder_total)


@pytest.mark.parametrize("stage", [*TORCH_ROWS, "onnx"])
def test_validation_scores_and_drops(stage, run, rows):
    models = run / "models" / "run"
    ids = pd.read_parquet(models / "splits" / "validation.parquet")["id"]
    validation = pd.read_csv(run / "file.csv").loc[ids]
    texts = validation["text"].tolist()
    if stage == "onnx":
        found = onnx_logits(models / "export", texts)
    else:
        found = torch_logits(models / TORCH_ROWS[stage], texts)
    score = macro_f1(validation["topic"].tolist(), decisions_of(found))
    assert rows[stage]["validation_macro_f1"] == pytest.approx(score)
    if stage in ("dynamic", "onnx"):
        drop = rows["pruned"]["validation_macro_f1"] - score
        assert rows[stage]["validation_drop"] == pytest.approx(drop)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_student_learns_from_the_teachers_logits_of_truncated_texts(split, run):
    models = run / "models" / "run"
    texts = pd.read_parquet(models / "splits" / f"{split}.parquet").set_index("id")["text"]
    (path,) = (models / "outputs" / split).glob("*.arrow")
    with pa.ipc.open_stream(path) as stream:
        outputs = stream.read_pandas().set_index("id")["teacher_logits"][:60]
    expected = torch_logits(models / "teacher", texts[outputs.index].tolist())
    assert np.stack(outputs) == pytest.approx(expected.to_numpy(), abs=1e-4)


def test_speedups_are_the_teachers_time_over_that_of_the_row(rows):
    teacher = rows["teacher"]["latency_ms_p50"]
    for row in rows.values():
        assert row["speedup_torch"] == pytest.approx(teacher / row["latency_ms_p50"], rel=1e-3)


def test_the_csv_has_the_figures_of_the_json(run, rows):
    table = pd.read_csv(run / "compressed_models" / "run" / "results_final.csv")
    for record in table.to_dict("records"):
        for name, value in rows[record["stage"]].items():
            if isinstance(value, float):
                assert record[name] == pytest.approx(value), name
