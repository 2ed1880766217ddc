"""What a run says: a line and a reason for each stage, bars with the time left, a log file; and
how to hush it."""

import logging
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK, integration_utils

from compression_config import REPORTERS, VERSION, Options
from experiments.plan import STAGES
from runtime import logs
from runtime.command_line import command_line, parse_options
from runtime.errors import UserError
from runtime.logs import LogFile, current_level, log_to_files, set_up_process, start_logging
from trainer import EpochLogger

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "--pipeline baseline --teacher_path scratch:1x64 --teacher_epochs 2 --max_length 32 "
    "--device cpu --experiment run"
).split()
QUIET = """
import sys
from contextlib import ExitStack
import main
set_up, quick = main.set_up_process, ExitStack()
def set_up_and_measure_quickly(level):
    set_up(level)
    from measuring import quick_measuring
    quick.enter_context(quick_measuring(lambda function, *arguments: function(*arguments)))
main.set_up_process = set_up_and_measure_quickly
argv = [*sys.argv[1:], "--quiet"]
codes = [main.main(argv), main.main(argv), main.main([*argv, "--batch", "0"])]
assert codes == [0, 0, 2], codes
"""

BARS = """
import logging
from runtime.logs import start_logging
start_logging()
from tqdm import tqdm
logging.getLogger("main").setLevel(logging.INFO)
for step in tqdm(range(2), desc="outer", mininterval=0):
    for part in tqdm(range(2), desc="inner", leave=False, mininterval=0):
        pass
    if step == 0:
        logging.getLogger("main").info("said")
logging.getLogger("main").info("the end")
"""


def lines_of(log: Path) -> list[str]:
    """The lines of a log file without their timestamps."""
    return re.sub(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", log.read_text(), flags=re.M
    ).splitlines()


@pytest.fixture
def argv(tiny_csv, tmp_path) -> list[str]:
    return [*SMALL, "--dataset_path", str(tiny_csv), "--output_dir", str(tmp_path)]


def test_every_stage_describes_what_it_does_and_why():
    options = replace(Options(), student_path="teacher:2", ffn_width=0.5)
    descriptions = {}
    for stage in STAGES:
        descriptions[stage.name] = stage.describe(stage.selected_options(options))
        action, reason = descriptions[stage.name].split(": ", maxsplit=1)
        assert len(action) > 10 and len(reason) > 10, stage.name
    assert "scratch:4x256 on the labels, up to 5 epochs" in descriptions["teacher"]
    assert "linear layers (all) to a sparsity of 0.4 by magnitude" in descriptions["prune"]
    untrained = replace(options, teacher_epochs=0, fine_tune_epochs=0)
    for stage in STAGES:
        if stage.name in ("teacher", "prune"):
            assert " without " in stage.describe(stage.selected_options(untrained))


def test_a_run_shows_stages_and_bars_and_logs_the_same_without_bars(
    run_main, argv, tmp_path, capsys
):
    assert run_main(argv) == 0
    shown = capsys.readouterr().err
    assert (
        "stage teacher: fine-tune scratch:1x64 on the labels, up to 2 epochs: the baseline" in shown
    )
    assert "stage linear: fit TF-IDF and logistic regression: the baseline" in shown
    assert re.search(
        r"training, steps:.*\| 4/8 \[\d\d:\d\d<\d\d:\d\d, .*it/s\]", shown
    )  # elapsed < left
    log = tmp_path / "models" / "run" / "run.log"
    first = lines_of(log)
    file = argv[argv.index("--dataset_path") + 1]
    assert first[0] == f"pipeline baseline on {file}, teacher scratch:1x64"
    assert first[1].startswith("160 rows, columns Comments and HateSpeech; loading PyTorch")
    assert first[2] == f"experiment run, log in {log}: {command_line(parse_options(argv))}"
    assert (
        all(line in shown for line in first)
        and "it/s" not in log.read_text()
        and "\r" not in log.read_text()
    )
    assert run_main(argv) == 0
    again = lines_of(log)
    assert again[: len(first)] == first  # appended
    (said,) = [line for line in again[len(first) :] if line.startswith("stage teacher: ")]
    assert said.startswith(f"stage teacher: reused from {log.parent / 'teacher'}: fine-tune")


def test_a_quiet_process_shows_only_errors_and_no_bars(tmp_path, capsys):
    start_logging(logging.ERROR)
    with log_to_files() as run_log:
        run_log.write_to(tmp_path / "run.log")
        ours = logging.getLogger("experiments.stages")
        for say in (ours.info, logging.getLogger("torch").warning, ours.error):
            say("said")
    assert capsys.readouterr().err == "said\n" and lines_of(tmp_path / "run.log") == [
        "said",
        "said",
    ]
    bars = [sys.executable, "-c", "from tqdm.auto import tqdm; list(tqdm(range(3)))"]
    assert subprocess.run(bars, capture_output=True, check=True).stderr == b""


def test_a_run_announces_itself_before_it_reads_the_file(monkeypatch, capsys, tiny_csv):
    import main

    def read_data(_options: Options) -> None:
        raise UserError("not read")

    monkeypatch.setattr(main, "read_data", read_data)
    assert main.main(["--dataset_path", str(tiny_csv), "--audit"]) == 2
    first, error = capsys.readouterr().err.splitlines()
    assert (first, error) == (f"audit {tiny_csv}", "main.py: error: not read")


def test_a_file_or_a_pipe_gets_lines_and_a_terminal_a_bar(tmp_path):
    command = [sys.executable, "-c", BARS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "\r" not in done.stderr and "\x1b" not in done.stderr
    lines = done.stderr.splitlines()
    assert "" not in lines and lines.count("said") == 1 and lines[-1] == "the end"
    states = [line for line in lines if line.startswith("outer")]
    assert states[0].startswith("outer:   0%|") and states[-1].startswith("outer: 100%|")
    assert any(line.startswith("inner:  50%|") for line in lines)


def test_the_bars_of_a_file_are_shown_often_enough(monkeypatch):
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    start_logging()
    assert float(os.environ["TQDM_MININTERVAL"]) < 10


@pytest.mark.parametrize(
    "name", ["main.py", "inference.py", "evaluate.py", "benchmark.py", "report.py"]
)
def test_every_command_has_a_version(name):
    command = [sys.executable, name, "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{name} {VERSION}\n", "")


def test_pip_install_is_refused_in_one_line():
    with (ROOT / "pyproject.toml").open("rb") as file:
        backend = tomllib.load(file)["build-system"]
    assert backend["backend-path"] == ["scripts"] and backend["requires"] == []
    call = f"import {backend['build-backend']} as backend; backend.build_wheel('.')"
    command = [sys.executable, "-c", call]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("this project is not a package") and "requirements.txt" in line


@pytest.mark.slow
def test_quiet_leaves_errors_and_the_table(argv, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", QUIET, *argv],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    assert (
        done.returncode == 0
        and done.stderr == "main.py: error: --batch is 0, but must be at least 1\n"
    )
    assert [line.split()[0] for line in done.stdout.splitlines() if line[0] in "Slt"] == 2 * [
        "Stage",
        "linear",
        "teacher",
    ]
    log = "\n".join(lines_of(tmp_path / "models" / "run" / "run.log"))
    assert "stage teacher: fine-tune" in log and "stage teacher: reused" in log


@pytest.fixture
def talkative():
    """Restore the log levels of libraries after the test."""
    yield
    set_up_process()
    logging.captureWarnings(False)


def test_verbose_shows_library_logs_and_our_debug_output(
    run_main, argv, tmp_path, capsys, talkative
):
    assert run_main([*argv, "--verbose", "--teacher_epochs", "1"]) == 0
    shown, log = capsys.readouterr().err, (tmp_path / "models" / "run" / "run.log").read_text()
    for said in (
        "***** Running training *****",
        "stage teacher: no finished directory has the fingerprint ",
        "112 training and 16 validation rows, learning rate 0.0005",
    ):
        assert said in shown and said in log
    assert run_main([*argv, "--verbose", "--quiet"]) == 2
    assert "--quiet and --verbose cannot be combined" in capsys.readouterr().err


def test_only_the_main_process_logs(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    start_logging()
    logging.getLogger("experiments.stages").info("logged twice")
    assert (
        current_level() == logging.ERROR
        and os.environ["TQDM_DISABLE"] == "1"
        and capsys.readouterr().err == ""
    )


def test_bars_of_a_resumed_training_start_where_it_does(capsys):
    bars = EpochLogger()
    state = SimpleNamespace(is_world_process_zero=True, max_steps=10, global_step=6)
    bars.on_train_begin(None, state, None)
    assert (bars.training_bar.n, bars.training_bar.initial, bars.current_step) == (6, 6, 6)
    state.global_step = 7
    bars.on_step_end(None, state, None)
    assert bars.training_bar.n == 7
    bars.on_train_end(None, state, None)


def test_the_log_file_has_earlier_lines_and_the_error_that_ended_the_run(tmp_path):
    start_logging()
    log = logging.getLogger("data")
    for error in (
        UserError("--batch is 0", "--seed is x"),
        KeyboardInterrupt(),
        ZeroDivisionError("by zero"),
    ):
        with pytest.raises(type(error)), log_to_files() as run_log:
            log.warning("rows are dropped")
            run_log.write_to(tmp_path / "run.log")
            log.info("a name with \x1b[31m and \u202e")
            raise error
    lines = lines_of(tmp_path / "run.log")
    assert lines[:4] == [
        "rows are dropped",
        "a name with \\x1b[31m and \\u202e",
        "error: --batch is 0",
        "--seed is x",
    ]
    assert (
        lines[6] == "interrupted"
        and lines[9].startswith("Traceback")
        and lines[-1] == "ZeroDivisionError: by zero"
    )
    assert not [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logs.MemoryHandler)
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_loses_log_lines_and_nothing_else(capsys):
    start_logging()
    with log_to_files() as run_log:
        run_log.write_to(Path("/dev/full"))
        logging.getLogger("data").info("one line")
    assert capsys.readouterr().err == "one line\n"
    assert LogFile.handleError is not logging.Handler.handleError


def test_a_refused_directory_gets_no_log(run_main, argv, tmp_path, capsys):
    folder = tmp_path / "models" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("pipeline: kd_only\n")
    assert run_main(argv) == 2 and "already exists with other options" in capsys.readouterr().err
    assert not (folder / "run.log").exists()


class Recorder(TrainerCallback):
    """A fake tracker that records what the Trainer reports."""

    told: list = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.told.append((args.run_name, os.environ.get("TENSORBOARD_LOGGING_DIR"), logs))


def test_report_to_reaches_the_trainer_and_changes_no_stage(run_main, argv, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # given back after the test
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    Recorder.told.clear()
    assert run_main([*argv, "--report_to", "tensorboard"]) == 0
    (run,), (folder,) = ({told[place] for told in Recorder.told} for place in (0, 1))
    assert run == "run/teacher" and Path(folder).parent == tmp_path / "models" / "run" / "curves"
    assert sum("loss" in logs for *_, logs in Recorder.told) == 2  # one an epoch
    Recorder.told.clear()
    assert run_main(argv) == 0  # no other options, and nothing made again
    assert Recorder.told == []
    assert any(
        "stage teacher: reused" in line
        for line in lines_of(tmp_path / "models" / "run" / "run.log")
    )


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    run_main, argv, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    assert run_main([*argv, "--report_to", "wandb"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(
        "main.py: error: --report_to is wandb, but WandbCallback requires wandb to be installed."
    )
    assert list(tmp_path.iterdir()) == []
    assert run_main([*argv, "--report_to", "carrier_pigeon"]) == 2
    assert (
        "--report_to is carrier_pigeon, but must be one of none, azure_ml"
        in capsys.readouterr().err
    )


def test_the_names_of_report_to_are_those_of_the_trainer():
    assert list(REPORTERS) == ["none", *sorted(INTEGRATION_TO_CALLBACK)]


@pytest.mark.parametrize(
    "words",
    [
        [],
        [
            "--batch",
            "8",
            "--prune_sparsity",
            "0.5",
            "--label_columns",
            "a b",
            "c",
            "--quant_method",
            "int4",
            "--quant_auto",
            "--max_f1_drop",
            "0.01",
            "--seeds",
            "1",
            "2",
            "--experiment",
            "x",
            "--lr",
            "1e-05",
            "--ffn_width",
            "0.25",
            "--quiet",
        ],
    ],
)
def test_the_printed_command_parses_to_the_same_options(words, tmp_path):
    options = parse_options(words)
    assert parse_options(shlex.split(command_line(options))[2:]) == options
    (tmp_path / "run.yaml").write_text("batch: 16\naudit: true\n")
    from_file = parse_options(["--config", str(tmp_path / "run.yaml")])
    assert command_line(from_file) == "python main.py --batch 16 --audit"
