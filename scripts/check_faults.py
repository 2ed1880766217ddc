"""Plant faults into copies of the project, one at a time, and check that its tests fail.

The faults are listed in tests/faults/. Before a fault is planted, its tests must pass in the sound
copy. Prints one line per fault:

- `caught`: an assertion failed;
- `CRASHED`: the tests ended with another exception, which the fault does not expect;
- `MISSED`: the tests passed;
- `BROKEN`: its tests fail without the fault, or select no test.

The exit code is 1 unless every fault is caught. `python scripts/check_faults.py [WORD] [--jobs N]
[--sample N]` tries those whose name, file or tests contain WORD.
"""

import argparse
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from faults import FAULTS, Fault  # noqa: E402
from faults.outcome import ASSERTION  # noqa: E402

CAUGHT, CRASHED, MISSED, BROKEN = "caught", "CRASHED", "MISSED", "BROKEN"

TESTS_PASSED, TESTS_FAILED, NO_TEST_SELECTED = 0, 1, 5  # exit codes of pytest

IGNORED_PATTERNS = (".git", "models", "compressed_models", "__pycache__", ".*_cache", ".hypothesis")


def ignored_names(directory: str, names: list[str]) -> set[str]:
    """The entries of a directory that are not copied: outputs, caches, virtual environments."""
    ignored = shutil.ignore_patterns(*IGNORED_PATTERNS)(directory, names)
    for name in names:
        if (Path(directory) / name / "pyvenv.cfg").is_file():
            ignored.add(name)
    return ignored


def run_tests(copy: Path, selection: str) -> tuple[int, str]:
    """The exit code of pytest, and how the first test failed, or the signal that ended it ("" if
    all passed)."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-p", "faults.outcome", *shlex.split(selection)]
    with tempfile.TemporaryDirectory() as directory:
        outcome = Path(directory) / "outcome"
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(copy / "tests"),
            "PYTHONDONTWRITEBYTECODE": "1",  # a fault of the same length and second is recompiled
            "FAULT_OUTCOME": str(outcome),
        }
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True)
        if outcome.exists():
            return done.returncode, outcome.read_text(encoding="utf-8")
    if done.returncode < 0:
        return done.returncode, signal.Signals(-done.returncode).name
    return done.returncode, ""


def check_sound(copy: Path, selection: str) -> str:
    """Why a selection cannot notice a fault in the sound copy; "" if it passes there."""
    exit_code, failure = run_tests(copy, selection)
    if exit_code == TESTS_PASSED:
        return ""
    if exit_code == NO_TEST_SELECTED:
        return f"no test is selected by {selection}"
    return f"{selection} fails without the fault: {failure or f'exit code {exit_code}'}"


def plant(fault: Fault, copy: Path) -> tuple[str, str]:
    """The outcome of a fault in `copy`, and an explanation; the copy is restored."""
    path = copy / fault.file
    original = path.read_text(encoding="utf-8")
    count = original.count(fault.old)
    if count != 1:
        return BROKEN, f"occurs {count} times in {fault.file}: {fault.old}"
    path.write_text(original.replace(fault.old, fault.new), encoding="utf-8")
    try:
        exit_code, failure = run_tests(copy, fault.tests)
    finally:
        path.write_text(original, encoding="utf-8")
    if exit_code == TESTS_PASSED:
        return MISSED, f"{fault.tests} passed"
    if exit_code != TESTS_FAILED and not failure:
        return BROKEN, f"pytest could not run {fault.tests}: exit code {exit_code}"
    if failure == ASSERTION or fault.raises and failure.startswith(fault.raises):
        return CAUGHT, ""
    return CRASHED, failure


def report(fault: Fault, outcome: str, explanation: str) -> str:
    """Print the line of a fault; returns the outcome."""
    line = f"{outcome:8}{fault.name}"
    print(f"{line}: {explanation}" if explanation else line, flush=True)
    return outcome


def check_selection(faults: list[Fault], copies: Queue) -> list[str]:
    """The outcomes of faults with the same tests: first the sound copy, then each fault."""
    copy = copies.get()
    try:
        reason = check_sound(copy, faults[0].tests)
        if reason:
            return [report(fault, BROKEN, reason) for fault in faults]
        return [report(fault, *plant(fault, copy)) for fault in faults]
    finally:
        copies.put(copy)


def check_faults(faults: list[Fault], jobs: int, project: Path = ROOT) -> Counter[str]:
    """Try the faults in `jobs` copies of a project; returns the number of each outcome."""
    selections: dict[str, list[Fault]] = {}
    for fault in faults:
        selections.setdefault(fault.tests, []).append(fault)
    with tempfile.TemporaryDirectory() as directory:
        copies: Queue[Path] = Queue()
        for number in range(jobs):
            copy = Path(directory) / f"project{number}"
            shutil.copytree(project, copy, ignore=ignored_names)
            copies.put(copy)
        with ThreadPoolExecutor(jobs) as pool:
            outcomes = pool.map(check_selection, selections.values(), repeat(copies))
            return Counter(chain.from_iterable(outcomes))


def main() -> int:
    """Try every fault that the command line selects."""
    parser = argparse.ArgumentParser(description="Check that the tests notice planted faults.")
    parser.add_argument("word", nargs="?", default="", help="part of a fault's name, file or tests")
    parser.add_argument("--jobs", type=int, default=1, help="faults to try at once (default: 1)")
    parser.add_argument("--sample", type=int, help="try this many, drawn at random")
    parser.add_argument("--seed", type=int, help="of the sample (default: a new one)")
    options = parser.parse_args()
    selected = []
    for fault in FAULTS:
        if options.word in f"{fault.name} {fault.file} {fault.tests}":
            selected.append(fault)
    if options.sample is not None and options.sample < len(selected):
        seed = options.seed if options.seed is not None else time.time_ns() % 10**6
        print(f"{options.sample} of {len(selected)} faults, --seed {seed}", flush=True)
        selected = random.Random(seed).sample(selected, options.sample)
    outcomes = check_faults(selected, options.jobs)
    others = [f", {outcomes[kind]} {kind}" for kind in (CRASHED, MISSED, BROKEN) if outcomes[kind]]
    print(f"{outcomes[CAUGHT]} of {len(selected)} faults caught{''.join(others)}")
    return 0 if selected and outcomes[CAUGHT] == len(selected) else 1


if __name__ == "__main__":
    sys.exit(main())
