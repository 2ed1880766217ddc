"""Measurement that tests can afford: one shared process, each format timed once, none started in
a fresh one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from engines import latency
from experiments import experiment


@contextmanager
def quick_measuring(call: Callable[..., Any]) -> Iterator[None]:
    """Runs of the block use the process behind `call` for all measuring."""
    plans = {
        batch: plan._replace(min_rounds=1, max_rounds=1)
        for batch, plan in latency.TIMING_PLANS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "measuring_process", lambda: nullcontext(call))
        patch.setattr(
            latency,
            "engine_processes",
            lambda engines: nullcontext(dict.fromkeys(engines, call)),
        )
        patch.setattr(latency, "measure_startup", lambda *_: {"load_s": 1.0, "rss_mb": 1.0})
        patch.setattr(latency, "TIMING_PLANS", plans)
        patch.setattr(latency, "MAX_BEST_WAIT", 1e9)  # the machine that runs the tests may be busy
        yield
