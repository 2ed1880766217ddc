"""Kill a run repeatedly, resume it each time, and compare it with an uninterrupted run.

`python scripts/check_kills.py OUTPUT [--kills 20] [options of main.py]`. The uninterrupted run
comes first; its duration determines when the other run is killed. Every third kill waits until a
weight file is opened for writing. Quality, agreement, sparsity, parameters and bytes must be
identical, and no partial directory may remain. Prints one line per kill; the exit code is 1 if
something differs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = "killed"
START_UP_S = 10  # of Python and its libraries
FIRST_KILL = 0.02  # fractions of the uninterrupted run, after the start-up
LAST_KILL = 0.08
WRITE_EVERY = 3  # every third kill waits for a weight file
WEIGHT_SUFFIXES = (".safetensors", ".pt")


def start_run(output: Path, main_options: list[str]) -> subprocess.Popen:
    """Start main.py in its own process group."""
    command = [sys.executable, ROOT / "main.py", "--output_dir", output]
    command += ["--experiment", EXPERIMENT, *main_options]
    with (output.parent / f"{output.name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)


def partial_files(output: Path) -> list[Path]:
    """The files in partial directories."""
    files = output.rglob("*")
    return [path for path in files if ".partial" in str(path) and path.is_file()]


def newest_partial(output: Path) -> str:
    """The newest file in a partial directory: the one that was being written."""
    newest = max(partial_files(output), key=lambda path: path.stat().st_mtime, default=None)
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
        time.sleep(0.001)


def kill_after(
    output: Path, main_options: list[str], seconds: float, *, while_writing: bool
) -> bool:
    """Start the run and kill it with SIGKILL after `seconds`; False if it ends before.

    With `while_writing`, the kill waits for the next weight file after that time.
    """
    process = start_run(output, main_options)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        if while_writing:
            wait_for_write(process, output)
    if process.poll() is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)  # only the main process: its worker must end by itself
    process.wait()
    when = "at a write after" if while_writing else "after"
    print(f"killed {when} {seconds:5.1f} s: {newest_partial(output)}", flush=True)
    return True


def read_metrics(output: Path) -> dict[str, dict[str, Any]]:
    """Format -> all metrics except times."""
    predictions = output / "models" / EXPERIMENT / "predictions"
    metrics = {}
    for path in predictions.glob("*.json"):
        metrics[path.stem] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return metrics


def kill_repeatedly(
    output: Path, main_options: list[str], max_kills: int, duration_s: float
) -> int:
    """Kill and restart the run up to `max_kills` times; returns the number of kills.

    A run that ends before its kill does not count; the number of attempts is limited.
    """
    kills = 0
    for attempt in range(2 * max_kills):
        if kills == max_kills:
            break
        position = (attempt * 7) % max_kills / max_kills  # [0, 1), in a scattered order
        fraction = FIRST_KILL + (LAST_KILL - FIRST_KILL) * position
        while_writing = attempt % WRITE_EVERY == WRITE_EVERY - 1
        seconds = START_UP_S + duration_s * fraction
        if kill_after(output, main_options, seconds, while_writing=while_writing):
            kills += 1
    return kills


def main() -> int:
    """Run uninterrupted, then with kills, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further options are those of main.py.",
        allow_abbrev=False,
    )
    parser.add_argument("output", type=Path, help="empty directory for both runs")
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    options, main_options = parser.parse_known_args()
    uninterrupted = options.output.absolute() / "uninterrupted"
    killed = options.output.absolute() / "killed"
    uninterrupted.mkdir(parents=True)
    killed.mkdir()
    start = time.monotonic()
    if start_run(uninterrupted, main_options).wait():
        raise SystemExit(f"the uninterrupted run failed: see {uninterrupted}.log")
    duration_s = time.monotonic() - start
    print(f"uninterrupted: {duration_s:.0f} s", flush=True)
    kills = kill_repeatedly(killed, main_options, options.kills, duration_s)
    if start_run(killed, main_options).wait():
        raise SystemExit(f"the run failed after {kills} kills: see {killed}.log")
    metrics = read_metrics(uninterrupted)
    is_equal = bool(metrics) and metrics == read_metrics(killed)
    partial_directories = list(killed.rglob("*.partial"))
    print(
        f"{kills} kills; metrics {'equal' if is_equal else 'DIFFER'}; "
        f"partial directories: {len(partial_directories)}"
    )
    return 0 if is_equal and not partial_directories else 1


if __name__ == "__main__":
    sys.exit(main())
