"""The CPU as the operating system describes it."""

import platform
from pathlib import Path


def cpu_fields() -> dict[str, str]:
    """The entries of /proc/cpuinfo for the first core; empty on other systems."""
    try:
        first_core = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    entries = {}
    for line in first_core.splitlines():
        name, _, value = line.partition(":")
        entries[name.strip()] = value.strip()
    return entries


def cpu_name() -> str:
    """The model name of the CPU, or its architecture if unknown."""
    return cpu_fields().get("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Instruction sets as the kernel names them, such as `avx512_vnni`; empty if unknown."""
    entries = cpu_fields()
    return (entries.get("flags") or entries.get("Features", "")).split()
