"""Timing on tiny models: what is timed, in which order, with how many threads, and when to trust
it."""

import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from timed_bursts import timed_burst, timed_pass
from timed_models import TEXTS, save_linear, save_torch_and_onnx, time_quickly

from engines import latency, startup
from engines.engine import Engine, ModelFormat, load_engine
from engines.latency import (
    Burst,
    Pass,
    is_steady,
    measure,
    prepare_format,
    time_interleaved,
    timing_metrics,
)
from runtime.machine import INSTRUCTION_SETS, machine_description

ANSWER = np.zeros((1, 2), dtype=np.float32)


@pytest.fixture(scope="module")
def torch_and_onnx(tmp_path_factory) -> Path:
    """A directory with a torch checkpoint and its ONNX graph."""
    return save_torch_and_onnx(tmp_path_factory.mktemp("torch_and_onnx"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory) -> Path:
    """A directory with a linear baseline."""
    return save_linear(tmp_path_factory.mktemp("linear"))


@pytest.fixture
def quick_timing(monkeypatch):
    """One round of one input, in this process, without start-up; torch gets its one thread back."""
    time_quickly(monkeypatch)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("budget_s, rounds", [(0, 3), (1000, 12)])
def test_every_round_visits_every_format_once_with_the_same_inputs(monkeypatch, budget_s, rounds):
    monkeypatch.setattr(latency, "BUDGET_S", budget_s)
    visited = []

    def call(function, name: str, kind: str, turn: int) -> Burst:
        assert (function, kind) == (latency.time_burst, "latency_ms_p50")
        visited.append((name, turn))
        return timed_burst([len(visited)])

    names = ["teacher", "student", "int8"]
    bursts = time_interleaved(dict.fromkeys(names, call), "latency_ms_p50")
    assert visited == [(name, turn) for turn, name in itertools.product(range(rounds), names)]
    of_student = [burst.seconds for burst in bursts["student"]]
    assert of_student == [[[3 * turn + 2]] for turn in range(rounds)]


def test_timing_metrics_by_hand():
    bursts = {
        "latency_ms_p50": [
            timed_burst(
                [0.010, 0.012, 0.014], [0.020, 0.020, 0.026], elapsed_s=0.2, core_wait_s=0.02
            ),
            timed_burst([0.030, 0.033, 0.036], elapsed_s=0.1),
        ],
        "throughput": [timed_burst([0.5, 0.3], elapsed_s=1.7, core_wait_s=0.06)],
    }
    row = timing_metrics(bursts, threads=1)
    assert (row["latency_ms_p50"], row["latency_ms_min"]) == pytest.approx((20, 10))
    assert row["latency_ms_p95"] == pytest.approx(33 + 0.6 * 3)
    assert row["throughput"] == pytest.approx(32 / 0.3)
    assert row["spread"] == pytest.approx(1.1)
    assert row["core_wait"] == pytest.approx(0.08 / 2)
    assert row["steady"]
    assert row["tokenize_ms"] is row["latency_ms_p50_len32"] is row["throughput_len128"] is None


@pytest.mark.parametrize(
    "spread, core_wait, other_load, steady",
    [
        (1.0, 0.0, 0.0, True),
        (1.06, 0.014, 0.03, True),
        (1.6, 0.0, 0.0, False),
        (1.01, 0.3, 0.0, False),
        (1.0, 1.0, 0.0, False),
        (1.0, 0.0, 0.5, False),
    ],
)
def test_times_are_steady_if_passes_take_equally_long_and_no_core_is_shared(
    spread, core_wait, other_load, steady
):
    assert is_steady(spread, core_wait, other_load) is steady


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_inputs_of_a_fixed_length_have_exactly_that_many_tokens(torch_and_onnx, engine):
    kinds = prepare_format("name", torch_and_onnx, engine, TEXTS, 64, 1, "cpu")
    missing = set(latency.INPUT_KINDS) - set(kinds)
    assert missing == {"latency_ms_p50_len128", "throughput_len128"}
    separator = load_engine(torch_and_onnx, engine, 64, 1).encode(["a"])["input_ids"][0, -1]
    for kind, shape in (("latency_ms_p50_len32", (1, 32)), ("throughput_len32", (32, 32))):
        call = latency.TIMED_CALLS["name"][kind][0]
        (batch,) = call.args
        ids = batch["input_ids"]
        assert tuple(ids.shape) == shape and batch["attention_mask"].all()
        assert (ids[:, -1] == separator).all() and (ids[:, 1:-1] != separator).all()
        assert call().shape == (shape[0], 2)


def test_tokenization_is_timed_separately(monkeypatch):
    done = []

    def collate(texts):
        done.append("encode")
        return {"input_ids": np.ones((len(texts), 99))}

    def forward(batch):
        done.append("forward")
        return ANSWER

    monkeypatch.setattr(latency, "load_engine", lambda *_: Engine(list, collate, forward))
    prepare_format("name", Path(), "onnx", TEXTS, 99, 1, "cpu")
    assert set(done) == {"encode"}
    for kind, only in (
        ("latency_ms_p50", "forward"),
        ("throughput_len32", "forward"),
        ("tokenize_ms", "encode"),
    ):
        done.clear()
        latency.time_burst("name", kind, 0)
        assert set(done) == {only}


def test_a_burst_times_each_input_after_a_pass_that_is_not_timed(monkeypatch):
    engine = Engine(list, list, lambda texts: ANSWER)
    seen = []

    def count_calls(call) -> Pass:
        seen.append(call.args[0])
        return timed_pass(float(len(seen)))

    monkeypatch.setattr(latency, "load_engine", lambda *_: engine)
    monkeypatch.setattr(latency, "warm_up", lambda call: None)
    monkeypatch.setattr(latency, "time_pass", count_calls)
    prepare_format("name", Path(), "linear", [str(i) for i in range(60)], 64, 1, "cpu")
    burst = latency.time_burst("name", "latency_ms_p50", 1)
    inputs = ["5"] * 5 + ["6"] * 5 + ["7"] * 5 + ["8"] * 5 + ["9"] * 5
    assert seen == [[text] for text in inputs]
    assert burst.seconds == [
        [2.0, 3.0, 4.0, 5.0],
        [7.0, 8.0, 9.0, 10.0],
        [12.0, 13.0, 14.0, 15.0],
        [17.0, 18.0, 19.0, 20.0],
        [22.0, 23.0, 24.0, 25.0],
    ]


def test_threads_are_fixed_in_the_engines(torch_and_onnx, quick_timing, monkeypatch):
    kinds = {"latency_ms_p50": latency.INPUT_KINDS["latency_ms_p50"]}
    monkeypatch.setattr(latency, "INPUT_KINDS", kinds)

    def measure_with(engine: str, threads: int) -> dict:
        model_format = ModelFormat("name", torch_and_onnx, engine)
        rows = measure([model_format], TEXTS, 32, "cpu", seed=0, threads=threads, kinds=kinds)
        return rows["name"]

    assert measure_with("torch", 2)["threads"] == 2 and torch.get_num_threads() == 2
    measure_with("onnx", 1)
    before = psutil.Process().num_threads()
    measure_with("onnx", 3)
    assert psutil.Process().num_threads() == before + 2


def test_a_fresh_process_gets_the_same_threads_and_reports_its_first_answer(monkeypatch, capsys):
    loaded = []
    clock = iter([5.0, 6.0])
    engine = Engine(list, list, lambda texts: ANSWER)

    def fake_load(*arguments):
        loaded.extend(arguments)
        return engine

    task = ["a/path", "onnx", 64, 3, "cpu", ["one", "two"]]
    monkeypatch.setattr(startup, "load_engine", fake_load)
    monkeypatch.setattr(startup.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(task)))
    startup.answer_in_fresh_process()
    assert loaded == ["a/path", "onnx", 64, 3, "cpu"]
    report = json.loads(capsys.readouterr().out)
    assert report["first_answer_s"] == 5.0 and report["rss_mb"] > 10


def test_the_machine_is_described():
    description = machine_description()
    assert list(description) == ["cpu", "instruction_sets", "cores", "memory_gb", "gpu"]
    assert description["cpu"] and description["cores"] >= 1 and description["memory_gb"] > 0
    assert set(description["instruction_sets"]) <= set(INSTRUCTION_SETS)


def test_formats_are_timed_and_started_in_other_processes(linear, monkeypatch):
    monkeypatch.setattr(latency, "BUDGET_S", 0)
    latency.TIMED_CALLS.clear()
    formats = [ModelFormat("linear", linear, "linear"), ModelFormat("again", linear, "linear")]
    rows = measure(formats, TEXTS, 64, "cpu", 0, threads=1)
    assert latency.TIMED_CALLS == {}
    assert list(rows) == ["linear", "again"]
    for row in rows.values():
        assert 0 < row["latency_ms_min"] <= row["latency_ms_p50"] <= row["latency_ms_p95"]
        assert row["load_s"] > 0.1 and row["rss_mb"] > 10
        assert row["throughput"] > 0 and row["spread"] >= 1
        assert row["tokenize_ms"] is row["latency_ms_p50_len32"] is row["throughput_len128"] is None


@pytest.mark.slow
def test_all_engines_are_timed_together(torch_and_onnx, linear):
    formats = [
        ModelFormat("torch", torch_and_onnx, "torch"),
        ModelFormat("onnx", torch_and_onnx, "onnx"),
        ModelFormat("linear", linear, "linear"),
    ]
    rows = measure(formats, TEXTS, 64, "cpu", 0, threads=1)
    assert list(rows) == ["torch", "onnx", "linear"]
    assert len({tuple(row) for row in rows.values()}) == 1
    assert rows["torch"]["rss_mb"] > rows["linear"]["rss_mb"]
    assert rows["onnx"]["latency_ms_p50_len32"] > 0 and rows["onnx"]["throughput_len128"] is None
