"""One planted fault: damage to one line of the project, and the tests that must notice it."""

from typing import NamedTuple


class Fault(NamedTuple):
    """`old` occurs exactly once in `file`; with `new` in its place, `tests` (arguments of pytest) must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str
