"""Tests of the check that the packages of an option are installed."""

from importlib.machinery import ModuleSpec

import pytest

import compression_config


def hide_package(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make the check of installed packages miss `package`."""
    find_spec = compression_config.find_spec

    def find_other_spec(name: str) -> ModuleSpec | None:
        return None if name == package else find_spec(name)

    monkeypatch.setattr(compression_config, "find_spec", find_other_spec)
