"""Kill a run again and again, each time followed by the same command, and compare it with one never killed.

`python scripts/check_kills.py OUTPUT [--kills 20] [options of main.py]`. The undisturbed run comes first; its length
sets the moments, and every third kill waits for the next file of weights to be opened for writing. Quality,
agreement, sparsity, parameters and bytes must be equal to the last digit, and no partial folder may be left. Prints
one line a kill; the exit code is 1 where something differs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(output: Path, words: list[str]) -> subprocess.Popen:
    """The command, in a process group of its own."""
    command = [
        sys.executable,
        ROOT / "main.py",
        "--output_dir",
        output,
        "--experiment",
        "killed",
        *words,
    ]
    log = (output.parent / f"{output.name}.log").open("a")
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)


def newest_partial(output: Path) -> str:
    """What was being written: the partial folder and its newest file."""
    files = [path for path in output.rglob("*") if ".partial" in str(path) and path.is_file()]
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    return str(newest.relative_to(output)) if newest else "nothing half-written"


def files_being_made(output: Path) -> set[Path]:
    """The files of weights and optimizer states in partial folders."""
    return {
        path
        for path in output.rglob("*")
        if ".partial" in str(path) and path.suffix in (".safetensors", ".pt")
    }


def kill_after(output: Path, words: list[str], seconds: float, while_writing: bool) -> bool:
    """Start the command and kill it with SIGKILL after `seconds`, or then at the first file of weights that appears;
    False where it had ended before."""
    process = start(output, words)
    try:
        process.wait(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        before = files_being_made(output)
        while while_writing and process.poll() is None and not files_being_made(output) - before:
            time.sleep(0.001)
    if process.poll() is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)  # the main process alone: its worker must end by itself
    process.wait()
    how = "at a write after" if while_writing else "after"
    print(f"killed {how} {seconds:5.1f} s: {newest_partial(output)}", flush=True)
    return True


def figures(output: Path) -> dict[str, dict]:
    """Form -> all that was measured of it but times."""
    return {
        path.stem: json.loads(path.read_text())["metrics"]
        for path in (output / "models" / "killed" / "predictions").glob("*.json")
    }


def main() -> int:
    """Run undisturbed, then kill and repeat."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="empty folder for both runs")
    parser.add_argument("--kills", type=int, default=20, help="how often to kill")
    args, words = parser.parse_known_args()
    calm, killed = args.output.absolute() / "calm", args.output.absolute() / "killed"
    calm.mkdir(parents=True)
    killed.mkdir()
    began = time.monotonic()
    if start(calm, words).wait():
        raise SystemExit(f"the undisturbed run failed: see {calm}.log")
    whole = time.monotonic() - began
    print(f"undisturbed: {whole:.0f} s", flush=True)
    kills = turn = 0
    while (
        kills < args.kills and turn < 2 * args.kills
    ):  # a run that had ended before its moment counts for nothing
        spread = (turn * 7) % args.kills / args.kills  # in a scattered order; 10 s are start-up
        kills += kill_after(
            killed, words, 10 + whole * (0.02 + 0.06 * spread), while_writing=turn % 3 == 2
        )
        turn += 1
    if start(killed, words).wait():
        raise SystemExit(f"the run failed after {kills} kills: see {killed}.log")
    equal, left = figures(calm) == figures(killed) != {}, list(killed.rglob("*.partial"))
    print(
        f"{kills} kills; figures {'equal' if equal else 'DIFFER'}; partial folders left: {len(left)}"
    )
    return 0 if equal and not left else 1


if __name__ == "__main__":
    sys.exit(main())
