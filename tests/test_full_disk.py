"""A disk that becomes full during a stage costs one line on stderr: finished stages are kept, and
with free space the same command resumes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FREE_BYTES = 60_000  # enough for the splits, not for a model
SMALL_RUN = {
    "--teacher_path": "scratch:2x64",
    "--student_path": "teacher:1",
    "--teacher_epochs": "1",
    "--epochs": "1",
    "--fine_tune_epochs": "1",
    "--max_length": "32",
    "--device": "cpu",
    "--experiment": "run",
}
LAST_STAGES = {  # pipeline -> its last stage
    "baseline": "teacher",
    "kd_only": "distill",
    "kd_prune": "prune",
    "kd_prune_quant": "quantize",
}


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A separate file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def run(disk: Path, csv: Path, pipeline: str) -> subprocess.CompletedProcess:
    """One pipeline whose outputs are on the small disk."""
    command = [sys.executable, ROOT / "main.py", "--pipeline", pipeline, "--overwrite"]
    command += ["--dataset_path", csv, "--output_dir", disk]
    for option, value in SMALL_RUN.items():
        command += [option, value]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_a_full_disk_during_each_stage(small_disk, tiny_csv):
    models = small_disk / "models" / "run"
    filler = small_disk / "filler"
    finished: list[str] = []
    for pipeline, stage in LAST_STAGES.items():
        filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - FREE_BYTES))
        failed = run(small_disk, tiny_csv, pipeline)
        lines = [line for line in failed.stderr.splitlines() if "error" in line]
        assert failed.returncode == 1 and failed.stdout == "", failed.stderr[-2000:]
        assert "Traceback" not in failed.stderr
        assert len(lines) == 1 and "no space left" in lines[0]
        assert not (models / stage).exists()
        assert all((models / name / "stage.json").is_file() for name in finished)
        filler.unlink()
        again = run(small_disk, tiny_csv, pipeline)
        assert again.returncode == 0, again.stderr[-2000:]
        for name in finished:
            assert f"stage {name}: reused" in again.stderr
        finished.append(stage)
    assert list(small_disk.rglob("*.partial")) == []
