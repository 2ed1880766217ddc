"""Tests of the check that the packages of an option are installed."""

from importlib.machinery import ModuleSpec

import pytest

from runtime import errors


def hide_package(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make the check of installed packages miss `package`."""
    find_spec = errors.find_spec

    def find_other_spec(name: str) -> ModuleSpec | None:
        return None if name == package else find_spec(name)

    monkeypatch.setattr(errors, "find_spec", find_other_spec)
