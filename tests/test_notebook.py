"""The Kaggle notebook: conversion, a run on tiny data, and missing or ambiguous inputs."""

import html
import json
import os
import re
import shutil
import socket
import sys
import zipfile
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from measuring import quick_measuring
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from transformers import BertConfig, BertForMaskedLM

from encoders.scratch import train_wordpiece
from experiments import checks
from main import main

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))
import make_notebook  # noqa: E402

SETTINGS = re.findall(r'^    "([A-Z_]+)": ', make_notebook.TEMPLATE.read_text(), re.M)
TINY = [
    "--student_path=teacher:1",
    "--teacher_epochs=1",
    "--epochs=1",
    "--max_length=32",
    "--device=cpu",
]
QUICK_MAIN = """import sys
sys.path[:0] = {directories}
from measuring import quick_measuring
from main import main

def call(function, *arguments):
    return function(*arguments)

with quick_measuring(call):
    sys.exit(main())
"""


def call(function, *arguments):
    """Calls in this process what a run would call in its measuring process."""
    return function(*arguments)


@pytest.fixture
def inputs_dir(tmp_path, monkeypatch) -> Path:
    """An empty folder of inputs, no internet, and a project whose main.py measures quickly."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "compression_config.py").touch()
    directories = [str(ROOT), str(ROOT / "tests")]
    (project / "main.py").write_text(QUICK_MAIN.format(directories=directories))
    for name in [*SETTINGS, "KAGGLE_KERNEL_RUN_TYPE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PROJECT_DIR", str(project))
    monkeypatch.setenv("INPUTS_DIR", str(tmp_path / "input"))
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "working"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server listens on this port
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


def attach_file(inputs_dir: Path, source: Path, name: str = "comments") -> Path:
    (inputs_dir / name).mkdir()
    return Path(shutil.copy(source, inputs_dir / name / f"{name}.csv"))


def attach_teacher(folder: Path, text_file: Path, name: str = "encoder") -> Path:
    tokenizer = train_wordpiece(text_file.read_text().splitlines(), 128)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertForMaskedLM(config).save_pretrained(folder / name / "1")
    tokenizer.save_pretrained(folder / name / "1")
    return folder / name / "1"


def run_cells_before(text: str) -> dict:
    """The names that the code cells before the one with `text` define, run in this process."""
    names: dict = {}
    for cell in jupytext.read(make_notebook.TEMPLATE).cells:
        if text in cell.source:
            return names
        if cell.cell_type == "code":
            exec(compile(cell.source, "cell", "exec"), names)
    raise AssertionError(f"no cell contains {text}")


def detected_inputs() -> tuple[str, str, str]:
    """The dataset, the teacher and the earlier models that the notebook detects."""
    names = run_cells_before("KEPT_PACKAGES =")
    return names["DATASET"], names["TEACHER"], names["REUSE"]


def run_notebook(folder: Path) -> tuple[nbformat.NotebookNode, bool]:
    """The converted notebook after a run in its own kernel, and whether it ran to the end."""
    make_notebook.main([str(folder / "kaggle.ipynb")])
    document = nbformat.read(folder / "kaggle.ipynb", as_version=4)
    environment = dict(os.environ)
    environment.pop("PYTEST_CURRENT_TEST")  # with it, a kernel hides the output of subprocesses
    client = NotebookClient(document, timeout=300, resources={"metadata": {"path": str(folder)}})
    try:
        client.execute(env=environment)
    except CellExecutionError:
        return document, False
    return document, True


def output_text(output: nbformat.NotebookNode) -> str:
    if output["output_type"] == "error":
        return "\n".join(output["traceback"])
    if output["output_type"] == "stream":
        return output["text"]
    return output["data"].get("text/html", "")


def printed_text(document: nbformat.NotebookNode) -> str:
    """The output of all cells in order, including tables and errors."""
    texts = []
    for cell in document.cells:
        texts += [output_text(output) for output in cell.get("outputs", [])]
    return "\n".join(texts)


def test_the_notebook_runs_on_attached_inputs_reuses_earlier_output_and_shows_the_report(
    inputs_dir, tiny_csv, tmp_path, monkeypatch
):
    dataset = attach_file(inputs_dir, tiny_csv)
    teacher = attach_teacher(inputs_dir, tiny_csv)
    argv = ["--pipeline=baseline", "--dataset_path", str(dataset), "--teacher_path", str(teacher)]
    argv += ["--output_dir", str(inputs_dir / "session"), *TINY]
    with quick_measuring(call):
        assert main(argv) == 0
    monkeypatch.setenv("EXTRA_ARGS", " ".join(["--pipeline=kd_only", *TINY]))
    document, has_finished = run_notebook(tmp_path)
    text = printed_text(document)
    assert has_finished, text
    assert re.search(
        r"^GPUs: +none\ninternet: no\ninputs: +comments, encoder, session$", text, re.M
    )
    assert re.search(r"^linear .*\nteacher .*\nstudent ", text, re.M)
    (results,) = (tmp_path / "working").glob("compressed_models/*/results_final.csv")
    rows = pd.read_csv(results).set_index("stage")
    assert rows.remembered.to_dict() == {"linear": True, "teacher": True, "student": False}
    (frame,) = [
        output["data"]["text/html"]
        for output in document.cells[-1].outputs
        if output["output_type"] == "display_data"
    ]
    page = html.unescape(re.search('srcdoc="(.*?)"', frame, re.S)[1])
    assert page == (results.parent / "report.html").read_text()


def test_offline_without_inputs_the_notebook_asks_for_them_without_a_traceback(
    inputs_dir, tmp_path
):
    document, has_finished = run_notebook(tmp_path)
    text = printed_text(document)
    assert not has_finished and "Traceback" not in text and "Stop" not in text
    expected = [
        "- a labeled file, such as a CSV",
        "DATASET_PATH",
        "- a teacher: a folder with config.json",
        "TEACHER_PATH to scratch:4x256",
    ]
    assert [words for words in expected if words not in text] == []
    assert not (tmp_path / "working").exists()


def test_as_a_script_the_template_ends_with_a_message(inputs_dir):
    with pytest.raises(SystemExit, match="- a labeled file"):
        run_cells_before("KEPT_PACKAGES =")


def test_a_missing_project_is_asked_for(inputs_dir, monkeypatch):
    monkeypatch.delenv("PROJECT_DIR")
    with pytest.raises(SystemExit, match="- the project: upload its folder"):
        run_cells_before("KEPT_PACKAGES =")


def test_an_attached_project_is_detected_and_its_sample_is_no_input(inputs_dir, monkeypatch):
    monkeypatch.delenv("PROJECT_DIR")
    monkeypatch.setenv("TEACHER_PATH", "scratch:1x64")
    monkeypatch.setenv("DATASET_PATH", "some.csv")
    (inputs_dir / "code" / "data").mkdir(parents=True)
    for name in ("main.py", "compression_config.py", "data/HateSpeech.csv"):
        (inputs_dir / "code" / name).touch()
    assert run_cells_before("KEPT_PACKAGES =")["PROJECT"] == str(inputs_dir / "code")
    monkeypatch.delenv("DATASET_PATH")
    with pytest.raises(SystemExit, match="set DATASET_PATH to .*code/data/HateSpeech.csv"):
        run_cells_before("KEPT_PACKAGES =")


def test_one_candidate_is_used_and_several_are_listed(inputs_dir, tiny_csv, monkeypatch):
    first_file = attach_file(inputs_dir, tiny_csv)
    first_teacher = attach_teacher(inputs_dir, tiny_csv)
    assert detected_inputs() == (str(first_file), str(first_teacher), "")
    second_file = attach_file(inputs_dir, tiny_csv, "more")
    second_teacher = attach_teacher(inputs_dir, tiny_csv, "second")
    with pytest.raises(SystemExit) as stop:
        detected_inputs()
    message = str(stop.value)
    request = "in the first cell to one of them:"
    assert re.search(rf"set DATASET_PATH {request}\n +{first_file}\n +{second_file}\n", message)
    assert re.search(
        rf"set TEACHER_PATH {request}\n +{first_teacher}\n +{second_teacher}$", message
    )
    monkeypatch.setenv("DATASET_PATH", str(second_file))
    monkeypatch.setenv("TEACHER_PATH", "scratch:1x64")
    assert detected_inputs() == (str(second_file), "scratch:1x64", "")


def test_earlier_outputs_are_reused_and_their_files_are_no_inputs(inputs_dir, tiny_csv):
    dataset = attach_file(inputs_dir, tiny_csv)
    teacher = attach_teacher(inputs_dir, tiny_csv)
    for session in ("first", "second"):
        run = inputs_dir / session / "models" / "run"
        attach_teacher(run, tiny_csv, "teacher")
        (run / "config.yaml").touch()
        (run / "table.csv").touch()
        expected = inputs_dir / "first" / "models" if session == "first" else inputs_dir
        assert detected_inputs() == (str(dataset), str(teacher), str(expected))


def test_a_dataset_named_models_hides_no_other_input(inputs_dir, tiny_csv):
    teacher = attach_teacher(inputs_dir, tiny_csv)
    (inputs_dir / "comments").mkdir()
    table = inputs_dir / "comments" / "comments.tsv.gz"
    table.touch()
    attach_teacher(inputs_dir / "models" / "run", tiny_csv, "teacher")
    (inputs_dir / "models" / "run" / "config.yaml").touch()
    assert detected_inputs() == (str(table), str(teacher), str(inputs_dir / "models"))


def test_a_folder_without_main_py_is_rejected_as_the_project(inputs_dir, tiny_csv, monkeypatch):
    attach_file(inputs_dir, tiny_csv)
    attach_teacher(inputs_dir, tiny_csv)
    monkeypatch.setenv("PROJECT_DIR", str(inputs_dir))
    with pytest.raises(SystemExit, match=f"PROJECT_DIR is {inputs_dir}, but must contain main.py"):
        detected_inputs()


def test_online_the_sample_and_a_scratch_teacher_are_the_defaults(inputs_dir, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        names = run_cells_before("KEPT_PACKAGES =")
    assert (names["ONLINE"], names["DATASET"], names["TEACHER"]) == (True, "", "")


def attach_wheel(inputs_dir: Path, requires: str = "") -> None:
    """Attach a wheel of odd_package 1.0; `requires` is a line of its metadata."""
    (inputs_dir / "wheels").mkdir(exist_ok=True)
    path = inputs_dir / "wheels" / "odd_package-1.0-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: odd-package\nVersion: 1.0\n{requires}"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("odd_package-1.0.dist-info/METADATA", metadata)
        wheel.writestr("odd_package-1.0.dist-info/WHEEL", tags)
        wheel.writestr("odd_package-1.0.dist-info/RECORD", "")


def test_on_kaggle_packages_are_installed_and_torch_stays(inputs_dir, monkeypatch, tmp_path):
    (tmp_path / "project" / "requirements-kaggle.txt").write_text("# pins\nodd_package==1.0\n")
    settings = {
        "KAGGLE_KERNEL_RUN_TYPE": "Interactive",
        "DATASET_PATH": "a.csv",
        "TEACHER_PATH": "scratch:1x64",
        "PIP_DRY_RUN": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="this image lacks odd_package==1.0"):
        run_cells_before("def launcher")
    attach_wheel(inputs_dir)
    run_cells_before("def launcher")
    attach_wheel(inputs_dir, "Requires-Dist: torch==0.1\n")
    with pytest.raises(
        SystemExit, match="could not install them alongside the image's torch"
    ) as stop:
        run_cells_before("def launcher")
    assert f"(constraint) torch=={torch.__version__}" in str(stop.value)


def test_kaggle_requirements_exclude_packages_of_the_image_and_of_the_tests():
    pins = (ROOT / "requirements-kaggle.txt").read_text().splitlines()[1:]
    names = {line.split("==")[0] for line in pins}
    assert not {"torch", "numpy", "pandas", "ipykernel", "pytest"} & names
    assert {"torchao", "transformers"} <= names


def test_two_gpus_get_one_process_each_and_fewer_run_plain_python(inputs_dir, monkeypatch):
    monkeypatch.setenv("DATASET_PATH", "a.csv")
    monkeypatch.setenv("TEACHER_PATH", "scratch:1x64")
    names = run_cells_before("def launcher")
    cells = [cell.source for cell in jupytext.read(make_notebook.TEMPLATE).cells]
    (source,) = [source for source in cells if "def launcher" in source]
    exec(source.split("COMMAND =")[0], names)
    assert names["launcher"](0) == names["launcher"](1) == [sys.executable]
    program, _, module, *words = names["launcher"](2)
    assert (program, module) == (sys.executable, "accelerate.commands.launch")
    options = launch_command_parser().parse_args([*words, "main.py", "--pipeline", "kd_only"])
    assert options.multi_gpu
    assert options.num_processes == 2
    assert options.training_script == "main.py"


@pytest.mark.parametrize(
    "gpu, capability, precision",
    [("P100", (6, 0), "fp16"), ("T4", (7, 5), "fp16"), ("A100", (8, 0), "bf16")],
)
def test_a_gpu_without_bf16_trains_in_fp16(gpu, capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert checks.resolve_precision("auto", "cuda") == precision


def test_the_conversion_is_reproducible_and_keeps_every_cell(tmp_path):
    first = tmp_path / "first.ipynb"
    second = tmp_path / "second.ipynb"
    make_notebook.main([str(first)])
    make_notebook.main([str(second)])
    assert first.read_bytes() == second.read_bytes()
    document = nbformat.read(first, as_version=4)
    nbformat.validate(document)
    template = make_notebook.TEMPLATE.read_text()
    _, _, *expected = re.split(r"^# %%.*\n", template, flags=re.M)  # the first is the Markdown cell
    sources = [cell.source for cell in document.cells if cell.cell_type == "code"]
    assert sources == [source.strip() for source in expected]
    assert json.loads(first.read_text())["metadata"] == make_notebook.METADATA
