"""Speedups on a busy machine: the statistic is fair to long and short passes, other work is
noticed, and a ratio that cannot be trusted is not given. All times are made up."""

import statistics
from types import SimpleNamespace

import numpy as np
import pytest
from result_builders import result_row
from timed_bursts import timed_burst, timed_pass

from engines import latency
from engines.latency import Burst, add_speedups, seconds_by_input, speedup, timing_metrics
from reporting import results
from reporting.run_page import check_complete
from runtime import cpu

KIND = "latency_ms_p50"
LONG_S = 0.050  # a pass of the large model on a quiet machine
SHORT_S = 0.002


def interrupted(seconds: float, slices: int) -> latency.Pass:
    """A pass from which another process took the core `slices` times, for 3 ms each."""
    return timed_pass(seconds + 0.003 * slices, wait_s=0.003 * slices)


def burst_of(passes: list[latency.Pass]) -> Burst:
    """A burst with these passes over one input."""
    waited_s = sum(one.wait_s for one in passes)
    return Burst([passes], sum(one.seconds for one in passes), waited_s, other_s=waited_s)


def old_ratio(long: list[Burst], short: list[Burst]) -> float:
    """The ratio of medians over all passes."""
    medians = [statistics.median(np.concatenate(seconds_by_input(one))) for one in (long, short)]
    return float(medians[0] / medians[1])


def test_the_time_of_an_input_is_its_fastest_pass():
    """Fastest passes 1, 2 and 9 ms; the median over all passes would be 6."""
    bursts = [timed_burst([0.001, 0.006, 0.007], [0.008, 0.002]), timed_burst([0.009, 0.010])]
    row = timing_metrics({KIND: bursts}, 1)
    assert row[KIND] == pytest.approx(2.0) and row["latency_ms_cpu"] == pytest.approx(2.0)
    assert (row["best_wait"], row["other_load"], row["steady"]) == (0.0, 0.0, False)


def test_passes_that_are_sometimes_interrupted_do_not_move_the_speedup():
    """Three of four long passes lose 16 slices, most short ones none: 49x by medians, not 25x."""
    long = [burst_of([interrupted(LONG_S, n) for n in (16, 0, 16, 16)]) for _ in range(3)]
    short = [burst_of([interrupted(SHORT_S, n) for n in (0, 0, 1, 0)]) for _ in range(3)]
    assert old_ratio(long, short) == pytest.approx(49)
    rows = [timing_metrics({KIND: one}, 1) for one in (long, short)]
    assert speedup(*rows) == pytest.approx(25)
    assert not rows[0]["steady"]


@pytest.mark.parametrize("slices, expected", [(0, 25.0), (1, 26.5), (2, None), (16, None)])
def test_a_speedup_is_withheld_if_even_the_fastest_passes_were_interrupted(slices, expected):
    """Two slices of 3 ms are 6 / 56 = 0.107 of the pass; 0.1 is allowed, which moves a ratio by
    at most 1 / 0.9 = 1.11."""
    long = timing_metrics({KIND: [burst_of([interrupted(LONG_S, slices)] * 4)]}, 1)
    short = timing_metrics({KIND: [burst_of([interrupted(SHORT_S, 0)] * 4)]}, 1)
    assert long["best_wait"] == pytest.approx(0.003 * slices / (LONG_S + 0.003 * slices))
    assert speedup(long, short) == (None if expected is None else pytest.approx(expected))
    assert (speedup(short, long) is None) == (expected is None)


def test_a_single_thread_is_interrupted_if_its_cpu_time_is_less_than_its_time():
    """With several threads, CPU time is that of all of them: what the kernel counts decides."""
    one = latency.Pass(seconds=0.010, cpu_s=0.007, wait_s=0.5)
    assert latency.interrupted_s(one, threads=1) == pytest.approx(0.003)
    assert latency.interrupted_s(one._replace(cpu_s=0.011), threads=1) == 0.0
    several = latency.Pass(seconds=0.010, cpu_s=0.019, wait_s=0.002)
    assert latency.interrupted_s(several, threads=2) == 0.002
    assert latency.interrupted_s(several._replace(wait_s=0.5), threads=2) == 0.010  # at most all
    assert latency.interrupted_s(several._replace(wait_s=-0.1), threads=2) == 0.0


def test_both_speedups_of_a_row_are_withheld():
    times = {
        "teacher": {KIND: 50.0, "best_wait": 0.4},
        "int8": {KIND: 2.0, "best_wait": 0.0},
        "teacher in onnx": {KIND: 10.0, "best_wait": 0.0},
    }
    rows = {"teacher": {}, "int8": {}}
    baselines = {"torch": "teacher", "onnx": "teacher in onnx"}
    add_speedups(rows, times, baselines, {"teacher": "torch", "int8": "onnx"})
    assert rows["int8"]["speedup_torch"] is None and rows["int8"]["speedup_engine"] == 5.0


def test_work_of_other_processes_makes_the_times_unsteady(monkeypatch):
    """0.5 s of other work in 2 s on two cores is a load of 0.125."""
    monkeypatch.setattr(latency, "own_cores", lambda: [0, 1])
    row = timing_metrics({KIND: [timed_burst([1.0, 1.0], elapsed_s=2.0, other_s=0.5)]}, 1)
    assert row["other_load"] == pytest.approx(0.125) and not row["steady"]
    row = timing_metrics({KIND: [timed_burst([1.0, 1.0], elapsed_s=2.0, other_s=0.3)]}, 1)
    assert row["other_load"] == pytest.approx(0.075) and row["steady"]


def test_work_of_others_is_counted_on_our_cores_with_the_time_that_the_host_took(monkeypatch):
    class Core(SimpleNamespace):
        def _asdict(self):
            return vars(self)

    cores = [
        Core(user=5.0, nice=0.0, system=1.0, idle=90.0, iowait=3.0, steal=0.5, guest=4.0),
        Core(user=70.0, nice=0.0, system=0.0, idle=10.0, iowait=0.0, steal=0.0, guest=0.0),
        Core(user=2.0, nice=0.25, system=0.0, idle=10.0, iowait=0.0, steal=0.0, guest=0.0),
    ]
    monkeypatch.setattr(latency.psutil, "cpu_times", lambda percpu: cores)
    monkeypatch.setattr(latency, "own_cores", lambda: [0, 2])
    monkeypatch.setattr(latency.time, "process_time", lambda: 4.0)
    assert latency.other_cpu_s() == pytest.approx(5.0 + 1.0 + 0.5 + 2.0 + 0.25 - 4.0)


def test_a_pass_has_wall_clock_time_cpu_time_and_waiting(monkeypatch):
    clocks = {
        "perf_counter": iter([10.0, 10.5]),
        "process_time": iter([1.0, 1.3]),
    }
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clocks["perf_counter"]))
    monkeypatch.setattr(latency.time, "process_time", lambda: next(clocks["process_time"]))
    waits = iter([0.1, 0.3])
    monkeypatch.setattr(latency, "core_wait_s", lambda: next(waits))
    timed = latency.time_pass(list)
    assert timed == pytest.approx((0.5, 0.3, 0.2))


def test_waiting_is_zero_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(cpu.os.path, "isdir", lambda _: False)
    assert cpu.core_wait_s() == 0.0


# What a user sees


def busy_rows(**metrics) -> list[dict]:
    busy = {"steady": False, "speedup_torch": None}
    return [
        result_row("linear"),
        result_row("teacher", **busy),
        result_row("int8", parent="teacher", latency_ms_p50=9.0, **busy, **metrics),
    ]


def test_a_withheld_speedup_is_not_available_in_every_table():
    rows = busy_rows()
    cells = results.table_cells(rows)
    column = cells[0].index("Speedup")
    assert [line[column] for line in cells[1:]] == ["1.00x", "n/a", "n/a"]


def test_a_withheld_speedup_is_explained_and_nothing_is_called_slower():
    rows = busy_rows(compression_ratio=4.0)
    assert results.verdict(rows) == (
        "int8 compared with the teacher: 4.0x smaller, speed not compared (the machine was busy), "
        "no measurable difference in macro-F1 (0.0 points gained or lost [0.0, 0.0])"
    )
    notes = results.warnings_of(rows)
    assert len(notes) == 2
    assert notes[0] == "the machine was busy: do not trust the times of teacher, int8"
    assert notes[1].startswith("no speedup of teacher, int8: other processes interrupted")


def test_a_page_is_complete_without_speedups_but_not_with_impossible_times():
    check_complete("DIR", busy_rows())
    with pytest.raises(results.UserError, match="latency_ms_p50 of int8 is 0"):
        check_complete("DIR", [*busy_rows()[:2], busy_rows()[2] | {KIND: 0}])
