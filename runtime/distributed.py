"""The processes of one run: `python main.py` is one; `accelerate launch` and `torchrun` start
several.

All processes execute the same code and train together. Only the main process writes models and
results, evaluates, benchmarks and logs. Both launchers set RANK and WORLD_SIZE, so that a process
knows its index before torch is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

Result = TypeVar("Result")
BARRIER_TIMEOUT = timedelta(days=7)  # the others wait while the main process evaluates


def process_count() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_index() -> int:
    """The index of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    """Whether this process writes and logs."""
    return process_index() == 0


def join_processes(device: str) -> None:
    """Connect the processes once: gloo for CPU tensors, nccl for GPU tensors."""
    if process_count() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        return
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=BARRIER_TIMEOUT)


def broadcast_from_main(compute: Callable[[], Result]) -> Result:
    """Call `compute` in the main process; every process returns its result, or raises its error."""
    if process_count() == 1:
        return compute()
    import torch

    outcome: list = [None, None]  # result, error
    if is_main_process():
        try:
            outcome[0] = compute()
        except Exception as error:
            outcome[1] = error
    # accelerate's function does nothing under torchrun on CPUs: it sees no distributed state
    torch.distributed.broadcast_object_list(outcome, src=0)
    result, error = outcome
    if error is not None:
        raise error
    return result


def is_true_anywhere(value: bool) -> bool:
    """Whether `value` is True in any process; every process must call it."""
    if process_count() == 1:
        return value
    import torch

    flag = torch.tensor(int(value))
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def raise_everywhere(error: Exception | None) -> None:
    """Raise the error of the first process that has one in every process."""
    errors = [error]
    if process_count() > 1:
        import torch

        errors = [None] * process_count()
        torch.distributed.all_gather_object(errors, error)
    for one in errors:
        if one is not None:
            raise one


def wait_for_everyone() -> None:
    """Return once every process has reached this point."""
    if process_count() > 1:
        import torch

        torch.distributed.barrier()
