"""Paths and names that a file system refuses are reported before anything is read."""

import os

import pytest

from experiments.experiment import MAX_STEM_BYTES, safe_stem
from runtime.command_line import MAX_DEFAULT_NAME_BYTES, parse_options
from runtime.errors import UserError

LONG = "x" * 300


def errors_of(argv: list[str]) -> list[str]:
    """The error lines about the first option."""
    with pytest.raises(UserError) as refused:
        parse_options(argv)
    return [line for line in refused.value.lines if argv[0].split("=")[0] in line]


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "flag",
    [
        "--dataset_path",
        "--validation_path",
        "--test_path",
        "--unlabeled_path",
        "--teacher_path",
        "--student_path",
        "--output_dir",
        "--reuse",
        "--config",
    ],
)
@pytest.mark.parametrize("value", [LONG, f"/{LONG}", f"{'y' * 200}/" * 30, "a\0b"])
def test_a_path_that_cannot_be_looked_up_is_one_line(flag, value):
    (line,) = errors_of([flag, value])
    assert line.startswith(f"{flag} is ")


@pytest.mark.parametrize("flag", ["--dataset_path", "--reuse", "--config", "--validation_path"])
@pytest.mark.parametrize("value", ["", " ", "--"])
def test_an_empty_path_is_one_line(flag, value):
    (line,) = errors_of([f"{flag}={value}"])
    assert line.startswith(f"{flag} is ")


@pytest.mark.parametrize("name", ["models", "compressed_models"])
def test_a_file_in_the_place_of_an_output_directory_is_refused(name, tmp_path):
    (tmp_path / name).touch()
    (line,) = errors_of(["--output_dir", str(tmp_path)])
    assert f"{tmp_path / name} is not a writable directory" in line


def test_the_longest_names_of_an_experiment_fit(tmp_path, tiny_csv):
    argv = ["--dataset_path", str(tiny_csv), "--output_dir", str(tmp_path)]
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len(".tar.zst.partial")
    assert parse_options(["--experiment", "x" * longest, *argv])
    (line,) = errors_of(["--experiment", "x" * (longest + 1), *argv])
    assert f"has {longest + 1} bytes, but must have at most {longest}" in line
    assert errors_of(["--experiment", "ক" * (longest // 3 + 1), *argv])


def test_an_output_directory_that_leaves_no_room_for_paths_is_refused(tmp_path, tiny_csv):
    deep = str(tmp_path) + "/yyyy" * 760
    (line,) = errors_of(["--output_dir", deep, "--dataset_path", str(tiny_csv)])
    assert "bytes as an absolute path, but must have at most" in line


def test_a_data_set_of_any_name_gives_an_experiment_a_name_that_fits():
    for name in ("x" * 250, "ক" * 80):
        stem = safe_stem(f"{name}.csv")
        assert name.startswith(stem) and MAX_STEM_BYTES - 3 < len(stem.encode()) <= MAX_STEM_BYTES
    pipeline_and_digest = len("kd_prune_quant__012345")
    assert MAX_STEM_BYTES + pipeline_and_digest <= MAX_DEFAULT_NAME_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "? [a, b]\n: 1\n",
        "? {a: b}\n: 1\n",
        "batch: [1, 2]\n",
        "batch: {a: 1}\n",
        "seeds: {a: 1}\n",
        "seeds: [[1]]\n",
        "batch: " + "[" * 5000 + "]" * 5000,
        "a: " + "{a: " * 3000 + "1" + "}" * 3000,
        "batch: &a [*a]\n",
        "batch: *x\n",
        "batch:\n",
        "seeds: []\n",
        "\0",
    ],
)
def test_a_config_of_a_wrong_structure_is_one_line(text, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        parse_options(["--config", str(path)])
    lines = [line for line in refused.value.lines if "--dataset_path" not in line]
    assert len(lines) == 1 and "\n" not in lines[0] and len(lines[0]) < 500
