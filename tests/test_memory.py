"""Caching and resuming: nothing is computed twice, nothing stale is reused, and a killed run
resumes exactly."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from measuring import quick_measuring
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed

from compression_config import OPTIONS, Options
from data import load_splits
from encoders.start import start_teacher
from experiments import stages
from experiments.checks import resolve_defaults
from experiments.plan import STAGES, Role
from experiments.stages import StageRunner
from runtime import artifacts
from runtime.checkpoints import best_checkpoint, is_finished, last_checkpoint
from runtime.command_line import config_entries, parse_options
from runtime.errors import UserError
from trainer import training_settings
from training import hard_target_loss, train_

BY_NAME = {stage.name: stage for stage in STAGES}
LEAVES = [stage.name for stage in STAGES if stage.role is Role.FORMAT]
TRUNK = ["teacher", "start", "trim", "narrow", "distill", "prune", "qat"]
ALL, AFTER_TRAINING = {*TRUNK, *LEAVES}, {"prune", "qat", *LEAVES}
AFTER_SHAPE = {"distill"} | AFTER_TRAINING
INVALIDATES = {  # option -> the stages, without baselines, that it invalidates
    "dataset_path": ALL,
    "text_column": ALL,
    "label_columns": ALL,
    "label_names": ALL,
    "label_separator": ALL,
    "validation_fraction": ALL,
    "test_fraction": ALL,
    "data_fraction": ALL,
    "seed": ALL,
    "max_length": ALL,
    "batch": ALL,
    "device": ALL,
    "precision": ALL,
    "weight_decay": ALL,
    "accumulate": ALL,
    "warmup_ratio": ALL,
    "class_weights": ALL,
    "early_stopping_patience": ALL,
    "teacher_path": ALL,
    "teacher_epochs": ALL,
    "teacher_lr": ALL,
    "student_path": ALL - {"teacher"},
    "student_tokenizer": ALL - {"teacher"},
    "unlabeled_path": ALL - {"teacher"},
    "trim_vocab": ALL - {"teacher", "start"},
    "ffn_width": {"narrow"} | AFTER_SHAPE,
    "epochs": AFTER_SHAPE,
    "lr": AFTER_SHAPE,
    "kd_alpha": AFTER_SHAPE,
    "kd_temperature": AFTER_SHAPE,
    "kd_method": AFTER_SHAPE,
    "prune_method": AFTER_TRAINING,
    "prune_sparsity": AFTER_TRAINING,
    "prune_schedule": AFTER_TRAINING,
    "prune_layers": AFTER_TRAINING,
    "fine_tune_epochs": AFTER_TRAINING,
    "calibration_samples": {"narrow"} | AFTER_SHAPE,
    "quant_method": {"quantize"},
    "export": {"export"},
    "qat": {"qat", *LEAVES},
    "qat_epochs": {"qat", *LEAVES},
    "max_f1_drop": set(LEAVES),
    "quant_auto": set(LEAVES),
    "augment": ALL - {"teacher"},
    "no_header": ALL,
    "max_input_gb": set(),
    "pipeline": set(),
    "run_ablation": set(),
    "experiment": set(),
    "audit": set(),
    "kd_baseline": set(),
    "seeds": set(),
    "tune_threshold": set(),
    "group_column": ALL,
    "num_folds": ALL,
    "validation_path": ALL,
    "test_path": ALL,
    "output_dir": set(),
    "reuse": set(),
    "overwrite": set(),
    "config": set(),
    "quiet": set(),
    "verbose": set(),
    "report_to": set(),
    "no_examples": set(),
    "no_benchmark": set(),
    "push_to_hub": set(),
}
FROM_THE_FILE = {
    "dataset_path",
    "text_column",
    "label_columns",
    "label_names",
    "label_separator",
    "validation_fraction",
    "test_fraction",
    "data_fraction",
    "group_column",
    "num_folds",
    "validation_path",
    "test_path",
    "unlabeled_path",
    "augment",
    "no_header",
}


def test_the_invalidation_table_is_complete():
    assert set(INVALIDATES) == set(OPTIONS)


@pytest.mark.parametrize("option", sorted(set(INVALIDATES) - FROM_THE_FILE))
def test_an_option_invalidates_the_stages_that_read_it_and_those_after(option):
    read = [name for name in [*TRUNK, *LEAVES] if option in BY_NAME[name].options]
    invalidated = set(read)
    if read and read[0] in TRUNK:
        invalidated = {*TRUNK[TRUNK.index(read[0]) :], *LEAVES}
    assert invalidated == INVALIDATES[option]


def test_the_stages_of_the_table_are_those_of_the_plan():
    compared_only = {stage.name for stage in STAGES if stage.is_compared_only}
    assert {*TRUNK, *LEAVES} == set(BY_NAME) - compared_only - {"tune"}


@pytest.mark.parametrize(
    "option, value",
    [("validation_fraction", 0.2), ("test_fraction", 0.3), ("data_fraction", 0.5), ("seed", 7)],
)
def test_a_data_option_changes_the_fingerprint_of_every_stage(option, value, tiny_csv):
    assert (
        teacher_fingerprint(tiny_csv)
        == teacher_fingerprint(tiny_csv)
        != teacher_fingerprint(tiny_csv, **{option: value})
    )


def opened(path: Path, **options) -> StageRunner:
    start = {"teacher_path": "scratch:1x64", "student_path": "teacher:1"}
    options = replace(Options(), dataset_path=str(path), **start, **options)
    splits, task, _ = load_splits(options)
    return StageRunner("", path.parent, path.parent, options, splits, task)


def fingerprint(runner: StageRunner, name: str) -> str:
    """The fingerprint of one step of the runner's plan."""
    (step,) = [step for step in runner.plan if step.stage.name == name]
    return runner.fingerprint(step)


def teacher_fingerprint(path: Path, **options) -> str:
    return fingerprint(opened(path, **options), "teacher")


@pytest.mark.parametrize(
    "option, value", [("seed", 7), ("max_length", 17), ("teacher_lr", 0.5), ("weight_decay", 0.5)]
)
def test_a_training_option_changes_the_fingerprint_on_the_same_rows(option, value, tiny_csv):
    runner = opened(tiny_csv)
    changed = replace(runner.options, **{option: value})
    other = StageRunner("", runner.directory, runner.models, changed, runner.splits, runner.task)
    assert fingerprint(other, "teacher") != fingerprint(runner, "teacher")


def test_a_student_of_another_teacher_is_another_student(tiny_csv, tmp_path):
    runner = opened(tiny_csv)
    runner.directory = tmp_path
    fingerprints = []
    for of_parents in ("abc", "abc", "def"):
        for name in ("teacher", "distill"):
            finished(tmp_path / name, of_parents)
        fingerprints.append([fingerprint(runner, name) for name in ("distill", "prune")])
    first, same_parents, other_parents = fingerprints
    assert first == same_parents
    assert first[0] != other_parents[0] and first[1] != other_parents[1]


def test_the_number_of_processes_is_part_of_the_fingerprint_of_a_trained_stage(
    tiny_csv, monkeypatch
):
    alone = teacher_fingerprint(tiny_csv)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert teacher_fingerprint(tiny_csv) != alone


def test_one_changed_cell_changes_the_fingerprint_of_every_stage(tiny_csv, tmp_path):
    table = pd.read_csv(tiny_csv)
    table.loc[
        load_splits(Options(dataset_path=str(tiny_csv)))[0]["train"]["id"][0], "Comments"
    ] += "."
    table.to_csv(tmp_path / "changed.csv", index=False)
    assert teacher_fingerprint(tmp_path / "changed.csv") != teacher_fingerprint(tiny_csv)


def test_the_weights_of_a_local_teacher_are_part_of_its_hash(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = artifacts.source_hash(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert artifacts.source_hash(str(tmp_path)) != before
    assert artifacts.source_hash("scratch:2x64") != artifacts.source_hash("scratch:2x128")


def finished(folder: Path, fingerprint: str) -> Path:
    with artifacts.atomic_directory(folder, fingerprint) as partial:
        (partial / "weights").write_text("1 2 3")
        artifacts.write_record(partial, fingerprint=fingerprint)
    return folder


def test_a_finished_directory_is_found_by_fingerprint_and_only_while_unchanged(tmp_path):
    made = finished(tmp_path / "run" / "teacher", "abc")
    assert artifacts.find_finished([tmp_path], "abc") == made
    assert artifacts.find_finished([tmp_path], "other") is None
    (made / "weights").write_text("1 2 4")
    assert artifacts.find_finished([tmp_path], "abc") is None


def test_an_error_leaves_the_target_absent_and_the_next_try_starts_clean(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        artifacts.atomic_directory(tmp_path / "stage", "abc") as partial,
    ):
        (partial / "half").write_text("x")
        (partial / "checkpoints").mkdir()
        raise ZeroDivisionError
    assert not (tmp_path / "stage").exists()
    with artifacts.atomic_directory(tmp_path / "stage", "abc") as partial:
        assert [path.name for path in partial.iterdir()] == ["checkpoints"]
    assert list((tmp_path / "stage").iterdir()) == [] and list(tmp_path.glob("*.partial")) == []


def test_partial_directories_of_killed_runs_are_deleted_at_any_depth(tmp_path):
    (tmp_path / "outputs" / "train.abc.partial").mkdir(parents=True)
    (tmp_path / "teacher.abc.partial").mkdir()
    artifacts.delete_partials(tmp_path)
    assert list(tmp_path.rglob("*.partial")) == []


def test_a_stage_killed_between_its_record_and_its_rename_is_published(tmp_path):
    made = finished(tmp_path / "stage", "abc")
    made.rename(artifacts.partial_path(made, "abc"))
    artifacts.publish_if_finished(made, "other")
    assert not made.exists()
    artifacts.publish_if_finished(made, "abc")
    assert made.exists() and list(tmp_path.glob("*.partial")) == []


def test_a_second_run_of_one_experiment_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    said = pytest.raises(UserError, match="in use by another run")
    with FileLock(tmp_path / "run" / ".lock"), said, artifacts.exclusive_lock(tmp_path / "run"):
        pass


def test_a_run_takes_the_lock_of_its_directory(run_main, tiny_csv, tmp_path, capsys):
    directory = tmp_path / "models" / "run"
    directory.mkdir(parents=True)
    places = ["--dataset_path", str(tiny_csv), "--output_dir", str(tmp_path)]
    with FileLock(directory / ".lock"):
        assert run_main([*places, "--experiment", "run"]) == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert not (directory / "config.yaml").exists()


class Kill(TrainerCallback):
    """Stops training at a step, as a killed process does: no cleanup in our code runs."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def train(
    csv: Path, folder: Path, *callbacks: TrainerCallback, epochs: int = 4
) -> dict[str, torch.Tensor]:
    """Weights after training a tiny model in `folder`, resuming from any checkpoint there."""
    splits, task, columns = load_splits(Options(dataset_path=str(csv)))
    del splits["test"]  # training may not look at it
    options = resolve_defaults(
        replace(Options(), device="cpu", student_path="teacher:1", early_stopping_patience=2),
        columns,
    )
    set_seed(1)
    model, tokenizer = start_teacher("scratch:1x64", task, splits["train"][:]["text"], 128)
    settings = training_settings(options, epochs=epochs, learning_rate=5e-3)
    loss = hard_target_loss()
    train_(model, tokenizer, splits, folder, settings, loss=loss, callbacks=callbacks)
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def newest(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(last_checkpoint(folder / "checkpoints") / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tiny_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return train(tiny_csv, folder), newest(folder), folder


@pytest.mark.parametrize(
    "step", [2, 6, 10]
)  # four steps an epoch: before any checkpoint, in the second, in the third
def test_a_killed_training_resumes_to_the_same_weights(step, tiny_csv, tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_csv, tmp_path, Kill(step))
    best = train(tiny_csv, tmp_path)
    assert same(
        newest(tmp_path), uninterrupted[1]
    )  # the last weights too: the best could hide a divergence
    assert same(best, uninterrupted[0])


def test_a_finished_training_is_not_continued(tiny_csv, tmp_path, uninterrupted):
    shutil.copytree(uninterrupted[2], tmp_path / "again")
    assert is_finished(last_checkpoint(tmp_path / "again" / "checkpoints"), 4, 2)
    best = train(tiny_csv, tmp_path / "again", Kill(1), Kill(5), Kill(17))
    assert same(best, uninterrupted[0])


@pytest.mark.parametrize(
    "missing", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "model.safetensors"]
)
def test_a_checkpoint_with_a_missing_file_is_ignored(missing, tmp_path, uninterrupted):
    shutil.copytree(uninterrupted[2] / "checkpoints", tmp_path / "checkpoints")
    last = last_checkpoint(tmp_path / "checkpoints")
    (last / missing).unlink()
    assert last_checkpoint(tmp_path / "checkpoints") != last


def test_a_checkpoint_with_a_truncated_state_is_ignored(tmp_path, uninterrupted):
    shutil.copytree(uninterrupted[2] / "checkpoints", tmp_path / "checkpoints")
    last = last_checkpoint(tmp_path / "checkpoints")
    text = (last / "trainer_state.json").read_text()
    (last / "trainer_state.json").write_text(text[: len(text) // 2])
    assert last_checkpoint(tmp_path / "checkpoints") != last


def test_the_best_epoch_is_kept_not_the_last(tmp_path):
    for step in (1, 2):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        state = {"global_step": step, "best_global_step": 1}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    assert best_checkpoint(tmp_path / "checkpoint-2") == tmp_path / "checkpoint-1"


SMALL = (
    "--teacher_path scratch:1x64 --student_path teacher:1 --teacher_epochs 1 --epochs 1 "
    "--fine_tune_epochs 1 --max_length 32 --device cpu"
).split()


def reused(output: Path, name: str) -> dict[str, bool]:
    document = json.loads((output / "compressed_models" / name / "results_final.json").read_text())
    return {row["stage"]: row["remembered"] for row in document["rows"]}


@pytest.fixture(scope="module")
def first_run(tiny_csv, tmp_path_factory, in_measuring_process):
    from main import main

    output = tmp_path_factory.mktemp("memory")
    with quick_measuring(in_measuring_process):
        argv = ["--dataset_path", str(tiny_csv), "--output_dir", str(output), *SMALL]
        assert main([*argv, "--experiment", "first"]) == 0
    return output


def test_the_same_command_recomputes_nothing(first_run, run_main, tiny_csv, monkeypatch):
    def forbidden(*_):
        raise AssertionError("a stage was computed again")

    monkeypatch.setattr(stages, "measure_cost", forbidden)
    argv = ["--dataset_path", str(tiny_csv), "--output_dir", str(first_run), *SMALL]
    assert run_main([*argv, "--experiment", "first"]) == 0
    assert all(reused(first_run, "first").values())
    assert run_main([*argv, "--experiment", "second"]) == 0  # no stage reads --experiment
    assert all(reused(first_run, "second").values())


def test_another_temperature_does_not_run_the_teacher_again(
    first_run, run_main, tiny_csv, monkeypatch
):
    def forbidden(*_):
        raise AssertionError("the teacher ran again")

    monkeypatch.setattr(stages, "write_teacher_outputs", forbidden)
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(first_run),
        "--kd_temperature",
        "4",
        *SMALL,
    ]
    assert run_main([*argv, "--experiment", "warmer"]) == 0
    assert reused(first_run, "warmer")["student"] is False


def test_another_quantization_reuses_all_earlier_stages(first_run, run_main, tiny_csv):
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(first_run),
        "--quant_method",
        "static",
        *SMALL,
    ]
    assert run_main([*argv, "--experiment", "static"]) == 0
    assert reused(first_run, "static") == {
        "linear": True,
        "teacher": True,
        "student": True,
        "pruned": True,
        "static-onnx": False,
    }


def test_the_name_of_a_run_with_other_options_is_refused_unless_overwritten(
    first_run, run_main, tiny_csv, capsys
):
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(first_run),
        "--experiment",
        "renamed",
        *SMALL,
    ]
    assert run_main(argv) == 0
    changed = [*argv, "--fine_tune_epochs", "3"]
    kept = first_run / "models" / "renamed" / "config.yaml"
    kept.write_text(
        re.sub("^qat.*\n", "", kept.read_text(), flags=re.M)
    )  # as a version without --qat wrote it
    assert run_main(changed) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    expected = "already exists with other options (--fine_tune_epochs was 1, now 3)"
    assert "--experiment renamed " + expected in said
    assert run_main([*changed, "--overwrite"]) == 0
    assert reused(first_run, "renamed")["pruned"] is False


def test_an_audit_keeps_the_checkpoints_of_a_killed_run(first_run, run_main, tiny_csv, capsys):
    begun = first_run / "models" / "audited" / "prune.abc.partial" / "checkpoints"
    begun.mkdir(parents=True)
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(first_run),
        "--experiment",
        "audited",
        *SMALL,
    ]
    assert run_main([*argv, "--fine_tune_epochs", "2", "--audit"]) == 0 and begun.is_dir()
    assert run_main([*argv, "--fine_tune_epochs", "2"]) == 0 and not begun.is_dir()


def test_reuse_finds_stages_in_another_directory(first_run, run_main, tiny_csv, tmp_path):
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(tmp_path),
        "--experiment",
        "r",
        *SMALL,
    ]
    assert run_main([*argv, "--reuse", str(first_run)]) == 0
    assert all(reused(tmp_path, "r").values())


def test_the_file_that_a_run_writes_reproduces_it(first_run, run_main, tmp_path):
    config = first_run / "models" / "first" / "config.yaml"
    argv = ["--config", str(config), "--output_dir", str(tmp_path), "--experiment", "again"]
    options, kept = parse_options(argv), config_entries(config)
    assert str(options.epochs) == kept["epochs"] and options.label_columns == tuple(
        kept["label_columns"]
    )
    assert run_main([*argv, "--reuse", str(first_run)]) == 0
    assert all(reused(tmp_path, "again").values())


def test_the_command_line_takes_precedence_over_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "batch: 16\nlr: 1e-4\noverwrite: true\nlabel_columns: [a, b]\n"
    )
    options = parse_options(["--config", str(tmp_path / "run.yaml"), "--batch", "8"])
    assert (options.batch, options.lr, options.overwrite, options.label_columns) == (
        8,
        1e-4,
        True,
        ("a", "b"),
    )
