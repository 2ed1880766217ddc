"""Tiny models in every engine, and settings that time them quickly in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.scratch import scratch_model
from encoders.start import save_model
from engines import latency
from engines.graphs import write_onnx
from engines.latency import TimingPlan
from engines.linear import new_pipeline, write_linear
from task import Task

TEXTS = [f"good people see the river {i}" for i in range(20)]
TEXTS += ["a road", "they say that we go there today"]


def save_torch_and_onnx(directory: Path) -> Path:
    """A torch checkpoint and its ONNX graph."""
    torch.manual_seed(0)
    save_model(*scratch_model("scratch:1x64", Task(("0", "1"), False), TEXTS, 64), directory)
    (directory / "onnx").mkdir()
    write_onnx(directory, directory / "onnx" / "model.onnx")
    return directory


def save_linear(directory: Path) -> Path:
    """A linear baseline."""
    pipeline = new_pipeline(multi_label=False)
    pipeline.fit(TEXTS, [i % 2 for i in range(len(TEXTS))])
    write_linear(pipeline, directory)
    return directory


def call_here(function: Callable[..., Any], *arguments: Any) -> Any:
    """The `call` of a process, in this process."""
    return function(*arguments)


@contextmanager
def processes_here(engines: set[str]) -> Iterator[dict[str, Callable[..., Any]]]:
    """In place of `engine_processes`: this process for every engine."""
    yield dict.fromkeys(engines, call_here)


def time_quickly(patch: pytest.MonkeyPatch) -> None:
    """One round of one input, in this process, without start-up."""
    plan = TimingPlan(inputs=1, passes=2, min_rounds=1, max_rounds=1)
    patch.setattr(latency, "engine_processes", processes_here)
    patch.setattr(latency, "measure_startup", lambda *_: {"load_s": 1.5, "rss_mb": 100.0})
    patch.setattr(latency, "TIMING_PLANS", {1: plan, 32: plan})
    patch.setattr(latency, "WARM_UP_S", 0)
