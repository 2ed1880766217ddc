"""Planted faults: typical mistakes, each with the tests that must notice it.

`scripts/check_faults.py` plants them one at a time.
"""

from faults import (
    data,
    encoders,
    engines,
    experiments,
    loading,
    readers,
    reporting,
    scripts,
    sharing,
    training,
)
from faults.fault import Fault

AREAS = (
    data,
    readers,
    encoders,
    loading,
    training,
    engines,
    reporting,
    experiments,
    scripts,
    sharing,
)
FAULTS: tuple[Fault, ...] = tuple(fault for area in AREAS for fault in area.FAULTS)
