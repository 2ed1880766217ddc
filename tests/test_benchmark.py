"""Timing on tiny models: what is timed, in which order, on how many threads, and when it is not
to be trusted."""

import io
import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import joblib
import numpy as np
import psutil
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import benchmark
from benchmark import (
    Burst,
    TimingPlan,
    interleaved,
    is_steady,
    main,
    measure,
    name_formats,
    prepare_format,
    timing_figures,
)
from encoders.scratch import scratch_model
from encoders.start import save_model
from engines.engine import Engine, ModelFormat
from engines.graphs import write_onnx
from task import Task

TEXTS = [f"good people see the river {i}" for i in range(20)] + [
    "a road",
    "they say that we go there today",
]
ONCE = dict.fromkeys((1, 32), TimingPlan(inputs=1, passes=2, least=1, most=1))
ANSWER = np.zeros((1, 2), dtype=np.float32)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """A directory with a torch checkpoint and its ONNX graph."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("both")
    save_model(*scratch_model("scratch:1x64", Task(("0", "1"), False), TEXTS, 64), folder)
    (folder / "onnx").mkdir()
    write_onnx(folder, folder / "onnx" / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def linear(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("linear")
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression())
    joblib.dump(pipeline.fit(TEXTS, [i % 2 for i in range(len(TEXTS))]), folder / "linear.joblib")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """One round of one input, in this process; starting up is not measured."""

    @contextmanager
    def here(engines):
        yield dict.fromkeys(engines, lambda function, *arguments: function(*arguments))

    monkeypatch.setattr(benchmark, "engine_processes", here)
    monkeypatch.setattr(benchmark, "start_up", lambda *_: {"load_s": 1.5, "rss_mb": 100.0})
    monkeypatch.setattr(benchmark, "TIMING_PLANS", ONCE)
    monkeypatch.setattr(benchmark, "WARM_UP_S", 0)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("budget, rounds", [(0, 3), (1000, 12)])
def test_every_round_visits_every_form_once_with_the_same_inputs(monkeypatch, budget, rounds):
    monkeypatch.setattr(benchmark, "BUDGET_S", budget)
    visited = []

    def timed(name: str, kind: str, turn: int) -> Burst:
        visited.append((name, turn))
        return Burst([[len(visited)]], 1, 0)

    found = interleaved(timed, ["teacher", "student", "int8"], "latency_ms_p50")
    assert visited == [
        (name, turn) for turn in range(rounds) for name in ("teacher", "student", "int8")
    ]
    assert [burst.seconds for burst in found["student"]] == [
        [[3 * turn + 2]] for turn in range(rounds)
    ]


def test_figures_by_hand():
    latency = [
        Burst([[0.010, 0.012, 0.014], [0.020, 0.020, 0.026]], elapsed_s=0.2, core_wait_s=0.02),
        Burst([[0.030, 0.033, 0.036]], elapsed_s=0.1, core_wait_s=0),
    ]
    row = timing_figures(
        {
            "latency_ms_p50": latency,
            "throughput": [Burst([[0.5, 0.3]], elapsed_s=1.7, core_wait_s=0.06)],
        }
    )
    assert (row["latency_ms_p50"], row["latency_ms_min"]) == pytest.approx((20, 10))
    assert row["latency_ms_p95"] == pytest.approx(33 + 0.6 * 3)
    assert row["throughput"] == pytest.approx(32 / 0.4)
    assert (
        row["spread"] == pytest.approx(1.1)
        and row["core_wait"] == pytest.approx(0.08 / 2)
        and row["steady"]
    )
    assert row["tokenize_ms"] is row["latency_ms_p50_len32"] is row["throughput_len128"] is None


@pytest.mark.parametrize(
    "spread, core_wait, steady",
    [
        (1.0, 0.0, True),
        (1.06, 0.014, True),
        (1.6, 0.0, False),
        (1.01, 0.3, False),
        (1.0, 1.0, False),
    ],
)
def test_times_are_steady_where_passes_are_alike_and_no_core_was_shared(spread, core_wait, steady):
    assert is_steady(spread, core_wait) is steady


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_inputs_of_a_fixed_length_hold_exactly_that_many_tokens(both, engine):
    kinds = prepare_format("form", both, engine, TEXTS, 64, 1, "cpu")
    assert set(benchmark.INPUT_KINDS) - set(kinds) == {"latency_ms_p50_len128", "throughput_len128"}
    separator = benchmark.load_engine(both, engine, 64, 1).encode(["a"])["input_ids"][0, -1]
    for kind, shape in (("latency_ms_p50_len32", (1, 32)), ("throughput_len32", (32, 32))):
        (batch,) = benchmark.TIMED_CALLS["form"][kind][0].args
        assert tuple(batch["input_ids"].shape) == shape and batch["attention_mask"].all()
        assert (batch["input_ids"][:, -1] == separator).all() and (
            batch["input_ids"][:, 1:-1] != separator
        ).all()
        assert benchmark.TIMED_CALLS["form"][kind][0]().shape == (shape[0], 2)


def test_tokenizing_is_timed_apart(monkeypatch):
    done = []
    fake = Engine(
        list,
        lambda texts: done.append("encode") or {"input_ids": np.ones((len(texts), 99))},
        lambda batch: done.append("forward") or ANSWER,
    )
    monkeypatch.setattr(benchmark, "load_engine", lambda *_: fake)
    prepare_format("form", Path(), "onnx", TEXTS, 99, 1, "cpu")
    assert set(done) == {"encode"}
    for kind, only in (
        ("latency_ms_p50", "forward"),
        ("throughput_len32", "forward"),
        ("tokenize_ms", "encode"),
    ):
        done.clear()
        benchmark.time_burst("form", kind, 0)
        assert set(done) == {only}


def test_a_burst_times_each_input_after_a_pass_that_is_not_timed(monkeypatch):
    monkeypatch.setattr(
        benchmark, "load_engine", lambda *_: Engine(list, list, lambda texts: ANSWER)
    )
    monkeypatch.setattr(benchmark, "warm_up", lambda call: None)
    monkeypatch.setattr(
        benchmark, "seconds_of", lambda call: seen.append(call.args[0]) or float(len(seen))
    )
    prepare_format("form", Path(), "linear", [str(i) for i in range(60)], 64, 1, "cpu")
    seen = []
    burst = benchmark.time_burst("form", "latency_ms_p50", 1)
    assert seen == [[str(i)] for i in range(5, 10) for _ in range(5)]
    assert burst.seconds == [[5.0 * i + k for k in range(2, 6)] for i in range(5)]


def test_threads_are_fixed_in_the_engines(both, quick, monkeypatch):
    monkeypatch.setattr(benchmark, "INPUT_KINDS", {"latency_ms_p50": (1, None)})
    row = measure([ModelFormat("form", both, "torch")], TEXTS, 32, "cpu", seed=0, threads=2)["form"]
    assert torch.get_num_threads() == 2 and row["threads"] == 2
    measure([ModelFormat("one", both, "onnx")], TEXTS, 32, "cpu", seed=0, threads=1)
    before = psutil.Process().num_threads()
    measure([ModelFormat("three", both, "onnx")], TEXTS, 32, "cpu", seed=0, threads=3)
    assert psutil.Process().num_threads() == before + 2


def test_a_fresh_process_gets_the_same_threads_and_tells_its_first_answer(monkeypatch, capsys):
    given, clock = [], iter([5.0, 6.0])
    fake = Engine(list, list, lambda texts: ANSWER)
    monkeypatch.setattr(benchmark, "load_engine", lambda *loaded: given.extend(loaded) or fake)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(
        sys, "stdin", io.StringIO(json.dumps(["a/path", "onnx", 64, 3, "cpu", ["one", "two"]]))
    )
    benchmark.answer_in_fresh_process()
    assert given == ["a/path", "onnx", 64, 3, "cpu"]
    said = json.loads(capsys.readouterr().out)
    assert said["answered"] == 5.0 and said["rss_mb"] > 10


def test_each_engine_of_a_directory_is_a_form_and_repeats_are_numbered():
    one, two = Path("one"), Path("two")
    forms = name_formats(
        [one, two, one, two], [["torch"], ["torch", "onnx"], ["torch"], ["torch", "onnx"]]
    )
    assert [form.name for form in forms] == [
        "one",
        "two [torch]",
        "two [onnx]",
        "one (2)",
        "two [torch] (2)",
        "two [onnx] (2)",
    ]
    assert [(form.path, form.engine) for form in forms[2:4]] == [(two, "onnx"), (one, "torch")]


def test_the_command_prints_a_row_for_each_form(both, linear, quick, monkeypatch, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("একটি মন্তব্য\n\na good river\n", encoding="utf-8")
    monkeypatch.setattr(benchmark, "is_steady", lambda *_: False)
    directories = [str(both), str(linear), str(linear)]
    assert main([*directories, "--texts", str(texts), "--threads", "1", "--max_length", "64"]) == 0
    printed = capsys.readouterr()
    heading, _, *rows = printed.out.splitlines()
    assert (
        heading.split("  ")[0] == "Form"
        and len({len(line) for line in printed.out.splitlines()}) == 1
    )
    names = [f"{both} [torch] *", f"{both} [onnx/model.onnx] *", f"{linear} *", f"{linear} (2) *"]
    assert all(row.startswith(f"{name} ") for row, name in zip(rows, names, strict=True))
    engine, *_, at_32, at_128, throughput, tokenize, load_s, memory = rows[2].split()[2:]
    assert (engine, at_32, at_128, tokenize, load_s, memory) == (
        "linear",
        "-",
        "-",
        "-",
        "1.5",
        "100",
    )
    assert float(throughput) > 0 and rows[0].count(" - ") == 1
    assert printed.err.count("the machine was busy") == 1


def test_steady_rows_bear_no_mark(linear, quick, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "is_steady", lambda *_: True)
    assert main([str(linear), "--threads", "1"]) == 0
    printed = capsys.readouterr()
    assert "*" not in printed.out and "busy" not in printed.err


def test_all_that_is_wrong_is_said_at_once(both, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n \n")
    code = main(
        [
            str(tmp_path / "none"),
            str(tmp_path / "empty"),
            str(both),
            "--texts",
            str(tmp_path / "blank.txt"),
            "--threads",
            "0",
            "--max_length",
            "4",
        ]
    )
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert (
        code == 2
        and printed.out == ""
        and all(line.startswith("benchmark.py: error: ") for line in lines)
    )
    said = [
        "--threads is 0, but must be at least 1",
        "--max_length is 4, but must be in",
        "one text per line",
        "there is no such directory",
        "must hold model.safetensors, onnx/*.onnx, openvino/*.xml or linear.joblib",
    ]
    assert len(lines) == len(said) and all(
        text in line for text, line in zip(said, lines, strict=True)
    )


def shorten(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100}))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "must hold config.json, tokenizer.json and",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").unlink(),
            "tokenizer_config.json beside its model",
        ),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "config.json cannot be read as an encoder's",
        ),
        (shorten, "--max_length is 128, but"),
    ],
)
def test_a_directory_that_cannot_be_served_gives_one_line(both, tmp_path, capsys, spoil, said):
    folder = shutil.copytree(both, tmp_path / "copy")
    spoil(folder)
    assert main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark.py: error: ") and said in line


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", None])
def test_texts_that_cannot_be_read_give_one_line(linear, tmp_path, capsys, content):
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    assert main([str(linear), "--texts", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"benchmark.py: error: --texts is {path}, but ")


def test_the_machine_is_described():
    found = benchmark.machine_description()
    assert list(found) == ["cpu", "instruction_sets", "cores", "memory_gb", "gpu"]
    assert found["cpu"] and found["cores"] >= 1 and found["memory_gb"] > 0
    assert set(found["instruction_sets"]) <= set(benchmark.INSTRUCTION_SETS)


def test_forms_are_timed_and_started_in_other_processes(linear, monkeypatch):
    monkeypatch.setattr(benchmark, "BUDGET_S", 0)
    benchmark.TIMED_CALLS.clear()
    rows = measure(
        [ModelFormat("linear", linear, "linear"), ModelFormat("again", linear, "linear")],
        TEXTS,
        64,
        "cpu",
        0,
        threads=1,
    )
    assert benchmark.TIMED_CALLS == {}
    for row in rows.values():
        assert 0 < row["latency_ms_min"] <= row["latency_ms_p50"] <= row["latency_ms_p95"]
        assert (
            row["load_s"] > 0.1
            and row["rss_mb"] > 10
            and row["throughput"] > 0
            and row["spread"] >= 1
        )
        assert row["tokenize_ms"] is row["latency_ms_p50_len32"] is row["throughput_len128"] is None


@pytest.mark.slow
def test_all_engines_are_timed_together(both, linear):
    forms = [
        ModelFormat("torch", both, "torch"),
        ModelFormat("onnx", both, "onnx"),
        ModelFormat("linear", linear, "linear"),
    ]
    rows = measure(forms, TEXTS, 64, "cpu", 0, threads=1)
    assert (
        list(rows) == ["torch", "onnx", "linear"]
        and len({tuple(row) for row in rows.values()}) == 1
    )
    assert rows["torch"]["rss_mb"] > rows["linear"]["rss_mb"]
    assert rows["onnx"]["latency_ms_p50_len32"] > 0 and rows["onnx"]["throughput_len128"] is None
