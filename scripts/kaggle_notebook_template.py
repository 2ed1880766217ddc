# %% [markdown]
# # Compress a text classifier
#
# Attach as inputs (`Add Input`): the project's folder, a labelled file, and the teacher's model folder, for which with
# internet a name in the first cell does too. Then run all cells: they say first what they found, and last they show the
# report. Everything lies in `/kaggle/working`.
#
# - **GPU**: `T4 x2` is used whole, in fp16. One GPU or none works too.
# - **Several candidates** are never guessed among: you are told which there are, and what to set in the first cell.
# - **A later session**: attach this notebook's output, and what is finished there is not made again.
# - **Without internet**: attach the teacher, and a dataset of the packages, made where there is internet by
#   `pip download --no-deps -r requirements-kaggle.txt`.

# %%
"""Find out what is here and which inputs are meant, run the pipeline, show its report."""

import html
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import torch

SETTINGS = {  # an environment variable of the same name wins; what is empty is found among the inputs
    "PROJECT_DIR": "",  # folder with main.py
    "DATASET_PATH": "",  # labelled file
    "TEACHER_PATH": "",  # model folder, hub name (with internet), or scratch:4x256, which needs neither
    "STUDENT_PATH": "",  # the same, or teacher:2; unset, it is two layers of the teacher
    "REUSE": "",  # folder of an earlier session's models
    "EXTRA_ARGS": "",  # any other options of main.py, such as: --quant_method dynamic --epochs 3
    "INPUTS_DIR": "/kaggle/input",
    "OUTPUT_DIR": ".",
}
SETTINGS = {name: os.environ.get(name) or value for name, value in SETTINGS.items()}
INPUTS, OUTPUT = Path(SETTINGS["INPUTS_DIR"]), Path(SETTINGS["OUTPUT_DIR"])
IN_NOTEBOOK, ON_KAGGLE = "get_ipython" in globals(), "KAGGLE_KERNEL_RUN_TYPE" in os.environ


class Stop(Exception if IN_NOTEBOOK else SystemExit):
    """Ends the run with its message alone: neither a notebook nor a shell shows a traceback of it."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


# %%
def is_online() -> bool:
    """Whether the hub's host answers."""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


FILES = sorted(Path(folder, name) for folder, _, names in os.walk(INPUTS) for name in names)
GPUS = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
ONLINE = is_online()
print("GPUs:    ", f"{len(GPUS)}, {' and '.join(GPUS)}" if GPUS else "none")
print("internet:", "yes" if ONLINE else "no")
print(
    "inputs:  ",
    ", ".join(sorted({path.relative_to(INPUTS).parts[0] for path in FILES})) or f"none in {INPUTS}",
)
print("torch:   ", torch.__version__, flush=True)

# %%
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
LABELLED = (".parquet", *(kind + packed for kind in TABLES for packed in ("", ".gz", ".zst")))
PROBLEMS: list[str] = []


def outside(folders: Iterable[Path], paths: Iterable[Path]) -> list[Path]:
    """The paths that lie in none of the folders, each once."""
    return sorted({path for path in paths if not {path, *path.parents} & {*folders}})


def chosen(name: str, what: str, found: list[Path], missing: str = "") -> str:
    """The setting, else the only candidate; several are a problem, and so is none where `missing` says why."""
    if SETTINGS[name] or len(found) == 1:
        return SETTINGS[name] or str(found[0])
    if found:
        several = f"several {what} are attached; set {name} in the first cell to one of them:"
        PROBLEMS.append("\n    ".join([several, *map(str, found)]))
    elif missing:
        PROBLEMS.append(missing)
    return ""


def find_project() -> str:
    """The folder with main.py: as set, this folder or one above it, or an input."""
    here = [
        folder
        for folder in (Path.cwd(), *Path.cwd().parents)
        if (folder / "compression_config.py").is_file()
    ]
    return chosen(
        "PROJECT_DIR",
        "copies of the project",
        here[:1] or ATTACHED_PROJECTS,
        "the project: upload its folder, with main.py and compression_config.py, as a dataset",
    )


def find_inputs() -> tuple[str, str, str]:
    """The labelled file, the teacher and where models of earlier sessions lie; empty where there is none to find."""
    earlier = {
        path.parents[1]
        for path in FILES
        if path.name == "config.yaml" and path.parents[1].name == "models"
    }
    known = {
        *(models if models.parent == INPUTS else models.parent for models in earlier),
        *ATTACHED_PROJECTS,
    }
    models = outside(
        known,
        (
            path.parent
            for path in FILES
            if path.suffix == ".safetensors" and (path.parent / "config.json").is_file()
        ),
    )
    labelled = outside(
        {*known, *models}, (path for path in FILES if path.name.lower().endswith(LABELLED))
    )
    no_file = f"a labelled file, such as a CSV: upload it as a dataset. To try things out, set DATASET_PATH to {SAMPLE}"
    no_teacher = (
        "a teacher: a folder with config.json, *.safetensors (not pytorch_model.bin) and a tokenizer, from "
        "Models or as a dataset. To do without, set TEACHER_PATH to scratch:4x256"
    )
    return (
        chosen("DATASET_PATH", "labelled files", labelled, "" if ONLINE else no_file),
        chosen("TEACHER_PATH", "models", models, "" if ONLINE else no_teacher),
        SETTINGS["REUSE"] or (os.path.commonpath(earlier) if earlier else ""),
    )


def installed(name: str) -> str:
    """The version of a package; empty where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def find_pins(project: str) -> list[str]:
    """The pins that this Kaggle image does not meet; elsewhere packages are the user's own business."""
    file = Path(project, "requirements-kaggle.txt")
    pins = file.read_text().splitlines() if ON_KAGGLE and file.is_file() else []
    unmet = [
        pin for pin in pins if "==" in pin and installed(pin.split("==")[0]) != pin.split("==")[1]
    ]
    if unmet and not ONLINE and not WHEELS:
        PROBLEMS.append(
            "the packages: a dataset of what `pip download --no-deps -r requirements-kaggle.txt` fetches "
            f"where there is internet; this image lacks {', '.join(unmet)}"
        )
    return unmet


ATTACHED_PROJECTS = [path.parent for path in FILES if path.name == "compression_config.py"]
WHEELS = sorted({str(path.parent) for path in FILES if path.suffix == ".whl"})
PROJECT = find_project()
if PROJECT and not Path(PROJECT, "main.py").is_file():
    PROBLEMS.append(f"the project: PROJECT_DIR is {PROJECT}, which holds no main.py")
SAMPLE = str(Path(PROJECT, "data", "HateSpeech.csv"))
DATASET, TEACHER, REUSE = find_inputs()
UNMET = find_pins(PROJECT)
if PROBLEMS:
    where = (
        "in this notebook's inputs"
        if ONLINE
        else "in this notebook's inputs, and there is no internet"
    )
    raise Stop(
        "\n- ".join(
            [
                f"Something is missing or in doubt {where}. Attach or choose, then run all cells again:",
                *PROBLEMS,
            ]
        )
    )

# %%
# The rule: torch, numpy and pandas stay as the image built them for its GPUs. Everything else is installed at the
# version that the tests ran with; pip holds the three in place, and stops where something does not fit beside them.
KEPT = ("torch", "numpy", "pandas")


def install_command(requirements: str, constraints: str) -> list[str]:
    """pip's command line; without internet it takes the attached packages alone."""
    offline = [] if ONLINE else ["--no-index", *(f"--find-links={folder}" for folder in WHEELS)]
    return [sys.executable, "-m", "pip", "install", "-r", requirements, "-c", constraints, *offline]


if UNMET:
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "kept.txt")
        kept.write_text("".join(f"{name}=={installed(name)}\n" for name in KEPT if installed(name)))
        print("installing", ", ".join(UNMET), flush=True)
        command = install_command(str(Path(PROJECT, "requirements-kaggle.txt")), str(kept))
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Stop(
            f"pip could not install them beside the image's torch, numpy and pandas:\n{done.stdout[-2000:]}"
            f"{done.stderr[-2000:]}"
        )


# %%
def launcher(processes: int) -> list[str]:
    """What starts main.py: plain Python, or accelerate with one process a GPU; main.py chooses the precision."""
    several = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    return [sys.executable, *(several if processes > 1 else [])]


ARGV = ["--dataset_path", DATASET or SAMPLE, "--output_dir", str(OUTPUT)]
for flag, value in (
    ("--teacher_path", TEACHER),
    ("--student_path", SETTINGS["STUDENT_PATH"]),
    ("--reuse", REUSE),
):
    ARGV += [flag, value] if value else []
COMMAND = [
    *launcher(len(GPUS)),
    str(Path(PROJECT, "main.py")),
    *ARGV,
    *shlex.split(SETTINGS["EXTRA_ARGS"]),
]
print(
    "data:    ",
    DATASET or f"{SAMPLE}, the project's synthetic sample: no labelled file is attached",
)
print("teacher: ", TEACHER or "trained from scratch: none is attached, and TEACHER_PATH names none")
print("earlier: ", REUSE or "none is attached")
print("command: ", shlex.join(COMMAND), flush=True)
START = time.time()
CODE = subprocess.run(COMMAND).returncode
PAGES = [
    path for path in OUTPUT.glob("compressed_models/*/report.html") if path.stat().st_mtime >= START
]
if CODE and not PAGES:  # done, but a form was kept back, is 3, and among several processes 1
    raise Stop(f"main.py ended with exit code {CODE}; its lines above say why")


# %%
def show(report: Path) -> None:
    """The page, in a frame that keeps its styles to itself."""
    from IPython.display import HTML, display

    page = html.escape(report.read_text(encoding="utf-8"))
    display(
        HTML(
            f'<div><iframe srcdoc="{page}" style="width: 100%; height: 900px; border: 0"></iframe></div>'
        )
    )


for REPORT in sorted(PAGES, key=lambda path: path.stat().st_mtime)[
    -1:
]:  # the last one is that of an ablation
    print("model and results:", REPORT.parent)
    if IN_NOTEBOOK:
        show(REPORT)
