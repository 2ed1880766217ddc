"""A run of several processes gives the same results as a run of one."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from builders import sentence, write_csv
from safetensors.torch import load_file
from tiny_training import run_arguments

from compression_config import Options
from experiments.checks import check_processes
from runtime import distributed
from runtime.errors import UserError

ROOT = Path(__file__).parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE_OPTIONS = (
    "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
)
ACCELERATE = ["-m", "accelerate.commands.launch", *ACCELERATE_OPTIONS.split()]
F1_TOLERANCE = 0.05  # dropout differs between processes, and so do the weights


def run_python(*arguments: str) -> str:
    """The output of `python ARGUMENTS` on the CPU with one thread per process."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_single_process_is_the_main_process():
    assert distributed.process_count() == 1
    assert distributed.is_main_process()
    assert distributed.broadcast_from_main(lambda: 3) == 3
    distributed.wait_for_everyone()


def test_a_batch_that_cannot_be_divided_among_the_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = r"--batch is 32, but must be a multiple of 3 \(processes\) times 1"
    with pytest.raises(UserError, match=message):
        check_processes(Options())


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(tiny_csv, tmp_path):
    script = "tests/train_together.py"
    one_dir = tmp_path / "one"
    two_dir = tmp_path / "two"
    assert run_python(script, str(one_dir), str(tiny_csv)) == "1 processes\n"
    assert run_python(*TORCHRUN, script, str(two_dir), str(tiny_csv)) == "2 processes\n" * 2
    one = load_file(one_dir / "model.safetensors")
    two = load_file(two_dir / "model.safetensors")
    for name, weight in one.items():
        assert (weight - two[name]).abs().max().item() < 1e-5


def macro_f1_by_stage(output_dir: Path) -> dict[str, float]:
    """Row -> macro-F1 of the run in `output_dir`."""
    path = output_dir / "compressed_models" / "run" / "results_final.json"
    rows = json.loads(path.read_text())["rows"]
    return {row["stage"]: row["macro_f1"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    "student, stages",
    [
        (
            "--student_path teacher:1 --trim_vocab used --ffn_width 0.5",
            ["linear", "teacher", "start", "trimmed", "narrowed", "student", "pruned", "fp16"],
        ),
        (
            "--student_path scratch:1x64 --student_tokenizer teacher --kd_method hidden",
            ["linear", "teacher", "student", "pruned", "fp16"],
        ),
    ],
)
def test_a_run_of_two_processes_has_the_rows_and_quality_of_a_run_of_one(student, stages, tmp_path):
    rng = random.Random(0)
    rows = [(f"{sentence(rng, i % 2)} {i}", i % 2) for i in range(600)]
    csv = write_csv(tmp_path / "rows.csv", ["text", "label"], rows)
    options = (
        "--teacher_path scratch:1x128 --teacher_epochs 4 --teacher_lr 2e-3 --epochs 4 --lr 2e-3 "
        f"--fine_tune_epochs 1 --batch 16 --max_length 32 {student}"
    )
    one_dir = tmp_path / "one"
    two_dir = tmp_path / "two"
    run_python("main.py", *run_arguments(csv, one_dir, options))
    printed = run_python(*ACCELERATE, "main.py", *run_arguments(csv, two_dir, options))
    assert printed.count("Stage") == 1  # only the main process prints the table
    one = macro_f1_by_stage(one_dir)
    two = macro_f1_by_stage(two_dir)
    assert list(one) == list(two) == stages
    for name in ("linear", "teacher", "student", "pruned", "fp16"):
        assert one[name] == pytest.approx(two[name], abs=F1_TOLERANCE)
        assert two[name] > 0.9
    run_dir = two_dir / "models" / "run"
    record = json.loads((run_dir / "teacher" / "stage.json").read_text())
    assert record["processes"] == 2
    assert len(list((run_dir / "outputs" / "train").glob("*.arrow"))) == 2
    assert list(tmp_path.rglob("*.partial")) == []
