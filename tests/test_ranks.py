"""Several processes of one run do together what one does alone."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from builders import sentence
from safetensors.torch import load_file

from compression_config import Options, UserError
from experiments.checks import check_processes
from runtime import distributed

ROOT = Path(__file__).parent.parent
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]


def run(command: list[str]) -> str:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_process_alone_is_the_first_of_one():
    assert (
        distributed.process_count() == 1
        and distributed.is_main_process()
        and distributed.broadcast_from_main(lambda: 3) == 3
    )
    distributed.wait_for_everyone()


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        UserError, match=r"--batch is 32, but must be a multiple of 3 \(processes\) times 1"
    ):
        check_processes(Options())


@pytest.mark.slow
def test_two_processes_train_the_weights_that_one_trains(tiny_csv, tmp_path):
    script = ["tests/train_together.py"]
    assert run([sys.executable, *script, str(tmp_path / "one"), str(tiny_csv)]) == "1 processes\n"
    assert run([*TWO, *script, str(tmp_path / "two"), str(tiny_csv)]) == "2 processes\n" * 2
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


TOLERANCE = 0.05  # of macro-F1: dropout draws differ between processes, so weights do


def rows_of(folder: Path) -> dict[str, float]:
    """Macro-F1 of each row of the run in `folder`."""
    document = json.loads((folder / "compressed_models" / "run" / "results_final.json").read_text())
    return {row["stage"]: row["macro_f1"] for row in document["rows"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "student, stages",
    [
        (
            ["--student_path", "teacher:1", "--trim_vocab", "used", "--ffn_width", "0.5"],
            ["linear", "teacher", "start", "trimmed", "narrowed", "student", "pruned", "fp16"],
        ),
        (
            [
                "--student_path",
                "scratch:1x64",
                "--student_tokenizer",
                "teacher",
                "--kd_method",
                "hidden",
            ],
            ["linear", "teacher", "student", "pruned", "fp16"],
        ),
    ],
)
def test_two_processes_end_where_one_does(student, stages, tmp_path):
    rng = random.Random(0)
    rows = [(sentence(rng, i % 2) + f" {i}", i % 2) for i in range(600)]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "rows.csv", index=False)
    options = [
        "main.py",
        "--dataset_path",
        str(tmp_path / "rows.csv"),
        "--experiment",
        "run",
        "--lr",
        "2e-3",
        "--teacher_path",
        "scratch:1x128",
        "--teacher_epochs",
        "4",
        "--epochs",
        "4",
        "--teacher_lr",
        "2e-3",
        "--fine_tune_epochs",
        "1",
        *student,
        "--batch",
        "16",
        "--max_length",
        "32",
        "--output_dir",
    ]
    run([sys.executable, *options, str(tmp_path / "one")])
    printed = run([*ACCELERATE, *options, str(tmp_path / "two")])
    assert printed.count("Stage") == 1  # one process speaks
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert list(one) == list(two) == stages
    trained = ("linear", "teacher", "student", "pruned", "fp16")
    assert [one[name] for name in trained] == pytest.approx(
        [two[name] for name in trained], abs=TOLERANCE
    )
    assert min(two[name] for name in trained) > 0.9
    run_dir = tmp_path / "two" / "models" / "run"
    assert json.loads((run_dir / "teacher" / "stage.json").read_text())["processes"] == 2
    assert len([*(run_dir / "outputs" / "train").glob("*.arrow")]) == 2
    assert list(tmp_path.rglob("*.partial")) == []
