"""TODO."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from runtime.logs import current_level, set_up_process


def start_worker(level: int) -> None:
    """Set up the measuring process: it ends with its parent, even with one that was killed."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    set_up_process(level)


@contextmanager
def measuring_process() -> Iterator[Callable[..., Any]]:
    """`call(function, *arguments)` in one other process, started anew: it has seen no model of ours."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=spawn, initializer=start_worker, initargs=(current_level(),)
    ) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()
