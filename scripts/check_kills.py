"""End a run repeatedly by signals, resume it each time, and compare it with an uninterrupted run.

`python scripts/check_kills.py OUTPUT [--kills 20] [--kill_seed 0] [options of main.py]`. Without
options of main.py, a tiny recipe uses every kind of stage: vocabulary trimming, FFN width,
distillation on unlabeled texts, pruning, QAT, quantization, all exports, two folds.

The uninterrupted run comes first; its duration determines when the other run is ended. Instants are
random, and SIGKILL, SIGTERM, SIGINT and SIGHUP take turns. Every third signal waits until a weight
file is opened for writing, every fifth comes during the imports. After each signal but SIGKILL, the
run must end within 3 seconds with 128 + the signal's number and one more line, without child
processes. Finally, all metrics except times, the files of every model directory and all predictions
must be identical, and no partial directory may remain. The exit code is 1 if something differs.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "HateSpeech.csv"
EXPERIMENT = "killed"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
START_UP_S = 8  # of Python and its libraries
LAST_KILL = 2.0  # seconds after the start-up: this times the duration / the number of kills
WRITE_EVERY = 3  # every third signal waits for a weight file
IMPORT_EVERY = 5  # every fifth comes before the start-up is over
EARLIEST_S = 0.2  # before it, Python itself has not started
MAX_EXIT_S = 3
POLL_S = 0.001
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".onnx", ".bin")
LABELED_ROWS = 300
UNLABELED_ROWS = 150
TINY_RECIPE = (
    "--pipeline kd_prune_quant --teacher_path scratch:2x64 --student_path teacher:1 "
    "--teacher_epochs 2 --epochs 2 --fine_tune_epochs 1 --lr 5e-3 --teacher_lr 5e-3 "
    "--trim_vocab used --ffn_width 0.5 --qat int8 --qat_epochs 1 --export all --num_folds 2 "
    "--max_length 32 --device cpu"
)


def tiny_recipe(output: Path) -> list[str]:
    """Options of main.py for a tiny run with every kind of stage; its data are in `output`."""
    labeled = output / "labeled.csv"
    unlabeled = output / "unlabeled.txt"
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(islice(csv.reader(file), 1 + LABELED_ROWS + UNLABELED_ROWS))
    with labeled.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows[: 1 + LABELED_ROWS])
    texts = [" ".join(row[0].split()) for row in rows[1 + LABELED_ROWS :]]
    unlabeled.write_text("\n".join(texts) + "\n", encoding="utf-8")
    options = ["--dataset_path", str(labeled), "--unlabeled_path", str(unlabeled)]
    return options + TINY_RECIPE.split()


def start_run(output: Path, main_options: list[str]) -> subprocess.Popen:
    """Start main.py in its own process group."""
    command = [sys.executable, ROOT / "main.py", "--output_dir", output]
    command += ["--experiment", EXPERIMENT, *main_options]
    with log_path(output).open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)


def log_path(output: Path) -> Path:
    """What the runs into `output` print."""
    return output.parent / f"{output.name}.log"


def partial_files(output: Path) -> list[Path]:
    """The files in partial directories."""
    files = []
    for parent, _, names in os.walk(output):  # it ignores what the run deletes in the meantime
        if ".partial" in parent:
            files += [Path(parent) / name for name in names]
    return files


def modification_time(path: Path) -> float:
    """The time of a file's last change; 0 if it is deleted in the meantime."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def newest_partial(output: Path) -> str:
    """The newest file in a partial directory: the one that was being written."""
    newest = max(partial_files(output), key=modification_time, default=None)
    if newest is None:
        return "no partial file"
    return str(newest.relative_to(output))


def partial_weights(output: Path) -> set[Path]:
    """The files of weights and optimizer states in partial directories."""
    return {path for path in partial_files(output) if path.suffix in WEIGHT_SUFFIXES}


def wait_for_write(process: subprocess.Popen, output: Path) -> None:
    """Wait until a new weight file appears in a partial directory, or the process ends."""
    before = partial_weights(output)
    while process.poll() is None and not partial_weights(output) - before:
        time.sleep(POLL_S)


@dataclass(frozen=True)
class Kill:
    """When and how a run is ended."""

    number: signal.Signals
    seconds: float  # after the start
    while_writing: bool  # wait for the next weight file after that time


def random_kills(count: int, duration_s: float, seed: int) -> Iterator[Kill]:
    """Up to twice as many kills as asked for, because a run may end before its kill."""
    instants = random.Random(seed)
    for attempt in range(2 * count):
        seconds = START_UP_S + instants.uniform(0, LAST_KILL * duration_s / count)
        if attempt % IMPORT_EVERY == IMPORT_EVERY - 1:
            seconds = instants.uniform(EARLIEST_S, START_UP_S)
        while_writing = attempt % WRITE_EVERY == WRITE_EVERY - 1
        yield Kill(SIGNALS[attempt % len(SIGNALS)], seconds, while_writing)


def end_run(output: Path, main_options: list[str], kill: Kill) -> list[str] | None:
    """Start the run and end it; returns what was wrong with its end, None if it ended before."""
    process = start_run(output, main_options)
    try:
        process.wait(timeout=kill.seconds)
    except subprocess.TimeoutExpired:
        if kill.while_writing:
            wait_for_write(process, output)
    if process.poll() is not None:
        return None
    children = psutil.Process(process.pid).children(recursive=True)
    start = time.monotonic()
    process.send_signal(kill.number)  # to the main process only: it ends its child processes
    code = process.wait()
    exit_s = time.monotonic() - start
    _, alive = psutil.wait_procs(children, timeout=MAX_EXIT_S)
    errors = [] if kill.number == signal.SIGKILL else end_errors(output, kill.number, code, exit_s)
    if alive:
        errors.append(f"{len(alive)} child processes are left")
    when = "at a write after" if kill.while_writing else "after"
    print(
        f"{kill.number.name} {when} {kill.seconds:5.1f} s, exit code {code} within {exit_s:.2f} s, "
        f"{len(children)} child processes: {newest_partial(output)}{'; '.join(['', *errors])}",
        flush=True,
    )
    return errors


def end_errors(output: Path, number: signal.Signals, code: int, exit_s: float) -> list[str]:
    """What is wrong with the end of a run that could react to its signal."""
    errors = []
    if code != 128 + number:
        errors.append(f"the exit code must be {128 + number}")
    if exit_s > MAX_EXIT_S:
        errors.append(f"it must end within {MAX_EXIT_S} s")
    log = log_path(output).read_text(encoding="utf-8", errors="replace")
    if "run the same command again to resume" not in log.splitlines()[-1]:
        errors.append("the last line must be about the signal")
    if "Traceback" in log:
        errors.append("there must be no traceback")
    return errors


def read_metrics(output: Path) -> dict[str, dict[str, Any]]:
    """Evaluation -> all metrics except times."""
    directory = output / "models" / EXPERIMENT
    metrics = {}
    for path in directory.rglob("predictions/*.json"):
        name = str(path.relative_to(directory))
        metrics[name] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return metrics


def read_hashes(output: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file that a run makes, without those that contain times or
    places."""
    hashes = {}
    for record in output.rglob("stage.json"):
        files = json.loads(record.read_text(encoding="utf-8"))["files"]
        directory = record.parent.relative_to(output)
        hashes |= {str(directory / name): value for name, value in files.items()}
    for path in output.rglob("predictions/*.parquet"):
        hashes[str(path.relative_to(output))] = sha256(path.read_bytes()).hexdigest()
    return hashes


def kill_repeatedly(
    output: Path, main_options: list[str], max_kills: int, duration_s: float, seed: int
) -> tuple[int, list[str]]:
    """End and restart the run up to `max_kills` times; returns the number of kills, and what was
    wrong with the ends."""
    kills = 0
    errors: list[str] = []
    for kill in random_kills(max_kills, duration_s, seed):
        if kills == max_kills:
            break
        wrong = end_run(output, main_options, kill)
        if wrong is not None:
            kills += 1
            errors += wrong
    return kills, errors


def compare(uninterrupted: Path, killed: Path) -> list[str]:
    """What differs between two runs."""
    errors = []
    metrics = read_metrics(uninterrupted)
    if not metrics or metrics != read_metrics(killed):
        errors.append("metrics differ")
    expected = read_hashes(uninterrupted)
    found = read_hashes(killed)
    for name in sorted(expected | found):
        if expected.get(name) != found.get(name):
            errors.append(f"{name} differs")
    partial_paths = list(killed.rglob("*.partial"))
    if partial_paths:
        errors.append(f"{len(partial_paths)} partial directories remain")
    print(f"{len(metrics)} evaluations and {len(expected)} files compared")
    return errors


def main() -> int:
    """Run uninterrupted, then with kills, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further options are those of main.py.",
        allow_abbrev=False,
    )
    parser.add_argument("output", type=Path, help="empty directory for both runs")
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    parser.add_argument("--kill_seed", type=int, default=0, help="seed of the random instants")
    options, main_options = parser.parse_known_args()
    for number in set(SIGNALS) - {signal.SIGKILL}:
        signal.signal(number, signal.SIG_DFL)  # the runs would ignore what this process ignores
    uninterrupted = options.output.absolute() / "uninterrupted"
    killed = options.output.absolute() / "killed"
    uninterrupted.mkdir(parents=True)
    killed.mkdir()
    main_options = main_options or tiny_recipe(options.output.absolute())
    start = time.monotonic()
    if start_run(uninterrupted, main_options).wait():
        raise SystemExit(f"the uninterrupted run failed: see {log_path(uninterrupted)}")
    duration_s = time.monotonic() - start
    print(f"uninterrupted: {duration_s:.0f} s", flush=True)
    kills, errors = kill_repeatedly(
        killed, main_options, options.kills, duration_s, options.kill_seed
    )
    if start_run(killed, main_options).wait():
        raise SystemExit(f"the run failed after {kills} kills: see {log_path(killed)}")
    errors += compare(uninterrupted, killed)
    for error in errors:
        print(f"wrong: {error}")
    print(f"{kills} kills, {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
