"""Plant faults into copies of the project, one at a time, and check that its tests fail.

The faults are listed in tests/faults/. Prints `caught` or `MISSED` for each; the exit code is 1 if
one is missed. `python scripts/check_faults.py [WORD] [--jobs N]` tries those whose name or file
contains WORD.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from faults import FAULTS, Fault  # noqa: E402

IGNORED = shutil.ignore_patterns(
    ".git", "models", "compressed_models", "__pycache__", ".*_cache", ".hypothesis"
)


def is_caught(fault: Fault, copy: Path) -> bool:
    """Whether the fault's tests fail in `copy` with the fault planted; the copy is restored."""
    path = copy / fault.file
    original = path.read_text(encoding="utf-8")
    count = original.count(fault.old)
    if count != 1:
        raise SystemExit(f"{fault.name}: occurs {count} times in {fault.file}: {fault.old}")
    path.write_text(original.replace(fault.old, fault.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *shlex.split(fault.tests)],
        cwd=copy,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    path.write_text(original, encoding="utf-8")
    if done.returncode not in (0, 1):  # neither passed nor failed: no test was run
        print(f"{fault.name}: pytest could not run {fault.tests}\n{done.stdout[-500:]}", flush=True)
    return done.returncode == 1


def check_faults(faults: list[Fault], jobs: int) -> int:
    """Try the faults in `jobs` copies of the project; returns the number missed."""
    missed = 0
    with tempfile.TemporaryDirectory() as directory:
        copies: Queue[Path] = Queue()
        for number in range(jobs):
            copy = Path(directory) / f"project{number}"
            shutil.copytree(ROOT, copy, ignore=IGNORED)
            copies.put(copy)

        def check(fault: Fault) -> bool:
            copy = copies.get()
            try:
                return is_caught(fault, copy)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            for fault, caught in zip(faults, pool.map(check, faults), strict=True):
                missed += not caught
                print(f"{'caught' if caught else 'MISSED'}  {fault.name}", flush=True)
    print(f"{len(faults) - missed} of {len(faults)} faults caught")
    return missed


def main() -> int:
    """Try every fault that the command line selects."""
    parser = argparse.ArgumentParser(description="Check that the tests notice planted faults.")
    parser.add_argument("word", nargs="?", default="", help="part of a fault's name or file")
    parser.add_argument("--jobs", type=int, default=1, help="faults to try at once (default: 1)")
    options = parser.parse_args()
    selected = [fault for fault in FAULTS if options.word in f"{fault.name} {fault.file}"]
    return 1 if check_faults(selected, options.jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
