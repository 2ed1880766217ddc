"""The CPU as the system describes it; nothing where it does not say."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_fields() -> dict[str, str]:
    """What Linux tells of the first core."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)
    }


def cpu_name() -> str:
    """The CPU's name, as far as it is known."""
    return cpu_fields().get("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """What it can do, in the system's words."""
    found = cpu_fields()
    return (found.get("flags") or found.get("Features", "")).split()
