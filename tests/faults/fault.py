"""One planted fault: damage to one line of the project, and the tests that must notice it."""

from typing import NamedTuple


class Fault(NamedTuple):
    """`old` occurs exactly once in `file`.

    With `new` in its place, an assertion must fail in the tests that `tests` (arguments of pytest)
    selects. If the fault makes them end with another exception, `raises` is how its line starts; if
    the process dies, it is the name of the signal.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    raises: str | tuple[str, ...] = ""  # several: any of them
