"""The processes of one run: plain `python main.py` is one, `accelerate launch` and `torchrun` start several.

All of them walk through the same code and train together; only the first writes models and results, evaluates, times
and speaks. Environment variables that
both launchers set (RANK, WORLD_SIZE) say which process this is; torch is imported where there are several.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

Result = TypeVar("Answer")

BARRIER_TIMEOUT = timedelta(days=7)  # how long the others wait while the first evaluates and times


def process_count() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_index() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    """Whether this is the process that writes and speaks."""
    return process_index() == 0


def join_processes(device: str) -> None:
    """Connect the processes, once; gloo carries what lies on the CPU, nccl what lies on GPUs."""
    import torch

    if process_count() > 1 and not torch.distributed.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=BARRIER_TIMEOUT
        )


def broadcast_from_main(ask: Callable[[], Result]) -> Result:
    """The first process's answer, in all of them; its error too."""
    if process_count() == 1:
        return ask()
    import torch

    told: list = [None, None]
    if is_main_process():
        try:
            told[0] = ask()
        except Exception as error:
            told[1] = error
    torch.distributed.broadcast_object_list(told, src=0, device=torch.device("cpu"))
    if told[1] is not None:
        raise told[1]
    return told[0]


def wait_for_everyone() -> None:
    """Return once every process has come here."""
    if process_count() > 1:
        import torch

        torch.distributed.barrier()
