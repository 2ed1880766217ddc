"""The Kaggle notebook: converted, run on tiny data, and what it says where inputs are missing or
in doubt."""

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
from main import main

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))
import make_notebook  # noqa: E402

from experiments import checks

SETTINGS = re.findall(r'^    "([A-Z_]+)": ', make_notebook.TEMPLATE.read_text(), re.M)
TINY = "--pipeline kd_only --student_path teacher:1 --teacher_epochs 1 --epochs 1 --max_length 32 --device cpu"
QUICK_MAIN = """import sys
sys.path[:0] = {places}
from measuring import quick_measuring
from main import main
with quick_measuring(lambda function, *arguments: function(*arguments)):
    sys.exit(main())
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder of inputs, no internet, and a project whose main.py measures quickly; the
    folder."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "compression_config.py").touch()
    (project / "main.py").write_text(QUICK_MAIN.format(places=[str(ROOT), str(ROOT / "tests")]))
    for name in [*SETTINGS, "KAGGLE_KERNEL_RUN_TYPE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PROJECT_DIR", str(project))
    monkeypatch.setenv("INPUTS_DIR", str(tmp_path / "input"))
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "working"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


def attach_file(place: Path, tiny_csv: Path, name: str = "comments") -> Path:
    (place / name).mkdir()
    return Path(shutil.copy(tiny_csv, place / name / f"{name}.csv"))


def attach_teacher(place: Path, tiny_csv: Path, name: str = "encoder") -> Path:
    tokenizer = train_wordpiece(tiny_csv.read_text().splitlines(), 128)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertForMaskedLM(config).save_pretrained(place / name / "1")
    tokenizer.save_pretrained(place / name / "1")
    return place / name / "1"


def ran(until: str) -> dict:
    """What the code cells before the one that holds `until` define, run in order in this
    process."""
    names: dict = {}
    for cell in jupytext.read(make_notebook.TEMPLATE).cells:
        if until in cell.source:
            return names
        if cell.cell_type == "code":
            exec(compile(cell.source, "cell", "exec"), names)
    raise AssertionError(f"no cell holds {until}")


def found() -> tuple[str, str, str]:
    names = ran("KEPT =")
    return names["DATASET"], names["TEACHER"], names["REUSE"]


def executed(folder: Path) -> tuple[nbformat.NotebookNode, bool]:
    """The converted notebook after a run in a kernel of its own, and whether it ended."""
    make_notebook.main([str(folder / "kaggle.ipynb")])
    document = nbformat.read(folder / "kaggle.ipynb", as_version=4)
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"
    }
    client = NotebookClient(document, timeout=300, resources={"metadata": {"path": str(folder)}})
    try:
        client.execute(
            env=environment
        )  # a kernel under pytest would not show what other processes print
    except CellExecutionError:
        return document, False
    return document, True


def shown(document: nbformat.NotebookNode) -> str:
    """All text that the cells printed, tables and errors in the order of the cells."""
    outputs = [output for cell in document.cells for output in cell.get("outputs", [])]
    return "\n".join(
        "\n".join(output["traceback"])
        if output["output_type"] == "error"
        else output["text"]
        if output["output_type"] == "stream"
        else output["data"].get("text/html", "")
        for output in outputs
    )


def test_the_notebook_runs_on_attached_inputs_goes_on_from_earlier_output_and_shows_its_results(
    place, tiny_csv, tmp_path, monkeypatch
):
    dataset, teacher = attach_file(place, tiny_csv), attach_teacher(place, tiny_csv)
    argv = [
        "--dataset_path",
        str(dataset),
        "--teacher_path",
        str(teacher),
        "--output_dir",
        str(place / "session"),
    ]
    with quick_measuring(lambda function, *arguments: function(*arguments)):
        assert main([*argv, *TINY.replace("kd_only", "baseline").split()]) == 0
    monkeypatch.setenv("EXTRA_ARGS", TINY)
    document, ended = executed(tmp_path)
    text = shown(document)
    assert ended, text
    assert re.search(
        r"^GPUs: +none\ninternet: no\ninputs: +comments, encoder, session$", text, re.M
    )
    assert re.search(r"^linear .*\nteacher .*\nstudent ", text, re.M)
    (results,) = (tmp_path / "working").glob("compressed_models/*/results_final.csv")
    rows = pd.read_csv(results).set_index("stage")
    assert rows.remembered.to_dict() == {"linear": True, "teacher": True, "student": False}
    (frame,) = (
        output["data"]["text/html"]
        for output in document.cells[-1].outputs
        if output["output_type"] == "display_data"
    )
    assert (
        html.unescape(re.search('srcdoc="(.*?)"', frame, re.S)[1])
        == (results.parent / "report.html").read_text()
    )


def test_offline_without_inputs_the_notebook_says_what_to_attach_and_shows_no_traceback(
    place, tmp_path
):
    document, ended = executed(tmp_path)
    text = shown(document)
    assert not ended and "Traceback" not in text and "Stop" not in text
    asked = [
        "- a labelled file, such as a CSV",
        "DATASET_PATH",
        "- a teacher: a folder with config.json",
        "TEACHER_PATH to scratch:4x256",
    ]
    assert [words for words in asked if words not in text] == []
    assert not (tmp_path / "working").exists()


def test_as_a_script_the_template_stops_with_the_message_alone(place):
    with pytest.raises(SystemExit, match="- a labelled file"):
        ran("KEPT =")


def test_the_project_too_is_asked_for(place, monkeypatch):
    monkeypatch.delenv("PROJECT_DIR")
    with pytest.raises(SystemExit, match="- the project: upload its folder"):
        ran("KEPT =")
    (place / "code" / "data").mkdir(parents=True)
    for name in ("main.py", "compression_config.py", "data/HateSpeech.csv"):
        (place / "code" / name).touch()
    monkeypatch.setenv("TEACHER_PATH", "scratch:1x64")
    monkeypatch.setenv("DATASET_PATH", "some.csv")
    assert ran("KEPT =")["PROJECT"] == str(place / "code")
    monkeypatch.delenv("DATASET_PATH")
    with pytest.raises(
        SystemExit, match="set DATASET_PATH to .*code/data/HateSpeech.csv"
    ):  # the sample is no input
        ran("KEPT =")


def test_one_candidate_is_taken_and_several_are_asked_about(place, tiny_csv, monkeypatch):
    one, teacher = attach_file(place, tiny_csv), attach_teacher(place, tiny_csv)
    assert found() == (str(one), str(teacher), "")
    other, second = attach_file(place, tiny_csv, "more"), attach_teacher(place, tiny_csv, "second")
    with pytest.raises(SystemExit) as stopped:
        found()
    said = str(stopped.value)
    assert re.search(
        rf"set DATASET_PATH in the first cell to one of them:\n +{one}\n +{other}\n", said
    )
    assert re.search(
        rf"set TEACHER_PATH in the first cell to one of them:\n +{teacher}\n +{second}$", said
    )
    monkeypatch.setenv("DATASET_PATH", str(other))
    monkeypatch.setenv("TEACHER_PATH", "scratch:1x64")
    assert found() == (str(other), "scratch:1x64", "")


def test_earlier_outputs_are_reused_and_their_files_are_no_inputs(place, tiny_csv):
    dataset, teacher = attach_file(place, tiny_csv), attach_teacher(place, tiny_csv)
    for session in ("first", "second"):
        run = place / session / "models" / "run"
        attach_teacher(run, tiny_csv, "teacher")
        (run / "config.yaml").touch()
        (run / "table.csv").touch()
        expected = place / "first" / "models" if session == "first" else place
        assert found() == (str(dataset), str(teacher), str(expected))


def test_a_dataset_named_models_hides_no_other_input(place, tiny_csv):
    teacher = attach_teacher(place, tiny_csv)
    (place / "comments").mkdir()
    (place / "comments" / "comments.tsv.gz").touch()
    attach_teacher(place / "models" / "run", tiny_csv, "teacher")
    (place / "models" / "run" / "config.yaml").touch()
    assert found() == (
        str(place / "comments" / "comments.tsv.gz"),
        str(teacher),
        str(place / "models"),
    )


def test_a_folder_that_is_no_project_is_named(place, tiny_csv, monkeypatch):
    attach_file(place, tiny_csv), attach_teacher(place, tiny_csv)
    monkeypatch.setenv("PROJECT_DIR", str(place))
    with pytest.raises(SystemExit, match=f"PROJECT_DIR is {place}, which holds no main.py"):
        found()


def test_online_the_sample_and_a_fresh_teacher_stand_in(place, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        names = ran("KEPT =")
    assert (names["ONLINE"], names["DATASET"], names["TEACHER"]) == (True, "", "")


def attach_wheel(place: Path, requires: str = "") -> None:
    (place / "wheels").mkdir(exist_ok=True)
    with zipfile.ZipFile(place / "wheels" / "odd_package-1.0-py3-none-any.whl", "w") as wheel:
        about = "odd_package-1.0.dist-info"
        wheel.writestr(
            f"{about}/METADATA",
            f"Metadata-Version: 2.1\nName: odd-package\nVersion: 1.0\n{requires}",
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")


def test_on_kaggle_packages_are_installed_beside_a_torch_that_stays(place, monkeypatch, tmp_path):
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
        ran("def launcher")
    attach_wheel(place)
    ran("def launcher")
    attach_wheel(place, "Requires-Dist: torch==0.1\n")
    with pytest.raises(
        SystemExit, match="could not install them beside the image's torch"
    ) as stopped:
        ran("def launcher")
    assert f"(constraint) torch=={torch.__version__}" in str(stopped.value)


def test_kaggles_requirements_leave_out_what_the_image_brings_and_what_tests_need():
    pins = (ROOT / "requirements-kaggle.txt").read_text().splitlines()[1:]
    names = {line.split("==")[0] for line in pins}
    assert not {"torch", "numpy", "pandas", "ipykernel", "pytest"} & names
    assert {"torchao", "transformers"} <= names


def test_two_gpus_get_a_process_each_and_one_or_none_a_plain_start(place, monkeypatch):
    monkeypatch.setenv("DATASET_PATH", "a.csv")
    monkeypatch.setenv("TEACHER_PATH", "scratch:1x64")
    names = ran("def launcher")
    (cell,) = (
        cell.source
        for cell in jupytext.read(make_notebook.TEMPLATE).cells
        if "def launcher" in cell.source
    )
    exec(cell.split("ARGV =")[0], names)
    assert names["launcher"](0) == names["launcher"](1) == [sys.executable]
    program, _, module, *words = names["launcher"](2)
    assert (program, module) == (sys.executable, "accelerate.commands.launch")
    options = launch_command_parser().parse_args([*words, "main.py", "--pipeline", "kd_only"])
    assert (options.multi_gpu, options.num_processes, options.training_script) == (
        True,
        2,
        "main.py",
    )


@pytest.mark.parametrize(
    "card, capability, precision",
    [("P100", (6, 0), "fp16"), ("T4", (7, 5), "fp16"), ("A100", (8, 0), "bf16")],
)
def test_a_card_without_bf16_trains_in_fp16(card, capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert checks.resolve_precision("auto", "cuda") == precision


def test_the_conversion_is_the_same_to_the_byte_and_holds_every_cell(tmp_path):
    make_notebook.main([str(tmp_path / "one.ipynb")])
    make_notebook.main([str(tmp_path / "two.ipynb")])
    assert (tmp_path / "one.ipynb").read_bytes() == (tmp_path / "two.ipynb").read_bytes()
    document = nbformat.read(tmp_path / "one.ipynb", as_version=4)
    nbformat.validate(document)
    cells = re.split(r"^# %%.*\n", make_notebook.TEMPLATE.read_text(), flags=re.M)[1:]
    assert [cell.source for cell in document.cells if cell.cell_type == "code"] == [
        cell.strip() for cell in cells[1:]
    ]
    assert json.loads((tmp_path / "one.ipynb").read_text())["metadata"] == make_notebook.METADATA
