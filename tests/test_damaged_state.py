"""Damaged or half-written files of earlier runs: each is named in one line, ignored and written
again."""

import errno
import json
import logging
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from experiments import evaluation_cache
from reporting.run_page import training_histories
from runtime import artifacts
from runtime.checkpoints import LIST_NAME, delete_unusable, last_checkpoint, seal
from runtime.command_line import expand_runs, parse_options
from runtime.exit_codes import run_command
from runtime.files import (
    atomic_write,
    file_sha256,
    make_directory,
    partial_paths,
    read_json,
    read_state,
    write_json,
)
from runtime.logs import log_to_files, start_logging

NO_RECORDS = {
    "empty": b"",
    "binary": b"\xff\xfe\x00\x81",
    "cut": b'{"fingerprint": "abc", "fi',
    "empty object": b"{}",
    "list": b"[1]",
    "number": b"3",
    "wrong types": b'{"fingerprint": "abc", "files": 3}',
    "wrong cost": b'{"fingerprint": "abc", "files": {}, "seconds": "two"}',
    "deeply nested": b"[" * 10**5,
}


def finished(directory: Path, fingerprint: str = "abc") -> Path:
    """A finished directory of one file."""
    with artifacts.atomic_directory(directory, fingerprint) as partial:
        (partial / "weights").write_text("1 2 3")
        artifacts.write_record(partial, stage="teacher", fingerprint=fingerprint)
    return directory


def damage(path: Path, content: bytes | None) -> None:
    """Replace the content of a file; None makes it a directory."""
    if content is None:
        path.unlink()
        path.mkdir()
        (path / "file").touch()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("content", [*NO_RECORDS.values(), None], ids=[*NO_RECORDS, "directory"])
def test_a_damaged_record_is_named_in_one_line_and_its_stage_is_not_finished(
    content, tmp_path, caplog
):
    made = finished(tmp_path / "teacher")
    damage(made / "stage.json", content)
    assert artifacts.find_finished([made], "abc") is None
    (line,) = caplog.messages
    assert line.startswith(f"{made / 'stage.json'} is damaged and ignored: ")
    assert "\n" not in line and len(line) < 400


@pytest.mark.parametrize("content", [*NO_RECORDS.values(), None], ids=[*NO_RECORDS, "directory"])
def test_damaged_records_elsewhere_are_skipped_with_a_debug_line(content, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("a", "c"):
        damage(finished(tmp_path / name / "teacher") / "stage.json", content)
    made = finished(tmp_path / "b" / "teacher")
    assert artifacts.find_finished([tmp_path / "run" / "teacher", tmp_path], "abc") == made
    assert {record.levelno for record in caplog.records} <= {logging.DEBUG}


def test_a_damaged_file_of_a_stage_is_named_once(tmp_path, caplog):
    made = finished(tmp_path / "teacher")
    (made / "weights").write_text("1 2")
    assert artifacts.find_finished([made, tmp_path], "abc") is None
    assert caplog.messages == [f"{made / 'weights'} is damaged: {made} is not reused"]


def test_what_is_absent_is_not_damaged(tmp_path, caplog):
    assert read_state(tmp_path / "none.json", read_json) is None
    (tmp_path / "file").touch()
    assert read_state(tmp_path / "file" / "none.json", read_json) is None
    assert caplog.messages == []


def test_lookups_succeed_while_another_run_replaces_its_stages(tmp_path):
    made = finished(tmp_path / "z" / "teacher")
    is_over = threading.Event()

    def replace_stages() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            finished(tmp_path / "a" / "teacher", "abc" if number % 2 else "other")

    other_run = threading.Thread(target=replace_stages)
    other_run.start()
    try:
        for _ in range(150):
            found = artifacts.find_finished([tmp_path / "run" / "teacher", tmp_path], "abc")
            assert found is not None
            copy = tmp_path / "run" / "teacher"
            if artifacts.link_finished(found, copy, "abc"):
                assert artifacts.is_finished(copy, "abc", logging.WARNING)
                shutil.rmtree(copy)
            assert not copy.exists()
    finally:
        is_over.set()
        other_run.join()
    assert made.exists()


def test_files_that_are_renamed_are_on_the_disk_before(tmp_path, monkeypatch):
    events = []
    sync = os.fsync
    rename = Path.rename

    def record_sync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        events.append(f"renamed to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    finished(tmp_path / "teacher")
    position = events.index("renamed to teacher")
    assert {"weights", "stage.json", "teacher.abc.partial"} <= set(events[:position])
    assert events[position + 1 :] == [tmp_path.name]


def test_foreign_files_in_the_place_of_directories_are_replaced(tmp_path, caplog):
    partial = artifacts.partial_path(tmp_path / "teacher", "abc")
    partial.write_text("not a directory")
    artifacts.partial_path(tmp_path / "teacher", "old").write_text("not a directory")
    (tmp_path / "teacher").write_text("not a directory")
    assert finished(tmp_path / "teacher").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher"]
    (tmp_path / "predictions").write_text("not a directory")
    make_directory(tmp_path / "predictions")
    assert (tmp_path / "predictions").is_dir() and len(caplog.messages) == 1


def test_partial_paths_are_the_outermost_ones(tmp_path):
    (tmp_path / "a.partial" / "b.partial").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.json.1.partial").touch()
    assert sorted(path.name for path in partial_paths(tmp_path)) == [
        "a.partial",
        "d.json.1.partial",
    ]
    artifacts.delete_partials(tmp_path)
    assert list(tmp_path.rglob("*.partial")) == []


def test_a_file_whose_name_has_255_bytes_is_written(tmp_path):
    path = tmp_path / ("ক" * 85)
    atomic_write(path, "content")
    assert path.read_text() == "content" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def evaluation(tmp_path) -> Path:
    """An evaluation with its predictions."""
    path = tmp_path / "run" / "predictions" / "teacher.json"
    path.parent.mkdir(parents=True)
    path.with_suffix(".parquet").write_bytes(b"predictions")
    digest = file_sha256(path.with_suffix(".parquet"))
    write_json(path, {"key": "k", "metrics": {"macro_f1": 0.5}, "predictions_sha256": digest})
    return path


def test_an_intact_evaluation_is_found_by_its_key(evaluation):
    find = evaluation_cache.find_evaluation
    assert find(evaluation, [], "k") == (evaluation, {"macro_f1": 0.5})
    assert find(evaluation, [], "other") is None


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
@pytest.mark.parametrize("content", [*NO_RECORDS.values(), None], ids=[*NO_RECORDS, "directory"])
def test_a_damaged_evaluation_is_not_reused(content, suffix, evaluation, tmp_path, caplog):
    intact = tmp_path / "other" / "predictions" / "teacher.json"
    shutil.copytree(evaluation.parent, intact.parent)
    damage(evaluation.with_suffix(suffix), content)
    found = evaluation_cache.find_evaluation(evaluation, [intact], "k")
    assert found == (intact, {"macro_f1": 0.5})
    assert len(caplog.messages) == 1 and str(evaluation) in caplog.messages[0]


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    """Sealed checkpoints after steps 4, 8 and 12; the best is the first."""
    for step in (4, 8, 12):
        checkpoint = tmp_path / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (checkpoint / name).write_bytes(b"0123456789" * step)
        write_json(checkpoint / "trainer_state.json", {"global_step": step, "best_global_step": 4})
        seal(checkpoint)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        LIST_NAME,
    ],
)
@pytest.mark.parametrize("content", [b"", b"01234", b"{}", None])
def test_a_checkpoint_with_a_damaged_file_is_named_and_an_older_one_resumed(
    content, name, checkpoints, caplog
):
    assert last_checkpoint(checkpoints).name == "checkpoint-12"
    damage(checkpoints / "checkpoint-12" / name, content)
    assert last_checkpoint(checkpoints).name == "checkpoint-8"
    (line,) = caplog.messages
    assert str(checkpoints / "checkpoint-12") in line and name in line
    delete_unusable(checkpoints)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-4", "checkpoint-8"]


def test_a_checkpoint_whose_best_one_is_damaged_is_not_resumed(checkpoints):
    damage(checkpoints / "checkpoint-4" / "model.safetensors", b"0123")
    assert last_checkpoint(checkpoints) is None


def test_a_checkpoint_is_complete_only_when_it_is_sealed(checkpoints):
    (checkpoints / "checkpoint-12" / LIST_NAME).unlink()
    assert last_checkpoint(checkpoints).name == "checkpoint-8"


def test_a_checkpoint_of_more_processes_is_not_resumed(checkpoints, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert last_checkpoint(checkpoints) is None


@pytest.mark.parametrize("content", [b"", b"[{", b"[1]", b"{}", None])
def test_a_damaged_history_is_named_and_costs_only_its_curves(content, tmp_path, caplog):
    rows = []
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "history.json", [{"epoch": 1, "eval_macro_f1": 0.5}])
        rows.append({"stage": name, "directory": str(tmp_path / name)})
    damage(tmp_path / "teacher" / "history.json", content)
    histories = training_histories(rows)
    assert histories == {"student": [{"epoch": 1, "eval_macro_f1": 0.5}]}
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'teacher' / 'history.json'} is damaged and ignored: ")


DAMAGED_CONFIGS = {
    "empty": b"",
    "list": b"- 1\n",
    "binary": b"\xff\xfe\x00\x81",
    "word": b"pipel",
    "deeply nested": b"a: " + b"[" * 5000,
    "directory": None,
}


def open_run(argv: list[str]) -> int:
    """Open the directories of a run and train nothing; returns the exit code."""
    from experiments.experiment import open_experiments
    from main import read_data

    def body(argv: list[str], _context: object) -> int:
        options = parse_options(argv)
        start_logging()
        with log_to_files() as run_log:
            corpus = read_data(options)
            with open_experiments(expand_runs(options), corpus, run_log):
                return 0

    return run_command("main.py", body, argv)


@pytest.fixture(scope="module")
def opened(tiny_csv, tmp_path_factory) -> tuple[list[str], Path]:
    """The command line of a run whose directories are open, and the config.yaml that it wrote."""
    output = tmp_path_factory.mktemp("opened")
    argv = ["--dataset_path", str(tiny_csv), "--output_dir", str(output)]
    argv += ["--experiment", "run", "--device", "cpu"]
    assert open_run(argv) == 0
    return argv, output / "models" / "run" / "config.yaml"


@pytest.mark.parametrize("content", DAMAGED_CONFIGS.values(), ids=DAMAGED_CONFIGS)
def test_a_damaged_config_is_named_and_written_again(content, opened, capsys):
    argv, config = opened
    before = config.read_bytes()
    damage(config, content)
    assert open_run(argv) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(lines) == 1 and str(config) in lines[0] and "--config" not in lines[0]
    assert config.read_bytes() == before


def test_a_cut_config_of_the_same_options_is_written_again(opened, capsys):
    argv, config = opened
    before = config.read_bytes()
    for length in (1, 40, len(before) // 2, len(before) - 3):
        damage(config, before[:length])
        assert open_run(argv) == 0, capsys.readouterr().err
        assert config.read_bytes() == before


def test_a_config_of_other_options_is_refused_even_if_it_is_cut(opened, capsys):
    argv, config = opened
    before = config.read_bytes()
    damage(config, before[: before.index(b"prune_method")])
    assert open_run([*argv, "--batch", "16"]) == 2
    assert "already exists with other options (--batch was 32, now 16" in capsys.readouterr().err
    damage(config, b"sorcery: 3\n")
    assert open_run(argv) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "already exists with other options" in line and "'sorcery' is not an option" in line
    assert open_run([*argv, "--overwrite"]) == 0
    assert config.read_bytes() == before


def test_every_other_file_of_an_open_run_may_be_damaged(opened):
    argv, config = opened
    for name in ("audit.json", "run.log", ".lock", "splits/test.parquet", "splits/train.parquet"):
        path = config.parent / name
        if path.exists():
            path.unlink()
        path.mkdir()
        assert open_run(argv) == 0, name
        assert path.is_file(), name
    assert json.loads((config.parent / "audit.json").read_text())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_cannot_flush_a_directory_is_no_error(number, tmp_path, monkeypatch):
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "not supported")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    finished(tmp_path / "teacher")
    write_json(tmp_path / "file.json", {"a": 1})
    assert read_json(tmp_path / "file.json") == {"a": 1}


def test_an_error_of_the_disk_is_not_ignored(tmp_path, monkeypatch):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        write_json(tmp_path / "file.json", {"a": 1})
