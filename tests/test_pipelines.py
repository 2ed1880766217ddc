"""Every pipeline and method, from the command line to reloaded artifacts, on a tiny teacher."""

import csv
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import zstandard
from measuring import quick_measuring
from safetensors.torch import load_file

from compression_config import PIPELINES, Options
from data import load_splits
from experiments.experiment import default_name
from quantization import QUANTIZERS
from task import Task

METHODS = {"prune": ("magnitude", "wanda"), "quantize": ("fp16", "dynamic", "static", "int4")}
SMALL = (
    "--teacher_path scratch:2x64 --student_path teacher:1 --teacher_epochs 4 --epochs 2 "
    "--fine_tune_epochs 1 --max_length 32 --device cpu --calibration_samples 16"
).split()


class FinishedRun(NamedTuple):
    """What one run returned, printed and wrote."""

    code: int
    printed: str
    document: dict  # results_final.json
    rows: list[dict]  # of results_final.csv


def combinations() -> list[tuple[str, str, str]]:
    """Every distinct (pipeline, prune method, quantization): a method only if its stage runs."""
    found = []
    for pipeline, stages in PIPELINES.items():
        prune_methods = METHODS["prune"] if "prune" in stages else ("magnitude",)
        quant_methods = METHODS["quantize"] if "quantize" in stages else ("fp16",)
        found += itertools.product([pipeline], prune_methods, quant_methods)
    return found


def read_results(output: Path, name: str) -> tuple[dict, list[dict]]:
    directory = output / "compressed_models" / name
    document = json.loads((directory / "results_final.json").read_text())
    with (directory / "results_final.csv").open(newline="", encoding="utf-8") as file:
        return document, list(csv.DictReader(file))


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """One directory for all runs, so that they share stages."""
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def finished_runs(output, tiny_csv, in_measuring_process) -> dict[tuple, FinishedRun]:
    """Every combination, run once in the shared directory."""
    from main import main

    runs = {}
    with quick_measuring(in_measuring_process):
        for pipeline, prune, quant in combinations():
            name = f"{pipeline}-{prune}-{quant}"
            argv = f"--pipeline {pipeline} --prune_method {prune} --quant_method {quant}".split()
            argv += ["--dataset_path", str(tiny_csv), "--output_dir", str(output)]
            with redirect_stdout(io.StringIO()) as printed:
                code = main([*argv, "--experiment", name, *SMALL])
            results = read_results(output, name)
            runs[pipeline, prune, quant] = FinishedRun(code, printed.getvalue(), *results)
    return runs


@pytest.mark.parametrize("pipeline, prune, quant", combinations())
def test_a_pipeline_writes_a_complete_row_for_each_stage(
    pipeline, prune, quant, finished_runs, output
):
    run = finished_runs[pipeline, prune, quant]
    assert run.code == 0
    assert run.printed.splitlines()[0].split()[:3] == ["Stage", "Size", "(MB)"]
    assert [row["stage"] for row in run.rows] == expected_rows(pipeline, quant)
    assert run.document["config"]["pipeline"] == run.rows[0]["config.pipeline"] == pipeline
    check_rows(run.document["rows"], PIPELINES[pipeline], output)


def expected_rows(pipeline: str, quant: str) -> list[str]:
    rows = ["linear", "teacher"]
    rows += [
        {"distill": "student", "prune": "pruned"}[stage]
        for stage in PIPELINES[pipeline]
        if stage != "quantize"
    ]
    if "quantize" in PIPELINES[pipeline]:
        rows += [quant + ("-onnx" if engine == "onnx" else "") for engine in QUANTIZERS[quant]]
    return rows


def check_rows(rows: list[dict], stages: tuple[str, ...], output: Path) -> None:
    by_stage = {row["stage"]: row for row in rows}
    for row in rows:
        empty = {metric for metric, value in row.items() if value in (None, "")}
        no_tokens = {"speedup_engine", "tokenize_ms", "latency_ms_p50_len32", "throughput_len32"}
        too_long = {"latency_ms_p50_len128", "throughput_len128"}  # --max_length is 32
        assert empty <= {"parent"} | too_long | (no_tokens if row["stage"] == "linear" else set())
        files = [Path(row["directory"]) / name for name in row["files"].split()]
        assert row["bytes"] == sum(file.stat().st_size for file in files)
        assert 0 <= row["macro_f1"] <= 1 and row["latency_ms_p50"] <= row["latency_ms_p95"]
    assert by_stage["teacher"]["agreement"] == by_stage["teacher"]["compression_ratio"] == 1
    final = rows[-1]
    assert final["compression_ratio"] == pytest.approx(
        by_stage["teacher"]["bytes"] / final["bytes"]
    )
    if "prune" in stages:
        assert by_stage["pruned"]["sparsity"] == pytest.approx(0.4, abs=0.01)
        assert final["sparsity"] >= by_stage["pruned"]["sparsity"] - 1e-9


@pytest.mark.parametrize("pipeline, prune, quant", combinations())
def test_a_format_is_compared_with_its_full_precision_parent(pipeline, prune, quant, finished_runs):
    rows = {row["stage"]: row for row in finished_runs[pipeline, prune, quant].document["rows"]}
    formats = [row for row in rows.values() if "parent_delta_macro_f1" in row]
    assert len(formats) == (len(QUANTIZERS[quant]) if "quantize" in PIPELINES[pipeline] else 0)
    for row in formats:
        difference = row["macro_f1"] - rows[row["parent"]]["macro_f1"]
        assert row["parent_delta_macro_f1"] == pytest.approx(difference)


def test_every_row_is_measured_on_the_test_rows(finished_runs, output, tiny_csv):
    wanted = load_splits(Options(dataset_path=str(tiny_csv)))[0]["test"]["id"][:]
    found = [
        pd.read_parquet(path)["id"].tolist()
        for path in output.glob("models/*/predictions/*.parquet")
    ]
    assert found and all(ids == wanted for ids in found)


def test_shared_stages_are_made_once(finished_runs, output):
    made = [
        json.loads(path.read_text())["fingerprint"]
        for path in output.glob("models/*/teacher/stage.json")
    ]
    assert len(set(made)) == 1 and len(made) > 20
    inodes = {path.stat().st_ino for path in output.glob("models/*/teacher/model.safetensors")}
    assert len(inodes) == 1


def test_pruned_weights_on_disk_are_zero(finished_runs, output):
    directory = output / "models" / "kd_prune-wanda-fp16" / "prune"
    weights = load_file(directory / "model.safetensors")
    query = weights["bert.encoder.layer.0.attention.self.query.weight"]
    assert (query == 0).sum(dim=1).tolist() == [26] * 64  # round(0.4 * 64) in every row
    assert (weights["classifier.weight"] == 0).sum() == 0


def test_no_partial_directory_is_left(finished_runs, output):
    assert list(output.rglob("*.partial")) == []


def test_every_file_can_be_read_as_the_umask_says(finished_runs, output):
    mask = os.umask(0)
    os.umask(mask)
    files = [path for path in output.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


def test_every_tokenizer_loads_in_other_versions_of_transformers(finished_runs, output):
    paths = list(output.rglob("tokenizer_config.json"))
    configs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    assert {config["tokenizer_class"] for config in configs} == {"PreTrainedTokenizerFast"}
    assert not any({"is_local", "local_files_only"} & config.keys() for config in configs)


def test_a_fresh_process_reloads_every_final_format_as_evaluated(finished_runs, output):
    """Plain transformers for what it reads, and plain `pipeline` on raw texts for the table's
    decisions."""
    checker = Path(__file__).parent / "reload_artifacts.py"
    names = ["-".join(combination) for combination in finished_runs]
    command = [sys.executable, checker, output, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    count = len(combinations()) + sum(quant == "dynamic" for _, _, quant in combinations())
    assert f"{count} form" in done.stdout


def test_the_student_is_reshaped_before_it_is_trained(run_main, tiny_csv, output):
    argv = [
        "--pipeline",
        "kd_prune_quant",
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(output / "shapes"),
        "--trim_vocab",
        "used",
        "--ffn_width",
        "0.5",
        "--prune_schedule",
        "cubic",
        "--quant_method",
        "dynamic",
        "--kd_baseline",
        "--experiment",
        "run",
        *SMALL,
    ]
    assert run_main(argv) == 0
    document, _ = read_results(output / "shapes", "run")
    rows = {row["stage"]: row for row in document["rows"]}
    assert list(rows) == [
        "linear",
        "teacher",
        "start",
        "trimmed",
        "narrowed",
        "student_plain",
        "student",
        "pruned",
        "dynamic",
        "dynamic-onnx",
    ]
    assert rows["start"]["bytes"] > rows["trimmed"]["bytes"] > rows["narrowed"]["bytes"]
    shapes = {
        json.loads((Path(rows[name]["directory"]) / "config.json").read_text())["intermediate_size"]
        for name in ("narrowed", "student_plain", "student", "pruned")
    }
    assert shapes == {128} and rows["student"]["parameters"] == rows["narrowed"]["parameters"]
    assert [rows[name]["parent"] for name in ("trimmed", "student", "pruned")] == [
        "start",
        "teacher",
        "student",
    ]
    assert rows["dynamic-onnx"]["sparsity"] >= rows["pruned"]["sparsity"] >= 0.39


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_the_artifact_has_every_format_as_it_was_measured(method, run_main, tiny_csv, output):
    argv = [
        "--pipeline",
        "kd_quant",
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(output),
        "--quant_method",
        method,
        "--export",
        "onnx",
        "--experiment",
        f"both-{method}",
        *SMALL,
    ]
    assert run_main(argv) == 0
    document, _ = read_results(output, f"both-{method}")
    shipped = output / "compressed_models" / f"both-{method}"
    record = json.loads((shipped / "stage.json").read_text())
    for row in document["rows"]:
        if row["stage"] in record["forms"]:
            (graph,) = (
                name for name in row["files"].split() if name.endswith((".onnx", ".safetensors"))
            )
            assert (shipped / graph).read_bytes() == (
                Path(row["directory"]) / graph
            ).read_bytes(), row["stage"]
    assert {f"{method}-onnx", "onnx-int8", "onnx-static", "onnx-int4"} <= set(record["forms"])


@pytest.mark.parametrize(
    "file, stem", [("my comments (1).final.csv", "my_comments__1_"), ("মন্তব্য-২.csv", "মন্তব্য-২")]
)
def test_a_run_is_named_after_its_file_without_shell_characters(file, stem):
    options = replace(Options(), pipeline="kd_only", dataset_path=f"some where/{file}")
    name = default_name(options, [], Task(("0", "1"), False))
    assert name[:-7] == f"kd_only_{stem}"


def test_without_distillation_the_teacher_itself_is_reshaped(run_main, tiny_csv, output):
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(output / "shapes"),
        "--trim_vocab",
        "auto",
        *SMALL,
    ]
    assert (
        run_main([*argv, "--pipeline", "prune_only", "--ffn_width", "96", "--experiment", "pruned"])
        == 0
    )
    assert run_main([*argv, "--pipeline", "quant_only", "--experiment", "quantized"]) == 0
    stages = [
        [row["stage"] for row in read_results(output / "shapes", name)[0]["rows"]]
        for name in ("pruned", "quantized")
    ]
    assert stages == [
        ["linear", "teacher", "trimmed", "narrowed", "pruned"],
        ["linear", "teacher", "trimmed", "fp16"],
    ]


def test_the_archive_has_the_artifact_and_is_smaller_for_pruned_weights(finished_runs, output):
    artifact = output / "compressed_models" / "kd_prune-wanda-fp16"
    document, _ = read_results(output, artifact.name)
    rows = {row["stage"]: row for row in document["rows"]}
    with (
        zstandard.open(f"{artifact}.tar.zst", "rb") as compressed,
        tarfile.open(fileobj=compressed, mode="r|") as bundle,
    ):
        held = {entry.name: bundle.extractfile(entry).read() for entry in bundle}
    assert held == {
        f"{artifact.name}/{path.relative_to(artifact)}": path.read_bytes()
        for path in artifact.rglob("*")
        if path.is_file()
    }
    assert rows["pruned"]["bytes"] == pytest.approx(rows["student"]["bytes"], rel=1e-3)
    assert rows["pruned"]["packed_bytes"] < 0.9 * rows["student"]["packed_bytes"]
    assert (
        rows["pruned"]["packed_ratio"]
        == rows["teacher"]["packed_bytes"] / rows["pruned"]["packed_bytes"]
    )


def test_multi_label_from_loss_to_table(run_main, tiny_multilabel_csv, output):
    argv = [
        "--pipeline",
        "kd_prune_quant",
        "--quant_method",
        "dynamic",
        "--dataset_path",
        str(tiny_multilabel_csv),
        "--class_weights",
        "balanced",
        "--output_dir",
        str(output / "multi"),
        "--experiment",
        "run",
        *SMALL,
    ]
    assert run_main(argv) == 0
    document, rows = read_results(output / "multi", "run")
    assert document["problem_type"] == "multi_label_classification"
    assert {"f1.rude", "precision.ad", "recall.threat"} <= set(rows[0])
    config = json.loads(
        (output / "multi" / "models" / "run" / "teacher" / "config.json").read_text()
    )
    assert (
        config["problem_type"] == "multi_label_classification"
        and config["id2label"]["2"] == "threat"
    )
