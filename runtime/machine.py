"""The machine that a measurement ran on, as results and model cards describe it."""

from __future__ import annotations

import os
from typing import Any

import psutil

from runtime import cpu

INSTRUCTION_SETS = (  # those that affect the speed of a model, as /proc/cpuinfo names them
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


def machine_description() -> dict[str, Any]:
    """CPU name and instruction sets, number of cores, memory (GiB), and the first GPU or None."""
    import torch

    available = cpu.instruction_sets()
    return {
        "cpu": cpu.cpu_name(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in available],
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }
