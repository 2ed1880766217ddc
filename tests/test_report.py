"""The page of a run and the page of many: their figures are the results', and comments in them
are only text."""

import json
import random
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from builders import sentence
from measuring import quick_measuring

import report
from experiments.experiment import mean_rows
from reporting import html, plots
from reporting.plots import Point
from runtime.artifacts import file_hashes, find_finished, read_record
from training import epoch_history

sys.path.append(
    str(Path(__file__).resolve().parent.parent / "scripts")
)  # last: it has a benchmark.py too
from screenshots import OVERFLOWING, browser, chromium  # noqa: E402

from reporting import results, run_page

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
LABELS = ("<u>foul</u>", "fine")
OWN_TAGS = """html head meta link title style body main h1 h2 h3 p ul ol li div span table thead tbody tr th td
    figure svg g defs path use text clippath rect bdi dl dt dd pre code details summary a section"""
VOID = {"meta", "link"}


class Parsed(HTMLParser):
    """The tags with their attributes, the cells of every table, and all text; fails on tags that
    do not match."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.tables, self.text, self.inside, self.pieces = [], [], "", [], []
        self.feed(html)
        self.close()
        assert self.inside == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("li", "bdi", "pre"):
            self.pieces.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.inside):
            self.tables[-1][-1][-1] += data
        if {"li", "bdi", "pre"} & set(self.inside):
            self.pieces[-1] += data


def hostile_csv(folder: Path) -> Path:
    """160 comments in two classes; each holds something that a page must not take for its own."""
    rng = random.Random(3)
    rows = [
        (f"{sentence(rng, i % 2)} {HOSTILE[i % len(HOSTILE)]} {i}", LABELS[i % 2])
        for i in range(160)
    ]
    path = folder / "hostile.csv"
    pd.DataFrame(rows, columns=["comment", "label"]).to_csv(path, index=False)
    return path


def run(in_measuring_process, folder: Path, *more: str) -> Path:
    """The artifact of a tiny run on hostile comments."""
    from main import main

    argv = [
        "--dataset_path",
        str(hostile_csv(folder)),
        "--output_dir",
        str(folder),
        "--teacher_path",
        "scratch:2x64",
        "--student_path",
        "teacher:1",
        "--teacher_epochs",
        "2",
        "--epochs",
        "2",
        "--fine_tune_epochs",
        "1",
        "--max_length",
        "32",
        "--device",
        "cpu",
        *more,
    ]
    with quick_measuring(in_measuring_process):
        assert main(argv) == 0
    return folder / "compressed_models" / argv[argv.index("--experiment") + 1]


@pytest.fixture(scope="module")
def artifact(in_measuring_process, tmp_path_factory) -> Path:
    return run(in_measuring_process, tmp_path_factory.mktemp("report"), "--experiment", "run")


def read(artifact: Path) -> tuple[dict, str]:
    return results.read_results(artifact), (artifact / "report.html").read_text(encoding="utf-8")


def check_self_contained(html: str) -> None:
    """No script, no handler, and no reference that leaves the file."""
    for tag, attributes in Parsed(html).tags:
        assert f" {tag} " in f" {OWN_TAGS} ".replace("\n", " "), tag
        assert not [
            name
            for name in attributes
            if name.startswith("on") or name in ("src", "srcset", "xlink:href")
        ]
        assert attributes.get("href", "#").startswith("#") or attributes["href"] == "data:,"
        assert set(
            re.findall(r"url\((.)", attributes.get("style", "") + attributes.get("clip-path", ""))
        ) <= {"#"}
    style = re.search("<style>(.*?)</style>", html, re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert (
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
    ) in html


def test_the_figures_are_those_of_the_results(artifact):
    document, html = read(artifact)
    parsed, rows = Parsed(html), document["rows"]
    assert parsed.tables[0] == results.table_cells(rows)
    assert [row[1:] for row in parsed.tables[1][1:]] == [
        [f"{row['size_mb']:.2f}", f"{row['latency_ms_p50']:.2f}"] for row in rows
    ]
    assert [[list(map(int, line[1:])) for line in table[1:]] for table in parsed.tables[2:4]] == [
        rows[1]["confusion"],
        rows[-1]["confusion"],
    ]
    assert results.verdict(rows) in parsed.text and rows[1]["stage"] == "teacher"


def test_a_page_is_self_contained_and_its_comments_are_only_text(artifact):
    document, html = read(artifact)
    check_self_contained(html)
    shown = "".join(Parsed(html).pieces)
    assert not re.search("[\u202e\u202c\u0007\u009f]", html)
    texts = pd.read_parquet(
        Path(document["rows"][1]["directory"]).parent / "splits" / "test.parquet"
    )["text"]
    whole = [text for text in map(html.visible, texts) if text in shown]
    cut = [
        text
        for text in map(html.visible, texts)
        if len(text) > 600 and f"{text[:600]} [... of" in shown
    ]
    assert len(whole) + len(cut) == 12 == html.count('<li><p dir="auto"><bdi>')
    assert shown.count(LABELS[0]) >= 3 and document["labels"] == sorted(LABELS)


def test_names_and_findings_are_only_text_too(artifact):
    document, _ = read(artifact)
    hostile = document | {
        "experiment": " ".join(HOSTILE),
        "machine": dict(zip("abcdefgh", HOSTILE, strict=True)),
    }
    html = run_page.run_page(hostile, [(mark, mark, mark) for mark in HOSTILE], True)
    check_self_contained(html)
    assert not re.search("[\u202e\u202c\u0007\u009f]", html)
    assert [line[1] for line in Parsed(html).tables[4]] == [html.visible(mark) for mark in HOSTILE]


def test_without_examples_no_comment_is_shown_and_nothing_is_made_again(
    artifact, in_measuring_process
):
    again = run(
        in_measuring_process, artifact.parent.parent, "--experiment", "quiet", "--no_examples"
    )
    document, html = read(again)
    assert all(row["remembered"] for row in document["rows"])
    assert "disagree" not in html and not [
        mark for mark in ("alert(1)", "gnorw", "7 * 7") if mark in html
    ]
    assert Parsed(html).tables[0] == results.table_cells(document["rows"])


def test_all_of_the_run_is_on_its_page(artifact):
    document, html = read(artifact)
    parsed = Parsed(html)
    assert parsed.pieces[-1] == document["command"]
    assert all(version in parsed.text for version in document["versions"].values())
    labels = [attributes["aria-label"] for tag, attributes in parsed.tags if tag == "svg"]
    assert [label.split(" ")[0] for label in labels] == [
        "Macro-F1",
        "Macro-F1",
        "validation",
        "training",
    ]
    assert labels[2] == "validation macro-F1 by epoch of teacher, student, pruned"
    assert ["rows", "160", ""] in parsed.tables[4]


def test_the_page_is_neither_bytes_of_a_form_nor_part_of_a_model(artifact):
    document, _ = read(artifact)
    assert not [
        row
        for row in document["rows"]
        if "report.html" in row["files"] or "history" in row["files"]
    ]
    assert "report.html" not in read_record(artifact)["files"]
    teacher = Path(document["rows"][1]["directory"])
    before, record = file_hashes(teacher), read_record(teacher)
    assert (teacher / "history.json").is_file() and "history.json" not in record["files"]
    (teacher / "history.json").rename(teacher.parent / "aside.json")
    assert (
        file_hashes(teacher) == before
        and find_finished([teacher], record["fingerprint"]) == teacher
    )
    (teacher.parent / "aside.json").rename(teacher / "history.json")


def test_a_history_has_a_line_an_epoch_and_marks_the_one_that_is_kept():
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


def row(stage: str, **figures) -> dict:
    return {
        "stage": stage,
        "parent": "",
        "compression_ratio": 1.0,
        "speedup_torch": 1.0,
        "delta_macro_f1": 0.0,
        "delta_macro_f1_low": 0.0,
        "delta_macro_f1_high": 0.0,
        "macro_f1": 0.8,
        "bytes": 2_000_000,
        "size_mb": 2.0,
        "packed_mb": 1.0,
        "latency_ms_p50": 4.0,
    } | figures


@pytest.mark.parametrize(
    "figures, said",
    [
        (
            {
                "compression_ratio": 31.2,
                "speedup_torch": 16.3,
                "delta_macro_f1": -0.004,
                "delta_macro_f1_low": -0.009,
                "delta_macro_f1_high": 0.001,
            },
            "31x smaller, 16x faster, 0.4 points of macro-F1 lost [-0.1, 0.9]",
        ),
        (
            {
                "compression_ratio": 0.8,
                "speedup_torch": 0.5,
                "delta_macro_f1": 0.012,
                "delta_macro_f1_low": -0.003,
                "delta_macro_f1_high": 0.027,
            },
            "1.2x larger, 2.0x slower, 1.2 points of macro-F1 won [-0.3, 2.7]",
        ),
        (
            {
                "compression_ratio": 9.96,
                "speedup_torch": 1.04,
                "delta_macro_f1": -0.0001,
                "delta_macro_f1_low": -0.009,
                "delta_macro_f1_high": -0.0001,
            },
            "10x smaller, as fast, 0.0 points of macro-F1 lost or won [-0.9, 0.0]",
        ),
    ],
)
def test_the_verdict_is_one_sentence_with_its_interval(figures, said):
    rows = [row("linear"), row("teacher"), row("fp16", **figures)]
    assert results.verdict(rows) == f"fp16 against the teacher: {said}"


def test_the_verdict_is_of_a_form_that_is_shipped_and_of_means():
    rows = [
        row("linear"),
        row("teacher"),
        row("pruned", compression_ratio=2.0),
        row("int4", shipped=False),
    ]
    assert results.verdict(rows).startswith("pruned against the teacher: 2.0x smaller")
    assert results.verdict(rows[:2]) == "the teacher as it is, 2.00 MB and 4.00 ms: macro-F1 0.8000"
    repeats = [
        one | {"repeat": name}
        for name, ratio in (("fold 1", 2.0), ("fold 2", 4.0), ("mean", 3.0))
        for one in (row("linear"), row("teacher"), row("fp16", compression_ratio=ratio))
    ]
    assert "3.0x smaller" in results.verdict(repeats)


def test_a_repeated_run_shows_the_means_and_adds_up_the_confusions(artifact):
    document, _ = read(artifact)
    repeats = [
        one | {"repeat": name, "size_mb": one["size_mb"] * factor}
        for name, factor in (("seed 1", 1), ("seed 2", 3))
        for one in document["rows"]
    ]
    for one, drop in zip(
        (one for one in repeats if one["stage"] == document["rows"][-1]["stage"]),
        (0.015, -0.03),
        strict=True,
    ):
        one |= {"shipped": drop < 0.01, "validation_drop": drop, "validation_macro_f1": 0.5}
    rows = repeats + mean_rows(repeats, 0.25)
    config = document["config"] | {"max_f1_drop": 0.01}
    html = run_page.run_page(
        document | {"rows": rows, "shipped": "seed 1", "config": config}, [], True
    )
    parsed = Parsed(html)
    assert "it loses 1.5 points of macro-F1 on validation" in parsed.text
    assert parsed.tables[0] == results.table_cells(rows) and len(parsed.tables[0]) == 1 + len(
        document["rows"]
    )
    assert parsed.tables[0][2][1] == f"{2 * document['rows'][1]['size_mb']:.2f}"
    assert "Means of 2 repeats" in parsed.text and "all repeats added up" in parsed.text
    assert [list(map(int, line[1:])) for line in parsed.tables[2][1:]] == [
        [2 * count for count in line] for line in document["rows"][1]["confusion"]
    ]


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


def test_a_plot_is_text_and_variables():
    points = [Point("one", 0.5, 0.7, 0.6, 0.8), Point("<two>", 80.0, 0.9)]
    svg = plots.quality_against(points, "MB", "size")
    assert ">one</text>" in svg and ">&lt;two&gt;</text>" in svg and 'role="img"' in svg
    assert (
        "var(--c1)" in svg
        and "font-family" not in svg
        and not re.search("#[0-9a-fA-F]{6}|http|<style|sans", svg)
    )
    assert "<title>Macro-F1 against MB; on the Pareto front: one, &lt;two&gt;</title>" in svg
    assert svg == plots.quality_against(points, "MB", "size")


def predictions(folder: Path, **of_rows: list) -> None:
    (folder / "predictions").mkdir(parents=True)
    (folder / "splits").mkdir()
    labels = of_rows.pop("labels")
    for name, scores in of_rows.items():
        table = pd.DataFrame({"id": range(len(labels)), "label": labels, "probabilities": scores})
        table.to_parquet(folder / "predictions" / f"{name}.parquet")
    texts = [f"text {i}" for i in range(len(labels))]
    pd.DataFrame({"id": range(len(labels)), "text": texts, "label": labels}).to_parquet(
        folder / "splits" / "test.parquet"
    )


def test_the_widest_differences_come_first(tmp_path):
    predictions(
        tmp_path,
        labels=[0, 1, 1],
        teacher=[[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]],
        fp16=[[0.8, 0.2], [0.9, 0.1], [0.1, 0.9]],
    )
    assert run_page.disagreements(tmp_path, "fp16", ["no", "yes"], False, 2) == [
        {"text": "text 1", "true": "yes", "teacher": "yes (0.80)", "final": "no (0.90)"},
        {"text": "text 2", "true": "yes", "teacher": "yes (0.60)", "final": "yes (0.90)"},
    ]


def test_differences_of_several_labels_name_the_widest(tmp_path):
    predictions(
        tmp_path,
        labels=[[1, 1], [0, 0]],
        teacher=[[0.9, 0.8], [0.2, 0.3]],
        int4=[[0.7, 0.1], [0.2, 0.2]],
    )
    assert run_page.disagreements(tmp_path, "int4", ["rude", "ad"], True, 1) == [
        {
            "text": "text 0",
            "true": "rude, ad",
            "teacher": "rude, ad (ad 0.80)",
            "final": "rude (ad 0.10)",
        }
    ]


def test_counts_of_several_labels_are_named():
    head, lines = html.label_confusion_table(["rude"], [("teacher", [[[50, 4], [3, 9]]])])
    assert dict(zip(head, lines[0], strict=True)) == {
        "Label": "rude",
        "teacher: hits": 9,
        "teacher: false alarms": 4,
        "teacher: misses": 3,
        "teacher: rightly not": 50,
    }


def test_what_would_hide_or_reorder_is_shown_by_number_and_what_writing_needs_stays():
    assert html.visible("a\u202eb\x00\u2066\u00ad") == "a[U+202E]b[U+0000][U+2066][U+00AD]"
    assert html.visible("ক\u200dষ\u200c\n👨\u200d👩") == "ক\u200dষ\u200c\n👨\u200d👩"


@pytest.fixture
def two_runs(artifact, tmp_path) -> list[str]:
    other = tmp_path / "other"
    shutil.copytree(artifact, other)
    document = results.read_results(other) | {"experiment": "<b>other"}
    document["config"]["dataset_path"] = "0.csv"
    (other / "results_final.json").write_text(json.dumps(document))
    return [str(artifact), str(other)]


def test_many_runs_are_compared_on_one_page(two_runs, tmp_path):
    assert report.main([*two_runs, "--html", str(tmp_path / "all.html")]) == 0
    html = (tmp_path / "all.html").read_text(encoding="utf-8")
    check_self_contained(html)
    parsed, rows = Parsed(html), results.read_results(two_runs[0])["rows"]
    final = results.table_cells(rows)[-1]
    assert parsed.tables[0] == [
        ["Run", "Form", *results.table_cells(rows)[0][1:]],
        ["run", *final],
        ["<b>other", *final],
    ]
    targets = {attributes.get("id") for _, attributes in parsed.tags}
    links = [attributes["href"][1:] for tag, attributes in parsed.tags if tag == "a"]
    assert links == ["run-1", "run-2"] and set(links) <= targets
    assert (
        parsed.text.count(results.verdict(rows)) == 2
        and "different data, each with plots" in parsed.text
    )
    fronts = [{line[0].rsplit(" ", 1)[0] for line in table[1:]} for table in parsed.tables[1:]]
    assert fronts == [{"run"}, {"<b>other"}] and html.count("<svg ") == 4
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize(
    "argv, said",
    [
        (
            ["{run}", "{folder}/absent", "--html", "{folder}/all.html"],
            "holds no results_final.json of a run",
        ),
        (
            ["{run}", "--html", "{folder}/none/all.html"],
            "none/all.html, but must be a file in a folder that is there",
        ),
        (["{run}", "--html", "{folder}"], "but must be a file in a folder that is there"),
        (["{run}", "--html", "x", "--format", "latex"], "not allowed with argument"),
        (["{run}", "--format", "spam"], "invalid choice: 'spam'"),
        (
            ["{folder}/no_teacher", "--html", "{folder}/all.html"],
            "but without a row linear and teacher",
        ),
        (
            ["{folder}/no_time", "--html", "{folder}/all.html"],
            "but latency_ms_p50 of teacher is None, no figure",
        ),
        (["{folder}/list"], "holds no results_final.json of a run"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(artifact, tmp_path, capsys, argv, said):
    documents = {
        "no_teacher": {"rows": [row("fp16")]},
        "list": [1],
        "no_time": {"rows": [row("linear"), row("teacher", latency_ms_p50=None)]},
    }
    for name, document in documents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results_final.json").write_text(json.dumps(document))
    assert report.main([word.format(run=artifact, folder=tmp_path) for word in argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1 and said in printed.err
    assert {path.name for path in tmp_path.iterdir()} == set(documents)


@pytest.mark.skipif(not chromium(), reason="no Chromium here")
def test_a_browser_shows_it_without_a_request_a_complaint_or_a_sideways_scroll(
    artifact, two_runs, tmp_path
):
    document, _ = read(artifact)
    report.main([*two_runs, "--html", str(tmp_path / "all.html")])
    first = "[...document.querySelector('table').rows].map(row => [...row.cells].map(cell => cell.innerText))"
    wanted = {
        artifact / "report.html": results.table_cells(document["rows"])[1:],
        tmp_path / "all.html": [
            ["run", *results.table_cells(document["rows"])[-1]],
            ["<b>other", *results.table_cells(document["rows"])[-1]],
        ],
    }
    with browser() as tab:
        for path, lines in wanted.items():
            tab.show(360)
            tab.open(path)
            assert tab.value(first)[1:] == lines
            for width in (360, 768, 1280):
                tab.show(width, "dark")
                assert tab.value(OVERFLOWING) <= 0, width
            assert (tab.requests(), tab.complaints()) == ([], [])


@pytest.mark.skipif(not chromium(), reason="no Chromium here")
def test_a_browser_tells_of_what_a_page_must_not_do(tmp_path):
    (tmp_path / "bad.html").write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
        "<meta name='viewport' content='width=device-width'>"
        f"<script>1</script><p>{'w' * 300}"
    )
    (tmp_path / "asks.html").write_text("<img src='other.png'>")
    with browser() as tab:
        tab.show(360)
        tab.open(tmp_path / "bad.html")
        assert tab.complaints() and tab.value(OVERFLOWING) > 0
        tab.open(tmp_path / "asks.html")
        assert [Path(url).name for url in tab.requests()] == ["other.png"]
