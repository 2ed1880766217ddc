"""A pytest plugin that records how the first test failed: on an assertion, or by another exception.

`scripts/check_faults.py` loads it with `-p faults.outcome` and reads the file that the environment
variable FAULT_OUTCOME names.
"""

import os
from pathlib import Path

import pytest

ASSERTION = "assertion"


def pytest_exception_interact(node, call, report) -> None:
    """Write `assertion`, or the exception as one line."""
    path = Path(os.environ["FAULT_OUTCOME"])
    if path.exists():
        return
    error = call.excinfo.value
    if isinstance(error, (AssertionError, pytest.fail.Exception)):
        path.write_text(ASSERTION, encoding="utf-8")
    else:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        path.write_text(line, encoding="utf-8")
