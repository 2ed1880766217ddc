"""A disk that fills up during a stage costs one line; what was finished stays, and with room the
run goes on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = [
    "--teacher_path",
    "scratch:2x64",
    "--student_path",
    "teacher:1",
    "--teacher_epochs",
    "1",
    "--epochs",
    "1",
    "--fine_tune_epochs",
    "1",
    "--max_length",
    "32",
    "--device",
    "cpu",
    "--overwrite",
]
STAGES = {
    "baseline": "teacher",
    "kd_only": "distill",
    "kd_prune": "prune",
    "kd_prune_quant": "quantize",
}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def run(disk: Path, csv: Path, pipeline: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        ROOT / "main.py",
        "--pipeline",
        pipeline,
        "--dataset_path",
        csv,
        "--output_dir",
        disk,
        "--experiment",
        "run",
        *SMALL,
    ]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


@pytest.mark.slow
def test_a_full_disk_during_each_stage(small_disk, tiny_csv):
    finished: list[str] = []
    for pipeline, stage in STAGES.items():
        free = shutil.disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(
            b"x" * (free - 60_000)
        )  # room for the splits, not for a model
        failed = run(small_disk, tiny_csv, pipeline)
        lines = [line for line in failed.stderr.splitlines() if "error" in line]
        assert failed.returncode == 1 and failed.stdout == "", failed.stderr[-2000:]
        assert "Traceback" not in failed.stderr
        assert len(lines) == 1 and "no space is left" in lines[0]
        assert not (small_disk / "models" / "run" / stage).exists()
        assert all(
            (small_disk / "models" / "run" / name / "stage.json").is_file() for name in finished
        )
        (small_disk / "filler").unlink()
        again = run(small_disk, tiny_csv, pipeline)
        assert again.returncode == 0, again.stderr[-2000:]
        assert all(f"stage {name}: remembered" in again.stderr for name in finished)
        finished.append(stage)
    assert list(small_disk.rglob("*.partial")) == []
