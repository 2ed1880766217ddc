"""Every benchmark imports, prints its help and is in the README; slow tests run some of them."""

import importlib
import re
from pathlib import Path

import pytest
from timed_bursts import timed_burst

from benchmarks import bench_engines, engine_cells, headline, inputs

ROOT = Path(__file__).resolve().parent.parent
SHARED_MODULES = {"__init__", "engine_cells", "inputs", "peers", "textbook_loop"}
BENCHMARKS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in SHARED_MODULES
)
COMMAND = re.compile(r"python -m benchmarks\.([a-z_]+)")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_describes_the_benchmark(name, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit, match="^0$"):
        module.main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("usage: ")
    assert " ".join(module.__doc__.splitlines()[0].split()) in printed


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_docstring_gives_the_command(name):
    module = importlib.import_module(f"benchmarks.{name}")
    assert COMMAND.findall(module.__doc__) == [name]


def test_the_readme_lists_every_benchmark_once():
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert sorted(set(COMMAND.findall(readme))) == BENCHMARKS
    assert sorted(re.findall(r"^\| \[(\w+)\]", readme, re.M)) == BENCHMARKS


@pytest.mark.parametrize("page", ["benchmarks.md", "log.md"])
def test_a_page_names_only_benchmarks_that_exist(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert set(COMMAND.findall(text)) <= set(BENCHMARKS)


def test_a_missing_argument_ends_with_exit_code_2(capsys):
    for name in ("bench_engines", "bench_inference", "bench_training", "grid_pruning", "headline"):
        module = importlib.import_module(f"benchmarks.{name}")
        with pytest.raises(SystemExit, match="^2$"):
            module.main([])
    assert "required" in capsys.readouterr().err


def test_a_grid_of_several_seeds_is_rejected(capsys):
    from benchmarks import grid_pruning

    with pytest.raises(SystemExit, match="^2$"):
        grid_pruning.main(["plot.svg", "--seeds", "1", "2"])
    assert "--seeds is given, but a grid has one seed and one split" in capsys.readouterr().err


def test_the_english_benchmark_needs_a_teacher(capsys):
    with pytest.raises(SystemExit, match="^2$"):
        headline.main(["--english", "file.csv", "--output_dir", "out"])
    assert "--english is given, but needs --teacher" in capsys.readouterr().err


def test_every_timed_format_is_ours_or_a_peer():
    names = [*engine_cells.PEERS, *engine_cells.OUR_FORMATS]
    assert list(bench_engines.CONTENDERS) == names


def test_random_wordpiece_has_the_requested_size_and_no_duplicates():
    tokenizer = inputs.random_wordpiece(300)
    assert len(tokenizer) == 300
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(inputs.BERT_SPECIAL_TOKENS.values())


def test_random_words_are_distinct_and_reproducible():
    words = inputs.random_words(500)
    assert len(set(words)) == 500
    assert words == inputs.random_words(500)
    assert {len(word) for word in words} == set(range(3, 10))


@pytest.fixture
def cell() -> engine_cells.Cell:
    """Four rounds at batch 1, 32 tokens: ours takes 10 ms, the best peer 8 ms, torch fp32 40 ms."""
    bursts = {}
    for name in [*engine_cells.PEERS, *engine_cells.OUR_FORMATS]:
        bursts[name] = [timed_burst([0.020]) for _ in range(4)]
    bursts["torch fp32"] = [timed_burst([0.040]) for _ in range(4)]
    # per input the median of the passes, then the mean of the inputs: (8 + 12) / 2 = 10 ms
    bursts["openvino-int8"] = [timed_burst([0.007, 0.008, 0.030], [0.012]) for _ in range(4)]
    bursts["nncf quantize"] = [timed_burst([0.008]) for _ in range(4)]
    return engine_cells.make_cell("tiny", 2, "latency_ms_p50_len32", bursts)


def test_a_cell_averages_the_median_passes_of_its_inputs(cell):
    assert (cell.batch, cell.tokens) == (1, "32")
    assert cell.rounds_ms["openvino-int8"] == pytest.approx([10.0] * 4)
    assert cell.min_ms["openvino-int8"] == pytest.approx(7.0)
    assert cell.fastest(engine_cells.OUR_FORMATS) == "openvino-int8"


def test_ratios_are_relative_to_our_fastest_format(cell):
    ratio = cell.ratio_of_baseline()
    assert (ratio.slower, ratio.faster) == ("torch fp32", "openvino-int8")
    assert ratio.median == pytest.approx(4.0)
    assert cell.ratio_of_best_peer().median == pytest.approx(0.8)
    assert cell.is_slower_than_peer


def test_a_loss_within_the_noise_is_no_loss(cell):
    # rounds of 8 and 13 ms against 10: quartiles 0.8, 0.8, 1.3, noise 0.5 / 2 / 0.8 = 0.3125
    rounds_ms = cell.rounds_ms | {"nncf quantize": [8.0, 8.0, 8.0, 13.0, 13.0]}
    rounds_ms["openvino-int8"] = [10.0] * 5
    noisy = cell._replace(rounds_ms=rounds_ms)
    ratio = noisy.ratio_of_best_peer()
    assert (ratio.median, ratio.noise) == (pytest.approx(0.8), pytest.approx(0.3125))
    assert not noisy.is_slower_than_peer


def test_a_cell_is_busy_when_threads_waited_for_a_core(cell):
    assert not cell.is_busy
    assert cell._replace(core_wait=0.06).is_busy


def test_the_summary_counts_goals_and_losses(cell):
    assert engine_cells.summary([cell]).splitlines() == [
        "batch 1, torch fp32 / ours at least 4: 1 of 1 cells (minimum 4.00)",
        "ours not slower than the fastest peer beyond noise: 0 of 1 cells",
        "slower: tiny, threads 2, batch 1, tokens 32",
    ]


def line(name: str, size_mb: float, latency_ms: float, macro_f1: float) -> headline.Line:
    return headline.Line(
        name=name,
        size_mb=size_mb,
        compression=1.0,
        latency_ms=latency_ms,
        speedup=1.0,
        texts_s=1.0,
        macro_f1=macro_f1,
        delta=0.0,
        delta_low=0.0,
        delta_high=0.0,
        relative_delta=0.0,
        is_steady=True,
    )


def test_the_pareto_front_has_the_lines_that_no_line_dominates():
    lines = [
        line("small", 1.0, 3.0, 0.7),
        line("fast", 2.0, 1.0, 0.7),
        line("good", 2.0, 3.0, 0.9),
        line("large", 2.0, 3.0, 0.7),
    ]
    headline.mark_pareto_front(lines)
    assert [one.name for one in lines if one.is_on_pareto_front] == ["small", "fast", "good"]


def test_a_line_has_means_over_the_seeds_that_have_its_row():
    row = {
        "size_mb": 2.0,
        "compression_ratio": 5.0,
        "macro_f1": 0.70,
        "delta_macro_f1": -0.10,
        "delta_macro_f1_low": -0.2,
        "delta_macro_f1_high": 0.0,
    }
    second = row | {"macro_f1": 0.90, "delta_macro_f1": 0.06}
    times = {"latency_ms_p50": 2.0, "throughput": 500.0, "steady": True, "best_wait": 0.0}
    teacher_times = {"latency_ms_p50": 10.0, "best_wait": 0.0}
    results = [
        headline.SeedResult({"small, onnx": row, "once": row}, {}, 0.80, None),
        headline.SeedResult({"small, onnx": second}, {}, 0.84, None),
    ]
    both = headline.make_line("small, onnx", results, times, teacher_times)
    assert (both.macro_f1, both.delta, both.speedup) == pytest.approx((0.80, -0.02, 5.0))
    assert both.relative_delta == pytest.approx(-0.02 / 0.82)
    once = headline.make_line("once", results, times, teacher_times)
    assert (once.macro_f1, once.delta_low, once.delta_high) == (0.70, -0.2, 0.0)


def test_a_section_of_the_page_is_replaced_between_its_markers():
    page = "head\n<!-- benchmark: Bangla -->\nold\n<!-- end -->\ntail\n"
    expected = "head\n<!-- benchmark: Bangla -->\nnew\n<!-- end -->\ntail\n"
    assert headline.replace_section(page, "Bangla", "new") == expected


@pytest.fixture
def teacher_dir(tiny_csv, tmp_path) -> Path:
    """A tiny BERT with a tokenizer and all graphs."""
    texts = inputs.read_texts(str(tiny_csv))
    directory = tmp_path / "tiny_bert"
    bench_engines.write_checkpoint(bench_engines.SHAPES["tiny"], texts, directory)
    bench_engines.write_formats(texts, directory)
    return directory


@pytest.mark.slow
def test_bench_data_runs(capsys):
    from benchmarks import bench_data

    bench_data.main(["--rows", "2000"])  # the exit code depends on the ratio of the times
    printed = capsys.readouterr().out
    assert printed.count("ratio") == 4
    assert printed.count("unlabeled texts") == 4


@pytest.mark.slow
def test_bench_engines_runs(tiny_csv, tmp_path, capsys):
    words = ["--shapes", "tiny", "--rounds", "3", "--threads", "1", "--out", str(tmp_path / "out")]
    assert bench_engines.main([str(tiny_csv), *words]) == 0
    assert "| tiny" in capsys.readouterr().out
    assert (tmp_path / "out" / "times.json").is_file()


@pytest.mark.slow
def test_bench_inference_runs(teacher_dir, tiny_csv, capsys):
    from benchmarks import bench_inference

    assert bench_inference.main([str(teacher_dir), str(tiny_csv), "--texts", "200"]) == 0
    printed = capsys.readouterr().out
    assert "inference.py / pipeline: " in printed
    assert "onnx/model.onnx" in printed


@pytest.mark.slow
def test_bench_training_runs(tiny_csv, capsys):
    from benchmarks import bench_training

    words = ["--teacher_path", "scratch:2x64", "--student_path", "teacher:1", "--device", "cpu"]
    bench_training.main([str(tiny_csv), "--epochs", "1", *words])
    printed = capsys.readouterr().out
    assert "Trainer's defaults / distillation: " in printed
    assert "textbook / distillation: " in printed


@pytest.mark.slow
def test_compare_importance_runs(teacher_dir, tiny_csv, capsys):
    from benchmarks import compare_importance

    compare_importance.main([str(teacher_dir), str(tiny_csv)])
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(compare_importance.METHODS)


@pytest.mark.slow
def test_headline_writes_its_table_into_the_page(tiny_csv, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n", encoding="utf-8")
    teacher = "--teacher_path scratch:2x64 --teacher_epochs 1 --export onnx"
    recipes = {
        "teacher": f"--pipeline baseline {teacher}",
        "small": f"--pipeline kd_only --student_path teacher:1 --epochs 1 {teacher}",
    }
    monkeypatch.setattr(headline, "PAGE", page)
    monkeypatch.setattr(headline, "BANGLA", recipes)
    output_dir = tmp_path / "out"
    headline.main(["--bangla", str(tiny_csv), "--output_dir", str(output_dir), "--seeds", "1", "2"])
    table = page.read_text(encoding="utf-8")
    for name in ("teacher, torch fp32", "teacher, nncf.quantize", "small, onnx-int8"):
        assert name in table
    assert "Seed 1; `small` on seeds 1 2." in table
