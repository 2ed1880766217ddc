"""Folds and seeds: each with its own split and teacher, one row per stage, and a mean row with
an interval."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import t

import report
import training
from compression_config import Options
from data import load_splits
from engines.engine import load_engine, predict_logits
from evaluation import decide
from experiments.checks import check_tunable
from experiments.experiment import mean_rows, with_drift_sides
from losses import distillation_loss
from reporting import results
from runtime.artifacts import read_record
from runtime.command_line import parse_options
from runtime.errors import UserError
from task import Task
from training import fold_thresholds_, head_bias

SMALL = (
    "--teacher_path scratch:1x64 --student_path teacher:1 --teacher_epochs 3 --epochs 1 "
    "--teacher_lr 5e-3 --max_length 32 --device cpu --pipeline kd_quant"
).split()


@pytest.fixture
def run(run_main, tiny_csv, tmp_path):
    def run(*argv: str) -> tuple[list[dict], Path]:
        out = ["--output_dir", str(tmp_path), "--experiment", "run"]
        assert run_main(["--dataset_path", str(tiny_csv), *out, *SMALL, *argv]) == 0
        artifact = tmp_path / "compressed_models" / "run"
        return json.loads((artifact / "results_final.json").read_text())["rows"], artifact

    return run


def test_folds_have_their_own_teachers_rows_and_a_mean(run, capsys):
    rows, artifact = run("--num_folds", "3")
    stages = ["linear", "teacher", "student", "fp16"]
    assert [(row["repeat"], row["stage"]) for row in rows] == [
        (name, stage) for name in ("fold 1", "fold 2", "fold 3", "mean") for stage in stages
    ]
    folders = [artifact.parents[1] / "models" / "run" / f"fold_{i}" for i in (1, 2, 3)]
    teachers = [load_file(folder / "teacher" / "model.safetensors") for folder in folders]
    assert not any(
        torch.equal(teachers[0]["classifier.weight"], other["classifier.weight"])
        for other in teachers[1:]
    )
    assert {row["directory"] for row in rows if row["repeat"] == "fold 2"} == {
        str(folders[1] / stage) for stage in ("linear", "teacher", "distill", "quantize")
    }
    tested = [pd.read_parquet(folder / "splits" / "test.parquet")["id"] for folder in folders]
    assert sorted(pd.concat(tested)) == list(range(160))
    values = [row["macro_f1"] for row in rows if row["stage"] == "teacher"][:3]
    mean = rows[-3]
    assert mean["macro_f1"] == pytest.approx(np.mean(values)) and mean[
        "macro_f1_sd"
    ] == pytest.approx(np.std(values, ddof=1))
    printed = capsys.readouterr().out
    assert "+-" in printed and len(printed.strip().splitlines()) == 6  # only the means
    weights = [
        read_record(folder)["files"]["model.safetensors"]
        for folder in (folders[0] / "quantize", artifact)
    ]
    assert weights[0] == weights[1]
    assert json.loads((artifact / "results_final.json").read_text())["shipped"] == "fold 1"


def test_a_repeated_run_resumes_fold_by_fold(run, tmp_path):
    import shutil

    run("--num_folds", "2")
    shutil.rmtree(tmp_path / "models" / "run" / "fold_2")  # as if killed after the first fold
    rows, _ = run("--num_folds", "2")
    assert {row["repeat"]: row["remembered"] for row in rows} == {
        "fold 1": True,
        "fold 2": False,
        "mean": True,
    }


def test_seeds_have_their_own_splits_and_each_equals_the_single_run_of_that_seed(run, tmp_path):
    rows, _ = run("--seeds", "1", "2")
    one, two = (
        pd.read_parquet(tmp_path / "models" / "run" / f"seed_{i}" / "splits" / "test.parquet")
        for i in (1, 2)
    )
    assert set(one["id"]) != set(two["id"])
    alone, _ = run("--seed", "2", "--overwrite")
    assert all(row["remembered"] for row in alone)
    again = [row["macro_f1"] for row in rows if row["repeat"] == "seed 2"]
    assert [row["macro_f1"] for row in alone] == again


def test_the_mean_row_has_the_corrected_interval_and_keeps_columns_that_are_not_averaged():
    rows = [
        {
            "repeat": f"seed {i}",
            "stage": "teacher",
            "parent": "",
            "bytes": 10,
            "macro_f1": value,
            "accuracy": value,
            "delta_macro_f1": 0.0,
            "latency_ms_p50": 2.0 if i == 0 else None,
        }
        for i, value in enumerate([0.78, 0.8, 0.82])
    ]
    (mean,) = mean_rows(rows, 0.25)
    half = t.ppf(0.975, 2) * 0.02 * np.sqrt(1 / 3 + 0.25)
    assert mean["macro_f1"] == pytest.approx(0.8) and mean["macro_f1_high"] == pytest.approx(
        0.8 + half
    )
    assert (mean["repeat"], mean["bytes"], mean["latency_ms_p50"]) == ("mean", 10, 2.0)


def test_a_student_without_a_teacher_is_trained_on_labels_only(run, monkeypatch):
    seen = []

    def noted(logits, labels, teacher_logits, alpha, **kwargs):
        if alpha == 0:
            assert teacher_logits is None
            seen.append(1)
        return distillation_loss(logits, labels, teacher_logits, alpha, **kwargs)

    monkeypatch.setattr(training, "distillation_loss", noted)
    rows, artifact = run("--kd_baseline")
    assert [row["stage"] for row in rows] == [
        "linear",
        "teacher",
        "student_plain",
        "student",
        "fp16",
    ] and seen
    assert [row["parent"] for row in rows] == ["", "", "", "teacher", "student"]
    record = read_record(artifact.parents[1] / "models" / "run" / "plain")
    assert record["options"]["kd_alpha"] == 0 and record["options"]["epochs"] == 1


def test_tuned_thresholds_are_in_every_later_format(run, tmp_path):
    rows, artifact = run("--tune_threshold")
    by_stage = {row["stage"]: row for row in rows}
    label, value = by_stage["tuned"]["thresholds"].split(": ")
    assert label == "1" and by_stage["fp16"]["thresholds"] == by_stage["tuned"]["thresholds"]
    texts = pd.read_parquet(tmp_path / "models" / "run" / "splits" / "test.parquet")[
        "text"
    ].tolist()
    before, after = (
        predict_logits(load_engine(tmp_path / "models" / "run" / stage, "torch", 32), texts)
        for stage in ("distill", "tune")
    )
    positive = 1 / (1 + np.exp(before[:, 0] - before[:, 1]))
    clear = np.abs(positive - float(value)) > 1e-3
    assert (decide(after, False) == (positive > float(value)))[clear].all()
    assert json.loads((artifact / "config.json").read_text())["decision_thresholds"] == {
        "1": pytest.approx(float(value), abs=1e-4)
    }


def test_a_threshold_folded_into_the_bias_gives_the_same_decisions():
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(3)
    fold_thresholds_(bias, [0.2, 0.5, 0.9])
    assert torch.equal(logits + bias > 0, logits.sigmoid() > torch.tensor([0.2, 0.5, 0.9]))
    pair = torch.zeros(2)
    fold_thresholds_(pair, [0.3])
    assert torch.equal((logits[:, :2] + pair).argmax(1) == 1, logits[:, :2].softmax(1)[:, 1] > 0.3)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra", "albert"])
def test_the_bias_that_is_added_last_is_found(family):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        family,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=50,
        intermediate_size=64,
        num_labels=3,
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        head_bias(model)[1] += 1
        assert torch.allclose(
            model(input_ids=ids).logits - before, torch.tensor([[0.0, 1.0, 0.0]]), atol=1e-6
        )


def test_thresholds_of_three_classes_are_refused():
    with pytest.raises(UserError, match="3 classes"):
        check_tunable(Task(("a", "b", "c"), False))


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--num_folds", "3", "--seeds", "1", "2"], "--num_folds and --seeds"),
        (["--num_folds", "1"], "--num_folds is 1"),
        (["--seeds", "1", "1"], "each seed must be given once"),
        (["--num_folds", "2", "--validation_fraction", "0.5"], "must leave training rows"),
        (["--kd_baseline", "--pipeline", "prune_only"], "trains no student"),
    ],
)
def test_options_that_do_not_go_together_are_refused(argv, said):
    with pytest.raises(UserError, match=said):
        parse_options(argv)


def test_a_label_drift_divides_the_test_split_in_two(tiny_csv):
    splits, _, _ = load_splits(Options(dataset_path=str(tiny_csv)))
    sides = with_drift_sides(splits, [{"last_row": 80}])["test"]
    assert all(
        side == ("1-80" if row < 80 else "81-")
        for row, side in zip(sides["id"], sides["rows"], strict=True)
    )


def test_each_slice_is_measured():
    from metrics import slice_metrics

    test = pd.DataFrame({"group": ["f", "f", "m", "m"]})
    found = slice_metrics(test, np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]))
    assert (
        found["accuracy[group=f]"] == found["macro_f1[group=f]"] == 1
        and found["rows[group=m]"] == 2
    )
    assert found["accuracy[group=m]"] == 0.5 and found["macro_f1[group=m]"] == pytest.approx(
        (2 / 3 + 0) / 2
    )


def test_the_table_prints_as_text_markdown_and_latex(tmp_path, capsys):
    row = {
        "stage": "student_plain",
        "size_mb": 1.5,
        "packed_mb": 0.9,
        "macro_f1": 0.8,
        "delta_macro_f1": -0.004,
        "compression_ratio": 2.0,
        "delta_macro_f1_low": -0.013,
        "delta_macro_f1_high": 0.006,
        "agreement": 0.9,
        "speedup_torch": 3.0,
        "latency_ms_p50": 1.25,
        "confusion": [[1, 0], [0, 1]],
        "bytes": 1,
    }
    results.write_results(tmp_path, [row], {"seed": 1}, {})
    assert "confusion" not in (tmp_path / "results_final.csv").read_text()
    assert report.main([str(tmp_path)]) == 0
    assert "-0.4 [-1.3, +0.6]" in capsys.readouterr().out
    assert report.main([str(tmp_path), "--format", "markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == (
        "| student_plain | 1.50 | 0.90 | 0.8000 | -0.4 [-1.3, +0.6] "
        "| 2.00x | 3.00x | 0.900 | 1.25 |"
    )
    assert report.main([str(tmp_path), "--format", "latex"]) == 0
    assert (
        "student\\_plain & 1.50 & 0.90 & 0.8000 & -0.4 [-1.3, +0.6] & 2.00x"
        in capsys.readouterr().out
    )
    assert report.main([str(tmp_path / "absent")]) == 2
    assert "contains no results_final.json" in capsys.readouterr().err
