"""The command that compares model directories: its table, its names, and its errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from timed_models import save_linear, save_torch_and_onnx, time_quickly

from benchmark import main, name_formats
from engines import latency


@pytest.fixture(scope="module")
def torch_and_onnx(tmp_path_factory) -> Path:
    """A directory with a torch checkpoint and its ONNX graph."""
    return save_torch_and_onnx(tmp_path_factory.mktemp("torch_and_onnx"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory) -> Path:
    """A directory with a linear baseline."""
    return save_linear(tmp_path_factory.mktemp("linear"))


@pytest.fixture
def quick_timing(monkeypatch):
    """One round of one input, in this process, without start-up; torch gets its one thread back."""
    time_quickly(monkeypatch)
    yield
    torch.set_num_threads(1)


def test_formats_of_a_directory_have_names_and_repeated_ones_are_numbered():
    one = Path("one")
    two = Path("two")
    formats = [["torch"], ["torch", "onnx"], ["torch"], ["torch", "onnx"]]
    named = name_formats([one, two, one, two], formats)
    assert [model_format.name for model_format in named] == [
        "one",
        "two [torch]",
        "two [onnx]",
        "one (2)",
        "two [torch] (2)",
        "two [onnx] (2)",
    ]
    places = [(model_format.directory, model_format.engine) for model_format in named[2:4]]
    assert places == [(two, "onnx"), (one, "torch")]


def test_the_command_prints_a_row_for_each_format(
    torch_and_onnx, linear, quick_timing, monkeypatch, tmp_path, capsys
):
    texts = tmp_path / "texts.txt"
    texts.write_text("একটি মন্তব্য\n\na good river\n", encoding="utf-8")
    monkeypatch.setattr(latency, "is_steady", lambda *_: False)
    argv = [str(torch_and_onnx), str(linear), str(linear), "--texts", str(texts)]
    assert main([*argv, "--threads", "1", "--max_length", "64"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split("  ")[0] == "Format"
    assert len({len(line) for line in lines}) == 1
    names = [
        f"{torch_and_onnx} [torch] *",
        f"{torch_and_onnx} [onnx/model.onnx] *",
        f"{linear} *",
        f"{linear} (2) *",
    ]
    rows = lines[2:]
    assert all(row.startswith(f"{name} ") for row, name in zip(rows, names, strict=True))
    engine, *_, at_32, at_128, throughput, tokenize, load_s, memory = rows[2].split()[2:]
    assert (engine, at_32, at_128, tokenize) == ("linear", "-", "-", "-")
    assert (load_s, memory) == ("1.5", "100")
    assert float(throughput) > 0 and rows[0].count(" - ") == 1
    assert printed.err.count("the machine was busy") == 1


def test_steady_rows_have_no_mark(linear, quick_timing, monkeypatch, capsys):
    monkeypatch.setattr(latency, "is_steady", lambda *_: True)
    assert main([str(linear), "--threads", "1"]) == 0
    printed = capsys.readouterr()
    assert "*" not in printed.out and "busy" not in printed.err


def test_all_errors_are_reported_at_once(torch_and_onnx, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n \n")
    directories = [str(tmp_path / "none"), str(tmp_path / "empty"), str(torch_and_onnx)]
    texts = ["--texts", str(tmp_path / "blank.txt")]
    assert main([*directories, *texts, "--threads", "0", "--max_length", "4"]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert all(line.startswith("benchmark.py: error: ") for line in lines)
    expected = [
        "--threads is 0, but must be at least 1",
        "--max_length is 4, but must be in",
        "one text per line",
        "there is no such directory",
        "must contain model.safetensors, onnx/*.onnx, openvino/*.xml or linear.safetensors",
    ]
    assert len(lines) == len(expected)
    assert all(text in line for text, line in zip(expected, lines, strict=True))


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], "the following arguments are required: DIR"),
        (["DIR", "--threads", "two"], "argument --threads: invalid int value: 'two'"),
        (["DIR", "--spam"], "unrecognized arguments: --spam"),
    ],
)
def test_a_wrong_command_line_gives_one_line(capsys, argv, expected):
    assert main(argv) == 2
    assert capsys.readouterr().err.splitlines() == [f"benchmark.py: error: {expected}"]


def delete_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def delete_tokenizer_config(directory: Path) -> None:
    (directory / "tokenizer_config.json").unlink()


def break_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def name_an_unknown_family(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "unknown"}')


def limit_positions(directory: Path) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"max_position_embeddings": 100}))


def cut_graph(directory: Path) -> None:
    (graph,) = directory.glob("onnx/*.onnx")
    graph.write_bytes(graph.read_bytes()[:1000])
    (directory / "stage.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "spoil, expected",
    [
        (cut_graph, "failed to load"),
        (delete_tokenizer, "must contain config.json, tokenizer.json and"),
        (delete_tokenizer_config, "tokenizer_config.json next to its model"),
        (break_config, "config.json cannot be read as a JSON object"),
        (name_an_unknown_family, "its model_type unknown is not supported"),
        (limit_positions, "--max_length is 128, but"),
    ],
)
def test_a_directory_that_cannot_be_served_gives_one_line(
    torch_and_onnx, tmp_path, capsys, spoil, expected
):
    directory = shutil.copytree(torch_and_onnx, tmp_path / "copy")
    spoil(directory)
    assert main([str(directory)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark.py: error: ") and expected in line


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", None])
def test_unreadable_texts_give_one_line(linear, tmp_path, capsys, content):
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    assert main([str(linear), "--texts", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"benchmark.py: error: --texts is {path}, but ")
