"""The house rules a reader relies on: import order, short functions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = {
    "ranks": 0,
    "compression_config": 0,
    "uncertainty": 0,
    "augmentation": 0,
    "processor": 0,
    "dropout": 0,
    "plots": 0,
    "console": 1,
    "encoders": 1,
    "vocabulary": 1,
    "losses": 1,
    "masks": 1,
    "artifacts": 1,
    "tables": 1,
    "page": 1,
    "labelled": 2,
    "report": 2,
    "calibration": 2,
    "engines": 2,
    "layouts": 2,
    "data": 3,
    "rounding": 3,
    "weights": 3,
    "card": 3,
    "selection": 3,
    "scoring": 3,
    "audit": 4,
    "evaluation": 4,
    "graphs": 4,
    "training": 5,
    "benchmark": 5,
    "gate": 5,
    "inference": 5,
    "structure": 6,
    "distillation": 6,
    "pruning": 6,
    "qat": 6,
    "quantization": 6,
    "threshold": 6,
    "export": 6,
    "stages": 7,
    "experiment": 8,
    "ablation": 9,
    "main": 10,
}
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))


def imported(module: str) -> set[str]:
    """Our own modules that `module` imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found & set(MODULES)


def test_every_module_has_a_level():
    assert set(MODULES) == set(LEVELS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_levels(module):
    assert {name for name in imported(module) if LEVELS[name] >= LEVELS[module]} == set()


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_longer_than_40_lines(module):
    tree = ast.parse((ROOT / f"{module}.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno + 1 > 40] == []


@pytest.mark.slow
def test_the_mathematics_also_runs_as_a_script():
    command = [sys.executable, "tests/test_compression.py", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
