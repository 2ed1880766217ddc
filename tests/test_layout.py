"""The layout that a reader relies on: the import order of modules and packages, and plain code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = (  # a module imports only from modules above it in this list, or from its own package
    {"compression_config", "task"},
    {"runtime"},
    {"losses", "metrics"},
    {"corpus", "encoders"},
    {"engines"},
    {"data", "reporting"},
    {"evaluation", "trainer"},
    {"training"},
    {"distillation", "pruning", "quantization", "export", "benchmark"},
    {"experiments"},
    {"main", "inference", "evaluate", "report"},
)
MODULES = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]
    if path.parent.name not in ("tests", "benchmarks", "scripts")
)
CODE = sorted([*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("tests/faults/*.py")])


def top_level_name(module: Path) -> str:
    """The root module or the package that a file belongs to."""
    return module.parts[0].removesuffix(".py")


def level_of(name: str) -> int:
    (level,) = [number for number, names in enumerate(LEVELS) if name in names]
    return level


def imported(module: Path) -> set[str]:
    """Our own root modules and packages that a file imports, anywhere in its text."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    ours = {top_level_name(path) for path in MODULES}
    return names & ours


def test_every_module_and_package_has_a_level():
    names = {top_level_name(module) for module in MODULES}
    assert names == set.union(*LEVELS)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_from_lower_levels(module):
    own = top_level_name(module)
    others = imported(module) - {own}
    assert {name for name in others if level_of(name) >= level_of(own)} == set()


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_no_line_over_100_characters_and_no_formatter_exception(path):
    text = path.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > 100] == []
    assert "fmt: " + "skip" not in text and "fmt: " + "off" not in text


@pytest.mark.parametrize(
    "module", ["corpus.readers", "corpus.columns", "runtime.command_line", "main", "report"]
)
def test_a_light_module_imports_no_torch(module):
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_mathematics_also_runs_as_a_script():
    command = [sys.executable, "tests/test_compression.py", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
