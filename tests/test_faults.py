"""The planted faults fit the code: each can be planted in one place. `scripts/check_faults.py`
tries them."""

from pathlib import Path

import pytest
from faults import FAULTS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_occurs_once_and_names_tests_that_exist(fault):
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert (ROOT / fault.tests.split()[0]).is_file() and fault.new != fault.old


def test_every_fault_has_a_name_of_its_own():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 140
