"""One planted fault: damage to one line of the project, and the tests that must notice it."""

from typing import NamedTuple


class Fault(NamedTuple):
    """`old` occurs exactly once in `file`.

    With `new` in its place, the tests that `tests` (arguments of pytest) selects must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
