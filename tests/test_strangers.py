"""Directories from strangers: no code that comes with them runs, and no pickle is opened."""

import ast
import io
import json
import pickle
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import DatasetDict
from result_builders import write_run
from served_models import build_two_class_model
from timed_models import save_linear, time_quickly
from tiny_training import run_arguments, tiny_options, write_scratch_model

import benchmark
import inference
import report
from compression_config import Options
from data import load_splits
from losses import hard_label_loss
from runtime.artifacts import record_reports, write_record
from runtime.checkpoints import CHECKPOINTS, last_checkpoint
from trainer import training_settings
from training import train_

ROOT = Path(__file__).resolve().parent.parent

PICKLES = (
    "linear.joblib",
    "pytorch_model.bin",
    "model.pt",
    "model.pkl",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "adapter_model.bin",
)

RUN = (
    "--pipeline kd_only --teacher_path scratch:1x64 --student_path teacher:1 --teacher_epochs 1 "
    "--epochs 1 --max_length 32 --device cpu"
)


@dataclass
class Payload:
    """An object that creates a file when it is unpickled."""

    marker: Path

    def __reduce__(self):
        return open, (str(self.marker), "w")


def plant_pickles(directory: Path, marker: Path) -> None:
    """Pickles that create `marker`, under every name of PICKLES."""
    for name in PICKLES:
        (directory / name).write_bytes(pickle.dumps(Payload(marker)))


def write_code(directory: Path, marker: Path) -> None:
    """Python files that create `marker` when they are imported."""
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    (directory / "evil.py").write_text(code)


def add_keys(path: Path, **entries) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_two_class_model(tmp_path_factory.mktemp("model"), every_format=False)


@pytest.fixture
def model_copy(model, tmp_path) -> Path:
    return shutil.copytree(model, tmp_path / "copy")


@pytest.fixture
def marker(tmp_path) -> Path:
    """A file that exists if a stranger's code ran."""
    return tmp_path / "marker"


@pytest.fixture
def quick_timing(monkeypatch):
    import torch

    time_quickly(monkeypatch)
    yield
    torch.set_num_threads(1)


def test_the_payload_works(tmp_path, marker):
    plant_pickles(tmp_path, marker)
    pickle.loads((tmp_path / PICKLES[0]).read_bytes()).close()
    assert marker.exists()


# ------------------------------------------------------------------------------------------ pickle


def test_no_command_opens_a_pickle_beside_a_model(model_copy, marker, quick_timing, capsys):
    plant_pickles(model_copy, marker)
    for engine in ("auto", "torch", "onnx"):
        argv = ["--model", str(model_copy), "--engine", engine, "--threads", "1", "a text"]
        inference.main(argv)
    assert benchmark.main([str(model_copy), "--max_length", "32"]) == 0
    report.main([str(model_copy)])
    assert not marker.exists()


def test_no_command_opens_a_directory_with_only_pickles(model_copy, marker, capsys):
    plant_pickles(model_copy, marker)
    (model_copy / "model.safetensors").unlink()
    shutil.rmtree(model_copy / "onnx")
    (model_copy / "stage.json").unlink()
    assert inference.main(["--model", str(model_copy), "a text"]) == 2
    assert benchmark.main([str(model_copy)]) == 2
    assert report.main([str(model_copy)]) == 2
    errors = capsys.readouterr().err
    assert "DIR is" in errors and "linear.joblib, a pickle of an older version" in errors
    assert not marker.exists()


def test_a_run_opens_no_pickle_of_a_reused_folder(run_main, tiny_csv, tmp_path, marker):
    """The stranger's folder is a finished run, with forged records and pickles everywhere."""
    stranger = tmp_path / "stranger"
    assert run_main(run_arguments(tiny_csv, stranger, RUN)) == 0
    for path in list((stranger / "models").rglob("stage.json")):
        plant_pickles(path.parent, marker)
        record = json.loads(path.read_text())
        write_record(path.parent, **record)
    mine = tmp_path / "mine"
    assert run_main(run_arguments(tiny_csv, mine, f"{RUN} --reuse {stranger / 'models'}")) == 0
    assert (mine / "models" / "run" / "teacher" / "pytorch_model.bin").exists()  # it was reused
    assert not marker.exists()


def test_resuming_runs_no_code_of_a_checkpoint(tiny_csv, tmp_path, marker):
    """transformers reads checkpoints with `weights_only`; whether it then goes on or not."""
    splits = load_splits(Options(dataset_path=str(tiny_csv)))[0]
    model, tokenizer = start_tiny_model(splits, tmp_path)
    settings = training_settings(tiny_options(), epochs=1, learning_rate=1e-3)
    train_(model, tokenizer, splits, tmp_path / "work", settings, loss=hard_loss)
    plant_pickles(last_checkpoint(tmp_path / "work" / CHECKPOINTS), marker)
    settings = training_settings(tiny_options(), epochs=2, learning_rate=1e-3)
    with suppress(pickle.UnpicklingError):
        train_(model, tokenizer, splits, tmp_path / "work", settings, loss=hard_loss)
    assert not marker.exists()


def start_tiny_model(splits: DatasetDict, folder: Path):
    from encoders.saved_models import load_saved_model, load_saved_tokenizer

    directory = write_scratch_model("scratch:1x64", splits["train"][:]["text"], folder / "start")
    return load_saved_model(directory), load_saved_tokenizer(directory)


def hard_loss(logits, labels, teacher_logits):
    return hard_label_loss(logits, labels, None)


# -------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize(
    "file, entries",
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.C"}, "model_type": "evil"}),
        ("config.json", {"auto_map": {"AutoModelForSequenceClassification": "evil.M"}}),
        ("config.json", {"custom_pipelines": {"text-classification": {"impl": "evil.P"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}),
    ],
)
def test_code_that_comes_with_a_model_is_refused_by_every_command(
    model_copy, marker, monkeypatch, capsys, file, entries
):
    """A `y` on stdin does not change that, and stays there for who reads the rows."""
    (model_copy / "stage.json").unlink()
    write_code(model_copy, marker)
    add_keys(model_copy / file, **entries)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\n"))
    expected = f"but its {file} has {min(entries)}, and models that bring their own code "
    for command in (
        lambda: inference.main(["--model", str(model_copy), "a text"]),
        lambda: inference.main(["--model", str(model_copy), "--engine", "onnx", "a text"]),
        lambda: benchmark.main([str(model_copy), "--max_length", "32"]),
        lambda: run_with_teacher(model_copy),
    ):
        assert command() == 2
        assert expected in capsys.readouterr().err
    assert sys.stdin.read() == "y\ny\n"
    assert not marker.exists()


def run_with_teacher(directory: Path) -> int:
    import main

    return main.main(["--dataset_path", "data/HateSpeech.csv", "--teacher_path", str(directory)])


def calls_of(name: str) -> list[tuple[str, ast.Call]]:
    """File and call for every call of a method of this name, outside of tests and benchmarks."""
    found = []
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]:
        if path.parent.name in ("tests", "benchmarks", "scripts"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and node.func.attr == name:
                found.append((path.name, node))
    return found


def argument(call: ast.Call, name: str):
    values = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return ast.literal_eval(values[0]) if values else None


def test_every_call_that_loads_a_model_refuses_its_code_and_its_pickles():
    calls = calls_of("from_pretrained") + calls_of("from_config")
    assert len(calls) > 5
    for file, call in calls:
        assert argument(call, "trust_remote_code") is False, (file, call.lineno)
    for file, call in calls_of("from_pretrained"):
        if "Model" in ast.unparse(call.func):
            assert argument(call, "use_safetensors") is True, (file, call.lineno)


def test_no_module_reads_pickles():
    """`torch.load` and others are called by no module; multiprocessing pickles our own objects."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]:
        if path.parent.name in ("tests", "benchmarks", "scripts"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
                assert not names & {"pickle", "joblib", "dill", "cloudpickle"}, path
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("torch.load", "np.load"), path


# ------------------------------------------------------------------------------------------ hashes


def test_report_refuses_results_that_were_changed(tmp_path, capsys):
    directory = write_run(tmp_path)
    (directory / "config.json").write_text("{}")
    write_record(directory, stage="artifact", fingerprint="0")
    assert report.main([str(directory)]) == 0
    record_reports(directory)
    assert report.main([str(directory)]) == 0
    path = directory / "results_final.json"
    path.write_text(path.read_text().replace('"teacher"', '"better"'))
    capsys.readouterr()
    for options in ([], ["--format", "latex"], ["--html", str(tmp_path / "page.html")]):
        assert report.main([str(directory), *options]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "results_final.json that was changed since the run: its hash" in printed.err
    assert not (tmp_path / "page.html").exists()
    (directory / "stage.json").write_text("[]")
    assert report.main([str(directory)]) == 2
    assert "contains a stage.json that is not a JSON object" in capsys.readouterr().err


def test_benchmark_refuses_files_that_changed_or_are_not_listed(model_copy, tmp_path, capsys):
    listed = (model_copy / "onnx" / "model.onnx").read_bytes()
    (model_copy / "onnx" / "model.onnx").write_bytes(listed + b"x")
    assert benchmark.main([str(model_copy), "--max_length", "32"]) == 2
    expected = f"DIR is {model_copy}, but onnx/model.onnx was changed since the model was made"
    assert expected in capsys.readouterr().err
    (model_copy / "onnx" / "model.onnx").write_bytes(listed)
    (model_copy / "onnx" / "foreign.onnx").write_bytes(listed)
    assert benchmark.main([str(model_copy), "--max_length", "32"]) == 2
    assert "onnx/foreign.onnx was changed" in capsys.readouterr().err
    (tmp_path / "linear").mkdir()
    save_linear(tmp_path / "linear")
    write_record(tmp_path / "linear", stage="linear", fingerprint="0")
    with (tmp_path / "linear" / "linear.safetensors").open("ab") as file:
        file.write(b"x")
    assert benchmark.main([str(tmp_path / "linear")]) == 2
    assert "linear.safetensors was changed" in capsys.readouterr().err
