# %% [markdown]
# # Compress a text classifier
#
# Attach as inputs (`Add Input`): the project's folder, a labeled file, and the folder of the
# teacher's model (with internet, you can also set its name in the first cell). Then run all cells.
# They first print which inputs were detected, and finally show the report. All outputs are in
# `/kaggle/working`.
#
# - **GPU**: `T4 x2` uses both GPUs, in fp16. One GPU or none works too.
# - **Several candidates**: the notebook never guesses. It lists them and asks you to set one in the
#   first cell.
# - **A later session**: attach the output of this notebook, and its finished stages are reused.
# - **Without internet**: attach the teacher, and a dataset of the packages. Create the dataset with
#   internet by `pip download --no-deps -r requirements-kaggle.txt`.

# %%
"""Detect the inputs, run the pipeline, show its report."""

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

SETTINGS = {  # an environment variable of the same name takes precedence; empty ones are detected
    "PROJECT_DIR": "",  # folder with main.py
    "DATASET_PATH": "",  # labeled file
    "TEACHER_PATH": "",  # model folder, hub name (with internet), or scratch:4x256 (needs neither)
    "STUDENT_PATH": "",  # the same, or teacher:2; empty: two layers of the teacher
    "REUSE": "",  # folder of an earlier session's models
    "EXTRA_ARGS": "",  # other options of main.py, such as: --quant_method dynamic --epochs 3
    "INPUTS_DIR": "/kaggle/input",
    "OUTPUT_DIR": ".",
}
for name in SETTINGS:
    SETTINGS[name] = os.environ.get(name) or SETTINGS[name]
INPUTS = Path(SETTINGS["INPUTS_DIR"])
OUTPUT = Path(SETTINGS["OUTPUT_DIR"])
IN_NOTEBOOK = "get_ipython" in globals()
ON_KAGGLE = "KAGGLE_KERNEL_RUN_TYPE" in os.environ


class Stop(Exception if IN_NOTEBOOK else SystemExit):
    """Ends the run with a message and without a traceback, in a notebook and in a shell."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


# %%
def is_online() -> bool:
    """Whether the host of the Hugging Face Hub answers.

    encoders/start.py has the same check, but this cell runs before the project is on the path and
    before its packages are installed.
    """
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


FILES = []
for folder, _, names in os.walk(INPUTS):
    FILES += [Path(folder, name) for name in names]
FILES.sort()
INPUT_NAMES = sorted({path.relative_to(INPUTS).parts[0] for path in FILES})
GPUS = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
ONLINE = is_online()
print("GPUs:    ", f"{len(GPUS)}, {' and '.join(GPUS)}" if GPUS else "none")
print("internet:", "yes" if ONLINE else "no")
print("inputs:  ", ", ".join(INPUT_NAMES) or f"none in {INPUTS}")
print("torch:   ", torch.__version__, flush=True)

# %%
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
GZIPPED = tuple(f"{suffix}.gz" for suffix in TABLES)
ZSTD_COMPRESSED = tuple(f"{suffix}.zst" for suffix in TABLES)
LABELLED = (".parquet", *TABLES, *GZIPPED, *ZSTD_COMPRESSED)
PROBLEMS: list[str] = []


def outside(folders: Iterable[Path], paths: Iterable[Path]) -> list[Path]:
    """The distinct paths that are neither one of the folders nor in one."""
    excluded = set(folders)
    return sorted({path for path in paths if not {path, *path.parents} & excluded})


def choose(name: str, plural: str, candidates: list[Path], missing: str = "") -> str:
    """The setting if it is set, else the only candidate, else "".

    Several candidates are a problem. So is none, if `missing` describes what to attach.
    """
    if SETTINGS[name]:
        return SETTINGS[name]
    if len(candidates) == 1:
        return str(candidates[0])
    if candidates:
        lines = [f"several {plural} are attached; set {name} in the first cell to one of them:"]
        PROBLEMS.append("\n    ".join([*lines, *map(str, candidates)]))
    elif missing:
        PROBLEMS.append(missing)
    return ""


def find_project() -> str:
    """The folder with main.py: as set, the working directory or a parent of it, or an input."""
    candidates = ATTACHED_PROJECTS
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "compression_config.py").is_file():
            candidates = [folder]
            break
    return choose(
        "PROJECT_DIR",
        "copies of the project",
        candidates,
        "the project: upload its folder, with main.py and compression_config.py, as a dataset",
    )


def find_earlier_models() -> set[Path]:
    """The folders `models` that earlier sessions wrote."""
    folders = set()
    for path in FILES:
        models = path.parents[1]
        if path.name == "config.yaml" and models.name == "models":
            folders.add(models)
    return folders


def find_outputs(earlier_models: set[Path]) -> set[Path]:
    """The folders whose files are no inputs: outputs of earlier sessions, and the project."""
    folders = set(ATTACHED_PROJECTS)
    for models in earlier_models:
        folders.add(models if models.parent == INPUTS else models.parent)
    return folders


def find_model_folders() -> list[Path]:
    """The folders with a config and safetensors weights."""
    folders = [path.parent for path in FILES if path.suffix == ".safetensors"]
    return [folder for folder in folders if (folder / "config.json").is_file()]


def choose_dataset(candidates: list[Path]) -> str:
    """The labeled file; "" for the project's sample, the default with internet."""
    missing = ""
    if not ONLINE:
        missing = (
            "a labeled file, such as a CSV: upload it as a dataset. To try the notebook, set "
            f"DATASET_PATH to {SAMPLE}"
        )
    return choose("DATASET_PATH", "labeled files", candidates, missing)


def choose_teacher(candidates: list[Path]) -> str:
    """The teacher; "" for one with random weights, the default with internet."""
    missing = ""
    if not ONLINE:
        missing = (
            "a teacher: a folder with config.json, *.safetensors (not pytorch_model.bin) and a "
            "tokenizer, from Models or as a dataset. If you have none, set TEACHER_PATH to "
            "scratch:4x256"
        )
    return choose("TEACHER_PATH", "models", candidates, missing)


def choose_reuse(earlier_models: set[Path]) -> str:
    """The folder that contains the models of all earlier sessions; "" if there are none."""
    if SETTINGS["REUSE"] or not earlier_models:
        return SETTINGS["REUSE"]
    return os.path.commonpath(earlier_models)


def installed_version(package: str) -> str:
    """The version of a package; "" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def find_unmet_pins(project: str) -> list[str]:
    """The pins that this Kaggle image does not meet. Elsewhere, packages are not checked."""
    file = Path(project, "requirements-kaggle.txt")
    if not ON_KAGGLE or not file.is_file():
        return []
    unmet = []
    for line in file.read_text().splitlines():
        package, separator, pinned = line.partition("==")
        if separator and installed_version(package) != pinned:
            unmet.append(line)
    if unmet and not ONLINE and not WHEEL_FOLDERS:
        PROBLEMS.append(
            "the packages: a dataset of the files that `pip download --no-deps -r "
            "requirements-kaggle.txt` downloads with internet; this image lacks "
            f"{', '.join(unmet)}"
        )
    return unmet


ATTACHED_PROJECTS = [path.parent for path in FILES if path.name == "compression_config.py"]
WHEEL_FOLDERS = sorted({str(path.parent) for path in FILES if path.suffix == ".whl"})
PROJECT = find_project()
if PROJECT and not Path(PROJECT, "main.py").is_file():
    PROBLEMS.append(f"the project: PROJECT_DIR is {PROJECT}, but must contain main.py")
SAMPLE = str(Path(PROJECT, "data", "HateSpeech.csv"))
EARLIER_MODELS = find_earlier_models()
OUTPUTS = find_outputs(EARLIER_MODELS)
MODEL_FOLDERS = outside(OUTPUTS, find_model_folders())
LABELLED_FILES = [path for path in FILES if path.name.lower().endswith(LABELLED)]
DATASET = choose_dataset(outside({*OUTPUTS, *MODEL_FOLDERS}, LABELLED_FILES))
TEACHER = choose_teacher(MODEL_FOLDERS)
REUSE = choose_reuse(EARLIER_MODELS)
UNMET_PINS = find_unmet_pins(PROJECT)
if PROBLEMS:
    internet = "" if ONLINE else ", and there is no internet"
    heading = (
        f"Something is missing or ambiguous in this notebook's inputs{internet}. Attach or choose, "
        "then run all cells again:"
    )
    raise Stop("\n- ".join([heading, *PROBLEMS]))

# %%
# torch, numpy and pandas stay as the image built them for its GPUs. All other packages are
# installed in the versions that the tests ran with. The constraints keep the three in place: pip
# ends with an error if a package is incompatible with them.
KEPT_PACKAGES = ("torch", "numpy", "pandas")


def install_command(requirements: Path, constraints: Path) -> list[str]:
    """The command line of pip. Without internet it uses only the attached packages."""
    command = [sys.executable, "-m", "pip", "install"]
    command += ["-r", str(requirements), "-c", str(constraints)]
    if not ONLINE:
        command.append("--no-index")
        command += [f"--find-links={folder}" for folder in WHEEL_FOLDERS]
    return command


def install(requirements: Path) -> None:
    """Install the pinned packages; raises Stop if they conflict with KEPT_PACKAGES."""
    versions = {package: installed_version(package) for package in KEPT_PACKAGES}
    lines = [f"{package}=={pinned}\n" for package, pinned in versions.items() if pinned]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("".join(lines))
        command = install_command(requirements, constraints)
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Stop(
            "pip could not install them alongside the image's torch, numpy and pandas:\n"
            f"{result.stdout[-2000:]}{result.stderr[-2000:]}"
        )


if UNMET_PINS:
    print("installing", ", ".join(UNMET_PINS), flush=True)
    install(Path(PROJECT, "requirements-kaggle.txt"))


# %%
def launcher(processes: int) -> list[str]:
    """Plain Python, or accelerate with one process per GPU; main.py chooses the precision."""
    if processes <= 1:
        return [sys.executable]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", str(processes), "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return command


COMMAND = [*launcher(len(GPUS)), str(Path(PROJECT, "main.py"))]
COMMAND += ["--dataset_path", DATASET or SAMPLE, "--output_dir", str(OUTPUT)]
OPTIONAL_FLAGS = {
    "--teacher_path": TEACHER,
    "--student_path": SETTINGS["STUDENT_PATH"],
    "--reuse": REUSE,
}
for flag, value in OPTIONAL_FLAGS.items():
    if value:
        COMMAND += [flag, value]
COMMAND += shlex.split(SETTINGS["EXTRA_ARGS"])
print("data:    ", DATASET or f"{SAMPLE}, the project's synthetic sample (no file is attached)")
print("teacher: ", TEACHER or "trained from scratch (none is attached or set)")
print("earlier: ", REUSE or "none is attached")
print("command: ", shlex.join(COMMAND), flush=True)
START = time.time()
CODE = subprocess.run(COMMAND).returncode
REPORTS = []
for path in OUTPUT.glob("compressed_models/*/report.html"):
    if path.stat().st_mtime >= START:
        REPORTS.append(path)
# A run whose quality gate rejected a format ends with 3, or 1 under accelerate, and has a report.
if CODE and not REPORTS:
    raise Stop(f"main.py ended with exit code {CODE}; its output above gives the reason")


# %%
def show(report: Path) -> None:
    """Display the page in an iframe, so that its styles do not affect the notebook."""
    from IPython.display import HTML, display

    page = html.escape(report.read_text(encoding="utf-8"))
    style = "width: 100%; height: 900px; border: 0"
    display(HTML(f'<div><iframe srcdoc="{page}" style="{style}"></iframe></div>'))


if REPORTS:
    REPORT = max(REPORTS, key=lambda path: path.stat().st_mtime)  # of an ablation, its own page
    print("model and results:", REPORT.parent)
    if IN_NOTEBOOK:
        show(REPORT)
