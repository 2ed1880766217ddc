"""Runs without a benchmark: empty columns, a note, and a table, page and card that cope; and what
a benchmark may cost."""

import csv
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from result_builders import result_row, write_run
from timed_bursts import timed_burst

import report
from engines import latency
from engines.latency import TIMING_COLUMNS, time_formats, timing_metrics
from experiments.timing import add_empty_times, benchmark_budget_s
from reporting import results, run_page, snippets

SMALL = (
    "--pipeline quant_only --quant_method dynamic --teacher_path scratch:1x64 --teacher_epochs 1 "
    "--max_length 32 --device cpu --experiment run"
).split()


def runner(**rows: dict) -> SimpleNamespace:
    """As much of a StageRunner as the benchmark reads."""
    return SimpleNamespace(rows=rows)


def without_times(row: dict) -> dict:
    return row | dict.fromkeys(TIMING_COLUMNS)


def test_the_columns_without_values_are_those_that_a_benchmark_fills():
    filled = timing_metrics({"latency_ms_p50": [timed_burst([0.01])]}, threads=1)
    filled |= {"load_s": 1.0, "rss_mb": 1.0, "threads": 1}
    teacher = {}
    latency.add_speedups(
        {"teacher": teacher}, {"teacher": filled}, {"torch": "teacher"}, {"teacher": "torch"}
    )
    assert list(teacher) == list(TIMING_COLUMNS)
    one = runner(teacher={"bytes": 3})
    add_empty_times([one])
    assert one.rows == {"teacher": {"bytes": 3} | dict.fromkeys(TIMING_COLUMNS)}


def test_a_benchmark_may_take_a_quarter_of_the_run():
    first = runner(
        teacher={"directory": "t", "seconds": 60.0},
        fp16={"directory": "q", "seconds": 6.0},
        onnx={"directory": "q", "seconds": 6.0},
    )
    second = runner(
        teacher={"directory": "t", "seconds": 60.0}, student={"directory": "s", "seconds": 24.0}
    )
    assert benchmark_budget_s([first, second]) == 30  # of 120 s: 90 s of stages


@pytest.mark.parametrize("budget_s, rounds", [(0, [3, 2]), (1000, [12, 6])])
def test_after_its_budget_a_benchmark_takes_the_minimum_of_rounds(monkeypatch, budget_s, rounds):
    timed = []

    def call(function, name: str, *arguments):
        if function is latency.prepare_format:
            return kinds
        timed.append(arguments[0])
        return timed_burst([1])

    kinds = ["latency_ms_p50", "throughput"]
    monkeypatch.setattr(latency, "BUDGET_S", 1000)
    monkeypatch.setattr(latency, "engine_processes", fake_processes(call))
    deadline_s = latency.time.perf_counter() + budget_s
    entry = SimpleNamespace(name="a", engine="torch", directory=None, format_name="torch")
    time_formats([entry], ["x"], 8, "cpu", 1, kinds, deadline_s)
    assert [timed.count(kind) for kind in kinds] == rounds


def fake_processes(call):
    """In place of `engine_processes`."""
    return lambda engines: nullcontext(dict.fromkeys(engines, call))


def test_table_notes_and_verdict_without_times():
    rows = [without_times(result_row(stage)) for stage in ("linear", "teacher", "student")]
    rows[2] |= {"parent": "teacher", "bytes": 4_000_000}
    heading, *lines = results.table_cells(rows)
    for line in lines:
        cells = dict(zip(heading, line, strict=True))
        assert cells["Latency (ms)"] == cells["Speedup"] == "" and cells["Size (MB)"] == "2.00"
    assert "speed not measured" in results.verdict(rows)
    notes = results.warnings_of(rows)
    assert notes[-1] == "times and memory were not measured (--no_benchmark)"
    assert not any("busy" in note or "faster" in note for note in notes)
    assert results.size_and_latency(rows[0]) == "2.00 MB"
    assert results.verdict(rows[:2]).startswith("the final model is the teacher: 2.00 MB, macro")


def test_the_page_and_the_comparison_cope_with_runs_without_times(tmp_path, capsys):
    timed = write_run(tmp_path, "timed")
    untimed = write_run(tmp_path, "untimed")
    path = untimed / "results_final.json"
    document = json.loads(path.read_text())
    document["rows"] = list(map(without_times, document["rows"]))
    path.write_text(json.dumps(document))
    page = run_page.run_page(document, [], with_examples=True)
    assert "times and memory were not measured" in page and "speed not measured" in page
    assert "None" not in page and "ms per text" not in page
    assert report.main([str(untimed), "--html", str(tmp_path / "one.html")]) == 0
    assert report.main([str(timed), str(untimed), "--html", str(tmp_path / "two.html")]) == 0
    assert "ms per text" in (tmp_path / "two.html").read_text(encoding="utf-8")
    assert report.main([str(untimed)]) == 0
    assert capsys.readouterr().out.startswith("Stage")


def test_without_times_the_card_loads_the_smallest_graph():
    rows = [
        {"stage": "int8", "bytes": 2, "latency_ms_p50": 1.0},
        {"stage": "int4", "bytes": 1, "latency_ms_p50": 2.0},
    ]
    assert snippets.chosen_graph(rows) == (rows[0], "fastest")
    untimed = list(map(without_times, rows))
    assert snippets.chosen_graph(untimed) == (untimed[1], "smallest")


def test_a_run_without_a_benchmark_has_everything_but_times(
    run_main, tiny_csv, tmp_path, capsys, monkeypatch
):
    def measure(*_arguments, **_settings):
        raise AssertionError("timed")

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    argv = [*SMALL, "--dataset_path", str(tiny_csv), "--output_dir", str(tmp_path)]
    assert run_main([*argv, "--no_benchmark"]) == 0
    assert "note: times and memory were not measured" in capsys.readouterr().err
    artifact = tmp_path / "compressed_models" / "run"
    with (artifact / "results_final.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert {row[name] for name in TIMING_COLUMNS} == {""}
        assert float(row["macro_f1"]) > 0
    card = (artifact / "README.md").read_text(encoding="utf-8")
    assert "Latency was not measured." in card
    assert "None" not in card.replace("top_k=None", "")
    assert "ms per text" not in card.split("## Data")[0]
    from inference import load

    assert load(artifact)(["a good river"])[0]["label"] in ("0", "1")
    monkeypatch.undo()
    assert run_main(argv) == 0  # the same run, now with times
    with (artifact / "results_final.csv").open(newline="") as file:
        assert all(float(row["latency_ms_p50"]) > 0 for row in csv.DictReader(file))
