"""Remembered, resumable: nothing is made twice, nothing stale is taken, and a killed run goes on exactly."""

import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from measuring import quick_measuring
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, set_seed

from compression_config import OPTIONS, Options, UserError
from data import load_splits
from encoders.start import start_teacher
from experiments import stages
from experiments.checks import resolve_defaults
from experiments.stages import LEAVES, STAGES, StageRunner
from losses import hard_label_loss
from runtime import artifacts
from runtime.command_line import config_entries, parse_options
from training import is_finished, last_checkpoint, load_best_weights_, train_

TRUNK = ["teacher", "start", "trim", "narrow", "distill", "prune", "qat"]
ALL, AFTER_TRAINING = {*TRUNK, *LEAVES}, {"prune", "qat", *LEAVES}
AFTER_SHAPE = {"distill"} | AFTER_TRAINING
INVALIDATES = {  # option -> the stages (the linear reference apart) that must be made again when it changes
    "dataset_path": ALL,
    "text_column": ALL,
    "label_columns": ALL,
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
    "kd_hidden_weight": AFTER_SHAPE,
    "kd_attention_weight": AFTER_SHAPE,
    "kd_relation_weight": AFTER_SHAPE,
    "prune_method": AFTER_TRAINING,
    "prune_sparsity": AFTER_TRAINING,
    "prune_scope": AFTER_TRAINING,
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
}
FROM_THE_FILE = {
    "dataset_path",
    "text_column",
    "label_columns",
    "validation_fraction",
    "test_fraction",
    "data_fraction",
    "group_column",
    "num_folds",
    "validation_path",
    "test_path",
    "unlabeled_path",
    "augment",
}


def test_the_list_of_what_invalidates_what_is_complete():
    assert set(INVALIDATES) == set(OPTIONS)


@pytest.mark.parametrize("option", sorted(set(INVALIDATES) - FROM_THE_FILE))
def test_an_option_invalidates_the_stages_that_read_it_and_those_after(option):
    read = [
        name
        for name in [*TRUNK, *LEAVES]
        if option in {f.name for f in fields(STAGES[name].options)}
    ]
    after = {*TRUNK[TRUNK.index(read[0]) :], *LEAVES} if read and read[0] in TRUNK else set(read)
    assert after == INVALIDATES[option]


@pytest.mark.parametrize(
    "option, value",
    [("validation_fraction", 0.2), ("test_fraction", 0.3), ("data_fraction", 0.5), ("seed", 7)],
)
def test_an_option_of_the_data_changes_what_every_stage_rests_on(option, value, tiny_csv):
    assert rests_on(tiny_csv) == rests_on(tiny_csv) != rests_on(tiny_csv, **{option: value})


def opened(path: Path, **options) -> StageRunner:
    start = {"teacher_path": "scratch:1x64", "student_path": "teacher:1"}
    options = replace(Options(), dataset_path=str(path), **start, **options)
    splits, task, _ = load_splits(options)
    return StageRunner("", path.parent, path.parent, options, splits, task)


def rests_on(path: Path, **options) -> str:
    return opened(path, **options).fingerprint("teacher", "scratch:1x64")


def test_a_student_of_another_teacher_is_another_student(tiny_csv, tmp_path):
    one, other = finished(tmp_path / "one", "abc"), finished(tmp_path / "other", "def")
    run = opened(tiny_csv)
    assert (
        run.fingerprint("distill", one)
        == run.fingerprint("distill", one)
        != run.fingerprint("distill", other)
    )
    assert run.fingerprint("prune", one) != run.fingerprint("prune", other)


def test_other_numbers_of_processes_make_other_stages(tiny_csv, monkeypatch):
    alone = rests_on(tiny_csv)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rests_on(tiny_csv) != alone


def test_one_changed_cell_changes_what_every_stage_rests_on(tiny_csv, tmp_path):
    table = pd.read_csv(tiny_csv)
    table.loc[
        load_splits(Options(dataset_path=str(tiny_csv)))[0]["train"]["id"][0], "Comments"
    ] += "."
    table.to_csv(tmp_path / "changed.csv", index=False)
    assert rests_on(tmp_path / "changed.csv") != rests_on(tiny_csv)


def test_other_weights_of_a_local_teacher_are_another_source(tmp_path):
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


def test_what_killed_runs_left_goes_at_any_depth(tmp_path):
    (tmp_path / "outputs" / "train.abc.partial").mkdir(parents=True)
    (tmp_path / "teacher.abc.partial").mkdir()
    artifacts.remove_partials(tmp_path)
    assert list(tmp_path.rglob("*.partial")) == []


def test_a_stage_killed_between_its_record_and_its_rename_is_adopted(tmp_path):
    made = finished(tmp_path / "stage", "abc")
    made.rename(artifacts.partial_path(made, "abc"))
    artifacts.recover_finished(made, "other")
    assert not made.exists()
    artifacts.recover_finished(made, "abc")
    assert made.exists() and list(tmp_path.glob("*.partial")) == []


def test_a_second_run_of_one_experiment_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    said = pytest.raises(UserError, match="in use by another run")
    with FileLock(tmp_path / "run" / ".lock"), said, artifacts.exclusive_lock(tmp_path / "run"):
        pass


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
    """Weights after training a tiny model in `folder`, going on from what is there."""
    splits, task, columns = load_splits(Options(dataset_path=str(csv)))
    del splits["test"]  # training may not look at it
    options = resolve_defaults(
        replace(Options(), device="cpu", student_path="teacher:1", early_stopping_patience=2),
        columns,
    )
    set_seed(1)
    model, tokenizer = start_teacher("scratch:1x64", task, splits["train"][:]["text"], 128)
    train_(
        model,
        tokenizer,
        splits,
        folder,
        options,
        epochs=epochs,
        lr=5e-3,
        loss=lambda logits, labels, _: hard_label_loss(logits, labels),
        callbacks=callbacks,
    )
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def newest(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(last_checkpoint(folder / "checkpoints") / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tiny_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(tiny_csv, folder), newest(folder), folder


@pytest.mark.parametrize(
    "step", [2, 6, 10]
)  # four steps an epoch: before any checkpoint, in the second, in the third
def test_a_killed_training_goes_on_to_the_same_weights(step, tiny_csv, tmp_path, undisturbed):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_csv, tmp_path, Kill(step))
    best = train(tiny_csv, tmp_path)
    assert same(
        newest(tmp_path), undisturbed[1]
    )  # the last weights too: the best could hide a divergence
    assert same(best, undisturbed[0])


def test_a_training_that_had_ended_is_not_trained_on(tiny_csv, tmp_path, undisturbed):
    shutil.copytree(undisturbed[2], tmp_path / "again")
    assert is_finished(last_checkpoint(tmp_path / "again" / "checkpoints"), 4, 2)
    best = train(tiny_csv, tmp_path / "again", Kill(1), Kill(5), Kill(17))
    assert same(best, undisturbed[0])


@pytest.mark.parametrize(
    "missing", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "model.safetensors"]
)
def test_a_checkpoint_that_lacks_a_file_is_not_taken(missing, tmp_path, undisturbed):
    shutil.copytree(undisturbed[2] / "checkpoints", tmp_path / "checkpoints")
    last = last_checkpoint(tmp_path / "checkpoints")
    (last / missing).unlink()
    assert last_checkpoint(tmp_path / "checkpoints") != last


def test_a_checkpoint_with_a_torn_state_is_not_taken(tmp_path, undisturbed):
    shutil.copytree(undisturbed[2] / "checkpoints", tmp_path / "checkpoints")
    last = last_checkpoint(tmp_path / "checkpoints")
    text = (last / "trainer_state.json").read_text()
    (last / "trainer_state.json").write_text(text[: len(text) // 2])
    assert last_checkpoint(tmp_path / "checkpoints") != last


def test_the_best_epoch_is_kept_not_the_last(tmp_path):
    for step, weight in ((1, 1.0), (2, 2.0)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"weight": torch.full((1, 1), weight)}, folder / "model.safetensors")
        (folder / "trainer_state.json").write_text(
            json.dumps({"global_step": step, "best_global_step": 1})
        )
    model = torch.nn.Linear(1, 1, bias=False)
    load_best_weights_(model, tmp_path / "checkpoint-2")
    assert model.weight.item() == 1.0


SMALL = [
    "--teacher_path",
    "scratch:1x64",
    "--student_path",
    "teacher:1",
    "--teacher_epochs",
    "1",
    "--epochs",
    "1",
    "--fine_tune_epochs",
    "1",
    "--max_length",
    "32",
    "--device",
    "cpu",
]


def remembered(output: Path, name: str) -> dict[str, bool]:
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


def test_the_same_command_makes_nothing_again(first_run, run_main, tiny_csv, monkeypatch):
    def forbidden(*_):
        raise AssertionError("a stage was made again")

    monkeypatch.setattr(stages, "measure_cost", forbidden)
    argv = ["--dataset_path", str(tiny_csv), "--output_dir", str(first_run), *SMALL]
    assert run_main([*argv, "--experiment", "first"]) == 0
    assert all(remembered(first_run, "first").values())
    assert run_main([*argv, "--experiment", "second"]) == 0  # no stage reads --experiment
    assert all(remembered(first_run, "second").values())


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
    assert remembered(first_run, "warmer")["student"] is False


def test_another_quantization_remembers_all_before_it(first_run, run_main, tiny_csv):
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
    assert remembered(first_run, "static") == {
        "linear": True,
        "teacher": True,
        "student": True,
        "pruned": True,
        "static-onnx": False,
    }


def test_a_name_that_holds_other_options_is_refused_unless_overwritten(
    first_run, run_main, tiny_csv, capsys
):
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(first_run),
        "--experiment",
        "second",
        *SMALL,
    ]
    changed = [*argv, "--fine_tune_epochs", "2"]
    kept = first_run / "models" / "second" / "config.yaml"
    kept.write_text(
        re.sub("^qat.*\n", "", kept.read_text(), flags=re.M)
    )  # as a version without --qat wrote it
    assert run_main(changed) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "--experiment second holds a run with other options (--fine_tune_epochs 1, not 2)" in said
    )
    assert run_main([*changed, "--overwrite"]) == 0
    assert remembered(first_run, "second")["pruned"] is False


def test_looking_at_the_data_leaves_what_a_killed_run_had_begun(
    first_run, run_main, tiny_csv, capsys
):
    begun = first_run / "models" / "second" / "prune.abc.partial" / "checkpoints"
    begun.mkdir(parents=True)
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(first_run),
        "--experiment",
        "second",
        *SMALL,
    ]
    assert run_main([*argv, "--fine_tune_epochs", "2", "--audit"]) == 0 and begun.is_dir()
    assert run_main([*argv, "--fine_tune_epochs", "2"]) == 0 and not begun.is_dir()


def test_reuse_takes_stages_from_another_folder(first_run, run_main, tiny_csv, tmp_path):
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
    assert all(remembered(tmp_path, "r").values())


def test_the_file_that_a_run_writes_reproduces_it(first_run, run_main, tmp_path):
    config = first_run / "models" / "first" / "config.yaml"
    argv = ["--config", str(config), "--output_dir", str(tmp_path), "--experiment", "again"]
    options, kept = parse_options(argv), config_entries(config)
    assert str(options.epochs) == kept["epochs"] and options.label_columns == tuple(
        kept["label_columns"]
    )
    assert run_main([*argv, "--reuse", str(first_run)]) == 0
    assert all(remembered(tmp_path, "again").values())


def test_the_command_line_wins_over_the_file(tmp_path):
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
