"""The list of faults fits the code: each can be put in, in one place. `scripts/check_faults.py` tries them."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_fault_can_be_put_in_and_names_tests_that_exist():
    faults = runpy.run_path(str(ROOT / "scripts" / "check_faults.py"))["FAULTS"]
    assert len(faults) >= 30 and len({fault.name for fault in faults}) == len(faults)
    for fault in faults:
        assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1, fault.name
        assert (ROOT / fault.tests.split()[0]).is_file() and fault.new != fault.old
