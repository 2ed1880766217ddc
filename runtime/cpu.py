"""The CPU as the operating system describes it, and how long this process waited for it."""

import os
import platform
from contextlib import suppress
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


def own_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def core_wait_s() -> float:
    """Seconds that threads of this process have been ready to run without a core; 0 except on
    Linux."""
    if not os.path.isdir("/proc/self/task"):
        return 0.0
    waited_ns = 0
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError), open(f"/proc/self/task/{thread}/schedstat", "rb") as file:
            waited_ns += int(file.read().split()[1])  # OSError: the thread has just ended
    return waited_ns / 1e9
