# %% [markdown]
# # Compress a text classifier
# Attach the project folder and a labelled CSV file as inputs, then run this file: as a script, in one notebook cell,
# or in several, cut at the `# %%` lines. Without a CSV the project's synthetic sample is used.
#
# Environment variables go before what is found: `PROJECT_DIR`, `DATASET_PATH`, `TEACHER_PATH`, `STUDENT_PATH`,
# `OUTPUT_DIR`, and `EXTRA_ARGS` with any other options, such as `--quant_method dynamic --epochs 3`.

# %%
"""Find the project and the data, say what was found, run the pipeline; the table comes last."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

INPUTS, WORKING = Path("/kaggle/input"), Path("/kaggle/working")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with two GPUs the Trainer would double the batch over both


def find_project() -> Path:
    """The folder with main.py: PROJECT_DIR, this folder or one above it, or an input."""
    if os.environ.get("PROJECT_DIR"):
        return Path(os.environ["PROJECT_DIR"])
    inputs = (path.parent for path in sorted(INPUTS.rglob("compression_config.py")))
    for folder in (Path.cwd(), *Path.cwd().parents, *inputs):
        if (folder / "main.py").is_file() and (folder / "compression_config.py").is_file():
            return folder
    raise SystemExit("no folder with main.py and compression_config.py: attach it as an input, or set PROJECT_DIR")


def find_dataset(project: Path) -> Path:
    """DATASET_PATH, the one CSV among the inputs, or the project's sample; several are not guessed among."""
    if os.environ.get("DATASET_PATH"):
        return Path(os.environ["DATASET_PATH"])
    found = [path for path in sorted(INPUTS.rglob("*.csv")) if project not in path.parents]
    if len(found) > 1:
        raise SystemExit("\n".join(["several CSV files: set DATASET_PATH to one of", *map(str, found)]))
    return found[0] if found else project / "data" / "HateSpeech.csv"


def arguments(dataset: Path) -> list[str]:
    """What main.py is given."""
    output = os.environ.get("OUTPUT_DIR") or str(WORKING if WORKING.is_dir() else Path.cwd())
    argv = ["--dataset_path", str(dataset), "--output_dir", output]
    for flag, variable in (("--teacher_path", "TEACHER_PATH"), ("--student_path", "STUDENT_PATH")):
        if os.environ.get(variable):
            argv += [flag, os.environ[variable]]
    return argv + shlex.split(os.environ.get("EXTRA_ARGS", ""))


# %%
# The measuring process imports this file under another name: only `__main__` may act.
if __name__ == "__main__":
    PROJECT = find_project()
    ARGV = arguments(find_dataset(PROJECT))

# %%
if __name__ == "__main__" and "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # torch, numpy and pandas stay as they are
    pins = str(PROJECT / "requirements-kaggle.txt")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-r", pins], check=True)

# %%
if __name__ == "__main__":
    import torch

    print("GPU:     ", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")
    print("torch:   ", torch.__version__)
    print("inputs:  ", ", ".join(sorted(path.name for path in INPUTS.glob("*"))) or "none")
    print("project: ", PROJECT)
    print("command: ", shlex.join(["python", "main.py", *ARGV]), flush=True)

# %%
if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    from main import main

    code = main(ARGV)
    if code:
        raise SystemExit(code)
