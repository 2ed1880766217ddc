"""Errors that a user can correct, and checks of the installed packages. No torch."""

import sys
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

JOINERS = "\u200c\u200d"  # not printable, but part of words in several scripts

MINIMUM_VERSIONS = {"torch": (2, 6), "transformers": (5, 0)}


class UserError(Exception):
    """An error that the user can correct; each of `lines` names the flag or file, the value and
    the rule."""

    def __init__(self, *lines: str):
        self.lines = tuple(escape_unprintable(line) for line in lines)
        super().__init__("\n".join(self.lines))

    def print_to_stderr(self, program: str) -> int:
        """Print the lines to stderr and return the exit code."""
        for line in self.lines:
            print(f"{program}: error: {line}", file=sys.stderr)
        return 2


def escape_unprintable(text: str, keep: str = "") -> str:
    """The text with unprintable characters as escapes, such as `\\x1b`, for every output that
    people read.

    Those are control characters, characters that reorder the text around them, and lone
    surrogates. Zero-width joiners and the characters in `keep` are kept.
    """
    characters = []
    for char in text:
        is_kept = char.isprintable() or char in JOINERS or char in keep
        characters.append(char if is_kept else repr(char)[1:-1])
    return "".join(characters)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class ErrorCollector:
    """Collects the UserErrors of several checks: `with errors: check()`, then
    `errors.raise_if_any()`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> bool:
        if not isinstance(error, UserError):
            return False
        self.lines += error.lines
        return True

    def raise_if_any(self) -> None:
        """Raise UserError with every line that was collected, each once."""
        if self.lines:
            raise UserError(*dict.fromkeys(self.lines))


def check_installed(flag: str, value: str, packages: Iterable[str]) -> None:
    """Raise UserError if a package that the value of `flag` needs is not installed."""
    missing = [package for package in dict.fromkeys(packages) if find_spec(package) is None]
    if missing:
        raise UserError(
            f"{flag} is {value}, but needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def check_versions() -> None:
    """Raise UserError if a library is older than this code supports."""
    lines = []
    for name, minimum in MINIMUM_VERSIONS.items():
        installed = version(name)
        if tuple(int(part) for part in installed.split(".")[:2]) < minimum:
            needed = ".".join(map(str, minimum))
            lines.append(
                f"{name} is {installed}, but must be at least {needed}: "
                "pip install -r requirements.txt"
            )
    if lines:
        raise UserError(*lines)
