"""The planted faults fit the code, and `scripts/check_faults.py` tells how each of them ends."""

import shutil
from pathlib import Path

import pytest
from faults import FAULTS, Fault

from scripts.check_faults import BROKEN, CAUGHT, CRASHED, MISSED, check_faults, ignored_names

ROOT = Path(__file__).parent.parent
DIE = "__import__('os').kill(__import__('os').getpid(), 15)"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_occurs_once_and_names_tests_that_exist(fault):
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert (ROOT / fault.tests.split()[0]).is_file() and fault.new != fault.old


def test_every_fault_has_a_name_of_its_own():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 140


@pytest.fixture
def tiny_project(tmp_path):
    """A module with one sum, two tests of it, one test that fails, and a virtual environment."""
    project = tmp_path / "project"
    (project / "tests").mkdir(parents=True)
    shutil.copytree(ROOT / "tests" / "faults", project / "tests" / "faults")
    (project / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (project / "tests" / "test_adding.py").write_text(
        "from sums import add\n"
        "def test_sum(): assert add(2, 3) == 5\n"
        "def test_zero(): assert add(0, 0) == 0\n"
        "def test_unsound(): assert add(1, 1) == 3\n"
    )
    (project / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (project / "my_env").mkdir()
    (project / "my_env" / "pyvenv.cfg").touch()
    return project


def sum_fault(new: str, tests: str, raises: str = "") -> Fault:
    return Fault("a sum", "sums.py", "a + b", new, f"tests/test_adding.py -k {tests}", raises)


@pytest.mark.parametrize(
    "fault, outcome",
    [
        (sum_fault("a - b", "test_sum"), CAUGHT),
        (sum_fault("a - b", "test_zero"), MISSED),
        (sum_fault("a + c", "test_sum"), CRASHED),
        (sum_fault("a + c", "test_sum", raises="NameError"), CAUGHT),
        (sum_fault("a - b", "test_unsound"), BROKEN),
        (sum_fault("a - b", "no_such_test"), BROKEN),
        (sum_fault("a +", "test_sum"), CRASHED),
        (sum_fault(DIE, "test_sum"), CRASHED),
        (sum_fault(DIE, "test_sum", raises="SIGTERM"), CAUGHT),
    ],
    ids=[
        *("wrong value", "passes", "raises", "expected", "unsound", "no test", "syntax error"),
        *("dies", "expected to die"),
    ],
)
def test_the_outcome_of_a_planted_fault(fault, outcome, tiny_project):
    assert check_faults([fault], jobs=1, project=tiny_project) == {outcome: 1}


def test_a_copy_has_no_virtual_environment(tiny_project, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_project, copy, ignore=ignored_names)
    assert sorted(path.name for path in copy.iterdir()) == ["pyproject.toml", "sums.py", "tests"]
