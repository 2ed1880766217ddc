"""The page of a run and the comparison of runs: they show the results, and comments are only
text."""

import json
import random
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from builders import sentence
from measuring import quick_measuring
from page_parser import ParsedPage, check_self_contained
from result_builders import LABELS, result_row, write_predictions, write_run

import report
from experiments.experiment import mean_rows
from reporting import html, plots, results, run_page
from reporting.plots import Point
from runtime.artifacts import file_hashes, find_finished, read_record
from training import epoch_history

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from screenshots import OVERFLOWING, browser, chromium  # noqa: E402

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><b onclick='x()'>",
    "--> <!-- ]]>",
    "\u202egnorw\u202c",
    "w" * 900,
    "{{ 7 * 7 }}",
    "\u0007\u009f",
    "<img src=http://a.b/c>",
)
HIDDEN = re.compile("[\u202e\u202c\u0007\u009f]")


def hostile_texts(count: int) -> list[str]:
    """Comments that each contain something that a page must show as text."""
    rng = random.Random(3)
    return [f"{sentence(rng, i % 2)} {HOSTILE[i % len(HOSTILE)]} {i}" for i in range(count)]


def run_on_hostile_comments(in_measuring_process, output: Path, *options: str) -> Path:
    """The directory of the results of a tiny run on 160 hostile comments."""
    from main import main

    rows = [(text, LABELS[i % 2]) for i, text in enumerate(hostile_texts(160))]
    path = output / "hostile.csv"
    pd.DataFrame(rows, columns=["comment", "label"]).to_csv(path, index=False)
    argv = ["--dataset_path", str(path), "--output_dir", str(output)]
    argv += ["--teacher_path", "scratch:2x64", "--student_path", "teacher:1", "--device", "cpu"]
    argv += ["--teacher_epochs", "2", "--epochs", "2", "--fine_tune_epochs", "1"]
    argv += ["--max_length", "32"]
    argv += options
    with quick_measuring(in_measuring_process):
        assert main(argv) == 0
    return output / "compressed_models" / argv[argv.index("--experiment") + 1]


@pytest.fixture(scope="module")
def real_run(in_measuring_process, tmp_path_factory) -> Path:
    """The results of a real run."""
    output = tmp_path_factory.mktemp("report")
    return run_on_hostile_comments(in_measuring_process, output, "--experiment", "run")


@pytest.fixture
def synthetic_run(tmp_path) -> Path:
    """The results of a run that never happened, with hostile comments."""
    return write_run(tmp_path, texts=hostile_texts(32))


def read(artifact: Path) -> tuple[dict, str]:
    page = (artifact / "report.html").read_text(encoding="utf-8")
    return results.read_results(artifact), page


def confusions_of(parsed: ParsedPage, stage: str) -> list[list[int]]:
    table = parsed.named_tables[f"Confusion matrix of {stage}"]
    return [list(map(int, line[1:])) for line in table[1:]]


def test_a_page_shows_the_numbers_of_the_results(real_run):
    document, page = read(real_run)
    parsed = ParsedPage(page)
    rows = document["rows"]
    assert parsed.tables[0] == results.table_cells(rows)
    assert [line[1:] for line in parsed.named_tables["Size and latency"][1:]] == [
        [f"{row['size_mb']:.2f}", f"{row['latency_ms_p50']:.2f}"] for row in rows
    ]
    teacher, final = rows[1], rows[-1]
    assert teacher["stage"] == "teacher"
    assert confusions_of(parsed, teacher["stage"]) == teacher["confusion"]
    assert confusions_of(parsed, final["stage"]) == final["confusion"]
    assert parsed.named_tables["Speed and memory"][-1] == [
        final["stage"],
        f"{final['latency_ms_p50']:.2f}",
        f"{final['latency_ms_p95']:.2f}",
        f"{final['throughput']:,.0f}",
        f"{final['tokenize_ms']:.2f}",
        f"{final['load_s']:.1f}",
        f"{final['rss_mb']:.0f}",
    ]
    assert parsed.named_tables["F1 by label"][1:] == [
        [label, *(f"{row[f'f1.{label}']:.4f}" for row in rows)] for label in document["labels"]
    ]
    assert results.verdict(rows) in parsed.text


def test_a_page_is_self_contained_and_its_comments_are_only_text(real_run):
    document, page = read(real_run)
    check_self_contained(page)
    assert not HIDDEN.search(page)
    shown = "".join(ParsedPage(page).pieces)
    split = Path(document["rows"][1]["directory"]).parent / "splits" / "test.parquet"
    complete = 0
    shortened = 0
    for text in map(html.visible, pd.read_parquet(split)["text"]):
        if text in shown:
            complete += 1
        elif len(text) > 600 and f"{text[:600]} [... of" in shown:
            shortened += 1
    assert complete + shortened == 12 == page.count('<li><p dir="auto"><bdi>')
    assert shown.count(LABELS[0]) >= 3 and document["labels"] == sorted(LABELS)


def test_names_and_audit_findings_are_only_text(synthetic_run):
    document = results.read_results(synthetic_run) | {
        "experiment": " ".join(HOSTILE),
        "machine": dict(zip("abcdefgh", HOSTILE, strict=True)),
    }
    audit = [(mark, mark, mark) for mark in HOSTILE]
    page = run_page.run_page(document, audit, with_examples=True)
    check_self_contained(page)
    assert not HIDDEN.search(page)
    assert [line[1] for line in ParsedPage(page).named_tables["Data audit"]] == [
        html.visible(mark) for mark in HOSTILE
    ]


def test_names_of_facts_options_and_stages_are_only_text(synthetic_run):
    document = results.read_results(synthetic_run)
    document["versions"] = dict.fromkeys(HOSTILE, "1")
    document["config"] |= dict.fromkeys(HOSTILE, "1")
    document["command"] = " ".join(HOSTILE)
    document["rows"][2]["stage"] = HOSTILE[0] + HOSTILE[3]
    page = run_page.run_page(document, [], with_examples=True)
    check_self_contained(page)
    assert not HIDDEN.search(page)
    assert ParsedPage(page).text.count("<script>alert(1)</script>") >= 4


def test_no_examples_hides_the_comments_and_reuses_every_stage(real_run, in_measuring_process):
    output = real_run.parent.parent
    options = ("--experiment", "quiet", "--no_examples")
    quiet = run_on_hostile_comments(in_measuring_process, output, *options)
    document, page = read(quiet)
    assert all(row["remembered"] for row in document["rows"])
    assert "disagree" not in page
    for mark in ("alert(1)", "gnorw", "7 * 7"):
        assert mark not in page
    assert ParsedPage(page).tables[0] == results.table_cells(document["rows"])


def test_a_page_without_examples_has_no_section_of_them(synthetic_run):
    document = results.read_results(synthetic_run)
    with_examples = run_page.run_page(document, [], with_examples=True)
    without = run_page.run_page(document, [], with_examples=False)
    assert "disagree" in with_examples and with_examples.count('<li><p dir="auto">') == 12
    assert "disagree" not in without and '<li><p dir="auto">' not in without


def test_a_page_shows_command_versions_plots_and_audit(real_run):
    document, page = read(real_run)
    parsed = ParsedPage(page)
    assert parsed.pieces[-1] == document["command"]
    for version in document["versions"].values():
        assert version in parsed.text
    labels = [attributes["aria-label"] for tag, attributes in parsed.tags if tag == "svg"]
    first_words = [label.split(" ")[0] for label in labels]
    assert first_words == ["Macro-F1", "Macro-F1", "validation", "training"]
    assert labels[2] == "validation macro-F1 by epoch of teacher, student, pruned"
    assert ["rows", "160", ""] in parsed.named_tables["Data audit"]


def test_page_and_history_are_excluded_from_sizes_and_fingerprints(real_run):
    document, _ = read(real_run)
    for row in document["rows"]:
        assert "report.html" not in row["files"] and "history" not in row["files"]
    assert "report.html" not in read_record(real_run)["files"]
    teacher = Path(document["rows"][1]["directory"])
    hashes = file_hashes(teacher)
    record = read_record(teacher)
    history = teacher / "history.json"
    assert history.is_file() and "history.json" not in record["files"]
    moved = history.rename(teacher.parent / "aside.json")
    assert file_hashes(teacher) == hashes
    assert find_finished([teacher], record["fingerprint"]) == teacher
    moved.rename(history)


def test_a_history_has_an_entry_per_epoch_and_marks_the_kept_one():
    log = [
        {"step": 5, "epoch": 1.0, "loss": 0.7, "grad_norm": 1.0},
        {"step": 5, "epoch": 1.0, "eval_macro_f1": 0.6},
        {"step": 10, "epoch": 2.0, "loss": 0.5},
        {"step": 10, "epoch": 2.0, "eval_macro_f1": 0.5},
        {"step": 10, "epoch": 2.0, "train_runtime": 9.0},
    ]
    assert epoch_history({"log_history": log, "best_global_step": 5}) == [
        {"kept": True, "epoch": 1.0, "loss": 0.7, "eval_macro_f1": 0.6},
        {"kept": False, "epoch": 2.0, "loss": 0.5, "eval_macro_f1": 0.5},
    ]


@pytest.mark.parametrize(
    "metrics, expected",
    [
        (
            {
                "compression_ratio": 31.2,
                "speedup_torch": 16.3,
                "delta_macro_f1": -0.004,
                "delta_macro_f1_low": -0.009,
                "delta_macro_f1_high": 0.001,
            },
            "31x smaller, 16x faster, no measurable difference in macro-F1 "
            "(0.4 points lost [-0.1, 0.9])",
        ),
        (
            {
                "compression_ratio": 0.8,
                "speedup_torch": 0.5,
                "delta_macro_f1": 0.012,
                "delta_macro_f1_low": 0.003,
                "delta_macro_f1_high": 0.027,
            },
            "1.2x larger, 2.0x slower, 1.2 points of macro-F1 gained [0.3, 2.7]",
        ),
        (
            {
                "compression_ratio": 9.96,
                "speedup_torch": 1.04,
                "delta_macro_f1": -0.0001,
                "delta_macro_f1_low": -0.009,
                "delta_macro_f1_high": -0.0001,
            },
            "10x smaller, same speed, 0.0 points of macro-F1 gained or lost [-0.9, 0.0]",
        ),
        (
            {"delta_macro_f1_low": 0.0, "delta_macro_f1_high": 0.02, "delta_macro_f1": 0.01},
            "same size, same speed, no measurable difference in macro-F1 "
            "(1.0 points gained [0.0, 2.0])",
        ),
        (
            {"delta_macro_f1_low": None, "delta_macro_f1_high": None, "delta_macro_f1": -0.01},
            "same size, same speed, 1.0 points of macro-F1 lost (too few repeats for an interval)",
        ),
    ],
)
def test_the_verdict_is_one_sentence_with_an_interval(metrics, expected):
    rows = [result_row("linear"), result_row("teacher"), result_row("fp16", **metrics)]
    assert results.verdict(rows) == f"fp16 compared with the teacher: {expected}"


def test_the_verdict_describes_the_last_accepted_format():
    rows = [
        result_row("linear"),
        result_row("teacher"),
        result_row("pruned", compression_ratio=2.0),
        result_row("int4", shipped=False),
    ]
    assert results.verdict(rows).startswith("pruned compared with the teacher: 2.0x smaller")
    assert results.verdict(rows[:2]) == (
        "the final model is the teacher: 2.00 MB and 4.00 ms, macro-F1 0.8000"
    )


def test_the_verdict_of_a_repeated_run_uses_the_means():
    rows = []
    for name, ratio in (("fold 1", 2.0), ("fold 2", 4.0), ("mean", 3.0)):
        rows += [
            result_row("linear", repeat=name),
            result_row("teacher", repeat=name),
            result_row("fp16", repeat=name, compression_ratio=ratio),
        ]
    assert "3.0x smaller" in results.verdict(rows)


def test_the_page_of_a_repeated_run_shows_means_and_sums_confusions(synthetic_run):
    document = results.read_results(synthetic_run)
    once = document["rows"]
    final = once[-1]["stage"]
    repeats = []
    for name, factor, drop in (("seed 1", 1, 0.015), ("seed 2", 3, -0.03)):
        for row in once:
            repeat = row | {"repeat": name, "size_mb": row["size_mb"] * factor}
            if row["stage"] == final:
                repeat["shipped"] = drop < 0.01
                repeat["validation_drop"] = drop
                repeat["validation_macro_f1"] = 0.5
            repeats.append(repeat)
    rows = repeats + mean_rows(repeats, 0.25)
    config = document["config"] | {"max_f1_drop": 0.01}
    repeated = document | {"rows": rows, "shipped": "seed 1", "config": config}
    parsed = ParsedPage(run_page.run_page(repeated, [], with_examples=True))
    assert "it loses 1.5 points of macro-F1 on validation" in parsed.text
    assert parsed.tables[0] == results.table_cells(rows)
    assert len(parsed.tables[0]) == 1 + len(once)
    assert parsed.tables[0][2][1] == f"{2 * once[1]['size_mb']:.2f}"
    assert "Means of 2 repeats" in parsed.text and "all repeats added up" in parsed.text
    assert once[1]["confusion"] == [[9, 1], [2, 8]]
    assert confusions_of(parsed, "teacher") == [[18, 2], [4, 16]]


def test_the_pareto_front_by_hand():
    points = [
        Point("big", 9, 0.9),
        Point("worse", 5, 0.7),
        Point("small", 1, 0.6),
        Point("middle", 4, 0.8),
        Point("equal", 4, 0.8),
        Point("no gain", 20, 0.9),
    ]
    assert [point.name for point in plots.pareto_front(points)] == ["small", "middle", "big"]


def test_a_plot_consists_of_text_and_color_variables():
    points = [Point("one", 0.5, 0.7, 0.6, 0.8), Point("<two>", 80.0, 0.9)]
    svg = plots.plot_trade_off(points, "MB", "size")
    assert ">one</text>" in svg and ">&lt;two&gt;</text>" in svg and 'role="img"' in svg
    assert "var(--c1)" in svg and "font-family" not in svg
    assert not re.search("#[0-9a-fA-F]{6}|http|<style|sans", svg)
    assert "<title>Macro-F1 against MB; on the Pareto front: one, &lt;two&gt;</title>" in svg
    assert svg == plots.plot_trade_off(points, "MB", "size")


def test_labels_overlap_neither_points_nor_each_other():
    points = [Point(f"format {i}", 1 + 0.01 * i, 0.8 + 0.0001 * i) for i in range(40)]
    figure, axes = plots.empty_plot("MB", "macro-F1")
    axes.plot([point.cost for point in points], [point.quality for point in points], "o")
    figure.draw_without_rendering()
    plots.place_labels_(axes, points, points)
    boxes = [plots.Text.get_window_extent(label) for label in axes.texts]
    assert 0 < len(boxes) < len(points)
    for i, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:i]) == 0
        for point in points:
            assert not box.contains(*axes.transData.transform((point.cost, point.quality)))


def test_the_largest_differences_come_first(tmp_path):
    write_predictions(
        tmp_path,
        labels=[0, 1, 1],
        texts=["text 0", "text 1", "text 2"],
        teacher=[[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]],
        fp16=[[0.8, 0.2], [0.9, 0.1], [0.1, 0.9]],
    )
    examples = run_page.disagreements(tmp_path, "fp16", ["no", "yes"], multi_label=False, limit=2)
    assert examples == [
        {"text": "text 1", "true": "yes", "teacher": "yes (0.80)", "final": "no (0.90)"},
        {"text": "text 2", "true": "yes", "teacher": "yes (0.60)", "final": "yes (0.90)"},
    ]


def test_a_multi_label_difference_names_the_label_with_the_largest(tmp_path):
    write_predictions(
        tmp_path,
        labels=[[1, 1], [0, 0]],
        texts=["text 0", "text 1"],
        teacher=[[0.9, 0.8], [0.2, 0.3]],
        int4=[[0.7, 0.1], [0.2, 0.2]],
    )
    examples = run_page.disagreements(tmp_path, "int4", ["rude", "ad"], multi_label=True, limit=1)
    assert examples == [
        {
            "text": "text 0",
            "true": "rude, ad",
            "teacher": "rude, ad (ad 0.80)",
            "final": "rude (ad 0.10)",
        }
    ]


def test_the_confusion_counts_of_a_multi_label_run_have_names():
    head, line = html.label_confusion_table(["rude"], {"teacher": [[[50, 4], [3, 9]]]})
    assert dict(zip(head, line, strict=True)) == {
        "Label": "rude",
        "teacher: true positives": 9,
        "teacher: false positives": 4,
        "teacher: false negatives": 3,
        "teacher: true negatives": 50,
    }


def test_the_page_of_a_multi_label_run_shows_the_counts_of_each_label(synthetic_run):
    document = results.read_results(synthetic_run)
    document |= {"problem_type": "multi_label_classification", "labels": ["rude", "<ad>"]}
    for row in document["rows"]:
        row["confusion"] = [[[50, 4], [3, 9]], [[60, 1], [2, 3]]]
    parsed = ParsedPage(run_page.run_page(document, [], with_examples=False))
    assert parsed.named_tables["Confusion by label"][1:] == [
        ["rude", "9", "4", "3", "50", "9", "4", "3", "50"],
        ["<ad>", "3", "1", "2", "60", "3", "1", "2", "60"],
    ]


def test_hidden_characters_become_code_points_and_joiners_stay():
    assert html.visible("a\u202eb\x00\u2066\u00ad") == "a[U+202E]b[U+0000][U+2066][U+00AD]"
    assert html.visible("ক\u200dষ\u200c\n👨\u200d👩") == "ক\u200dষ\u200c\n👨\u200d👩"


@pytest.fixture
def two_runs(synthetic_run, tmp_path) -> list[str]:
    """Two runs on different data sets, the second with a hostile name."""
    second = tmp_path / "second"
    shutil.copytree(synthetic_run, second)
    document = results.read_results(second) | {"experiment": "<b>second"}
    document["config"]["dataset_path"] = "0.csv"
    (second / "results_final.json").write_text(json.dumps(document))
    return [str(synthetic_run), str(second)]


def test_a_comparison_shows_every_run_on_one_page(two_runs, tmp_path):
    assert report.main([*two_runs, "--html", str(tmp_path / "all.html")]) == 0
    page = (tmp_path / "all.html").read_text(encoding="utf-8")
    check_self_contained(page)
    parsed = ParsedPage(page)
    rows = results.read_results(two_runs[0])["rows"]
    head, *_, final = results.table_cells(rows)
    assert parsed.tables[0] == [
        ["Run", "Format", *head[1:]],
        ["run", *final],
        ["<b>second", *final],
    ]
    targets = {attributes.get("id") for _, attributes in parsed.tags}
    links = [attributes["href"][1:] for tag, attributes in parsed.tags if tag == "a"]
    assert links == ["run-1", "run-2"] and set(links) <= targets
    assert parsed.text.count(results.verdict(rows)) == 2
    assert "different data sets, with separate plots" in parsed.text
    runs_on_fronts = []
    for table in parsed.tables[1:]:
        runs_on_fronts.append({line[0].rsplit(" ", 1)[0] for line in table[1:]})
    assert runs_on_fronts == [{"run"}, {"<b>second"}]
    assert page.count("<svg ") == 4
    assert list(tmp_path.glob("*.partial")) == []


def test_runs_with_the_same_name_are_named_after_their_directories(synthetic_run, tmp_path):
    shutil.copytree(synthetic_run, tmp_path / "second")
    directories = [str(synthetic_run), str(tmp_path / "second")]
    assert [name for name, _ in run_page.read_runs(directories)] == directories


@pytest.mark.parametrize(
    "argv, expected",
    [
        (
            ["{run}", "{folder}/absent", "--html", "{folder}/all.html"],
            "contains no results_final.json of a run",
        ),
        (
            ["{run}", "--html", "{folder}/none/all.html"],
            "none/all.html, but must be a file in an existing, writable directory",
        ),
        (
            ["{run}", "--html", "{folder}"],
            "but must be a file in an existing, writable directory",
        ),
        (["{run}", "--html", "x", "--format", "latex"], "not allowed with argument"),
        (["{run}", "--format", "spam"], "invalid choice: 'spam'"),
        (
            ["{folder}/no_teacher", "--html", "{folder}/all.html"],
            "but without a row linear and teacher",
        ),
        (
            ["{folder}/bad_time", "--html", "{folder}/all.html"],
            "but latency_ms_p50 of teacher is fast, not a number",
        ),
        (["{folder}/list"], "contains no results_final.json of a run"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(tmp_path, capsys, argv, expected):
    run = write_run(tmp_path / "run")
    folder = tmp_path / "folder"
    documents = {
        "no_teacher": {"rows": [result_row("fp16")]},
        "list": [1],
        "bad_time": {"rows": [result_row("linear"), result_row("teacher", latency_ms_p50="fast")]},
    }
    for name, document in documents.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "results_final.json").write_text(json.dumps(document))
    assert report.main([word.format(run=run, folder=folder) for word in argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1 and expected in printed.err
    assert {path.name for path in folder.iterdir()} == set(documents)


@pytest.mark.parametrize(
    "name, first", [("text", "Stage "), ("markdown", "| Stage "), ("latex", "\\begin")]
)
def test_the_command_prints_the_table_in_each_format(synthetic_run, capsys, name, first):
    assert report.main([str(synthetic_run), "--format", name]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(first) and "zstd (MB)" in printed
    assert printed.count("0.8500") == 1


@pytest.mark.skipif(not chromium(), reason="no Chromium here")
def test_a_browser_shows_pages_without_requests_complaints_or_sideways_scrolling(
    real_run, two_runs, tmp_path
):
    document, _ = read(real_run)
    report.main([*two_runs, "--html", str(tmp_path / "all.html")])
    final = results.table_cells(results.read_results(two_runs[0])["rows"])[-1]
    expected_lines = {
        real_run / "report.html": results.table_cells(document["rows"])[1:],
        tmp_path / "all.html": [["run", *final], ["<b>second", *final]],
    }
    first_table = (
        "[...document.querySelector('table').rows]"
        ".map(row => [...row.cells].map(cell => cell.innerText))"
    )
    with browser() as tab:
        for path, lines in expected_lines.items():
            tab.show(360)
            tab.open(path)
            assert tab.value(first_table)[1:] == lines
            for width in (360, 768, 1280):
                tab.show(width, "dark")
                assert tab.value(OVERFLOWING) <= 0, width
            assert (tab.requests(), tab.complaints()) == ([], [])


@pytest.mark.skipif(not chromium(), reason="no Chromium here")
def test_a_browser_sorts_tables_and_copies_code(synthetic_run, tmp_path):
    document = results.read_results(synthetic_run)
    page = tmp_path / "page.html"
    page.write_text(run_page.run_page(document, [], with_examples=True), encoding="utf-8")
    stages = "[...document.querySelectorAll('table')[0].tBodies[0].rows].map(row => row.innerText)"
    click = "document.querySelectorAll('table')[0].querySelectorAll('th button')[{}].click()"
    with browser() as tab:
        tab.show(390)
        tab.open(page)

        def shown_stages() -> list[str]:
            return [line.split("\t")[0] for line in tab.value(stages)]

        assert shown_stages() == ["linear", "teacher", "student", "fp16"]
        tab.value(click.format(1))  # sizes: 0.05, 2, 2 and 0.9 MB
        assert shown_stages() == ["linear", "fp16", "teacher", "student"]
        tab.value(click.format(1))
        assert shown_stages() == ["student", "teacher", "fp16", "linear"]
        tab.value(click.format(0))
        assert shown_stages() == ["fp16", "linear", "student", "teacher"]
        tab.value("document.querySelector('button.copy').click()")
        for _ in range(50):
            if tab.value("document.querySelector('button.copy').innerText") == "Copied":
                break
        assert tab.value("document.querySelector('button.copy').innerText") == "Copied"
        assert tab.value("document.querySelector('textarea')") is None
        for width in (360, 390, 768, 1280):
            tab.show(width)
            assert tab.value(OVERFLOWING) <= 0, width
        assert (tab.requests(), tab.complaints()) == ([], [])


@pytest.mark.skipif(not chromium(), reason="no Chromium here")
def test_a_browser_reports_what_a_page_must_not_do(tmp_path):
    (tmp_path / "bad.html").write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
        "<meta name='viewport' content='width=device-width'>"
        f"<script>1</script><p>{'w' * 300}"
    )
    (tmp_path / "requests.html").write_text("<img src='other.png'>")
    with browser() as tab:
        tab.show(360)
        tab.open(tmp_path / "bad.html")
        assert tab.complaints() and tab.value(OVERFLOWING) > 0
        tab.open(tmp_path / "requests.html")
        assert [Path(url).name for url in tab.requests()] == ["other.png"]
