"""A fresh process that measures models: it has not trained or loaded any of them before."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from runtime.logs import current_level, set_up_process
from runtime.terminal import blocked_terminal_signals


def exit_with_parent() -> None:
    """Wait for the parent process to end, even if it is killed, then exit."""
    multiprocessing.parent_process().join()
    os._exit(1)


def start_worker(level: int) -> None:
    """Set up the measuring process; it ends together with its parent."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    set_up_process(level)


@contextmanager
def measuring_process() -> Iterator[Callable[..., Any]]:
    """`call(function, *arguments)`, which runs in another, freshly started process."""
    pool = ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(current_level(),),
    )

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        with blocked_terminal_signals():  # the first call starts the process
            future = pool.submit(function, *arguments)
        return future.result()

    with pool:
        yield call
