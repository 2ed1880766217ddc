"""Several processes of one run do together what one does alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ranks
from compression_config import Options, UserError
from experiment import check_processes

ROOT = Path(__file__).parent.parent
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip


def run(command: list[str]) -> str:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_process_alone_is_the_first_of_one():
    assert ranks.process_count() == 1 and ranks.is_first() and ranks.told_by_first(lambda: 3) == 3
    ranks.wait()


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"--batch is 32, but must be a multiple of 3 \(processes\) times 1"):
        check_processes(Options())


@pytest.mark.slow
def test_two_processes_train_the_weights_that_one_trains(tiny_csv, tmp_path):
    script = ["tests/train_together.py"]
    assert run([sys.executable, *script, str(tmp_path / "one"), str(tiny_csv)]) == "1 processes\n"
    assert run([*TWO, *script, str(tmp_path / "two"), str(tiny_csv)]) == "2 processes\n" * 2
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


@pytest.mark.slow
def test_two_processes_run_the_pipeline(tiny_csv, tmp_path):
    options = ["main.py", "--dataset_path", str(tiny_csv), "--output_dir", str(tmp_path), "--experiment", "run",
               "--teacher_path", "scratch:1x128", "--student_path", "scratch:1x64", "--student_tokenizer", "teacher",
               "--kd_method", "hidden", "--teacher_epochs", "8", "--epochs", "8", "--teacher_lr", "3e-3",
               "--lr", "3e-3", "--early_stopping_patience", "8", "--batch", "16", "--max_length", "32"]  # fmt: skip
    printed = run([*ACCELERATE, *options])
    assert printed.count("Stage") == 1  # one process speaks
    document = json.loads((tmp_path / "compressed_models" / "run" / "results_final.json").read_text())
    assert [row["stage"] for row in document["rows"]] == ["linear", "teacher", "student", "pruned", "fp16"]
    assert min(row["macro_f1"] for row in document["rows"][1:]) > 0.95  # as one process: 1.0
    assert json.loads((tmp_path / "models" / "run" / "teacher" / "stage.json").read_text())["processes"] == 2
    assert len([*(tmp_path / "models" / "run" / "outputs" / "train").glob("*.arrow")]) == 2
    assert list(tmp_path.rglob("*.partial")) == []
