"""Files of predictions: every column is kept, rows with errors are reported, and a killed run
resumes to the same bytes. The model is a stand-in whose scores depend on the length of a text."""

import csv
import gzip
import io
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from counting_engine import LABELS, CountingEngine, expected_cells, expected_prediction

import inference
from corpus import row_formats
from corpus.input_files import ReadOptions, find_format, open_rows
from corpus.prediction_files import find_output_format, free_name, prediction_columns
from corpus.row_formats import Row
from engines import file_scoring
from engines.classifier import Classifier
from engines.file_scoring import (
    Job,
    Progress,
    Summary,
    job_identity,
    label_to_file,
    read_progress,
    row_windows,
)
from runtime.errors import UserError


def label(
    source: Path,
    output: Path,
    classifier: Classifier,
    *,
    batch: int = 4,
    with_scores: bool = False,
) -> Summary:
    """Label a file as `inference.py` does, with a classifier that is already loaded."""
    input_format, _ = find_format(source)
    output_format, codec = find_output_format(output)
    with open_rows(str(source), "--input", input_format, keep_invalid=True, find_keys=True) as file:
        text_column = inference.find_text_column(file.columns, None, None)
        added = prediction_columns(LABELS, file.columns, with_scores=with_scores)
        writer = inference.make_writer(
            input_format, output_format, file, added, multi_label=classifier.multi_label
        )
        job = Job(classifier, file, text_column, added, writer, batch)
        identity = job_identity(job, source, output_format, {})
        return label_to_file(job, output, output_format, codec, identity)


def csv_rows(path: Path, delimiter: str = ",") -> list[list[str]]:
    """The cells of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter=delimiter, strict=True))


def messages(caplog) -> list[str]:
    """What was logged."""
    return [record.getMessage() for record in caplog.records]


# ------------------------------------------------------------------------- columns and formats


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_cells_are_kept_in_their_order(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(file_scoring, "WINDOW_ROWS", 3)
    texts = [
        "plain",
        'she said "so"',
        "two\nlines, a comma",
        "  spaces ",
        "naïve 😀",
        'half"quote',
        "ends\r\nso",
        "lone \r return",
        "a text that is a good deal longer than all of the others",
    ]
    rows = [["01", texts[0]], *([f"{i}e3", text] for i, text in enumerate(texts[1:]))]
    content = io.StringIO()
    csv.writer(content, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows(
        [["id", "Text"], *rows]
    )
    source = tmp_path / "in.csv"
    source.write_bytes(content.getvalue().encode("utf-8-sig"))
    label(source, tmp_path / "out.csv", CountingEngine().classifier())
    assert csv_rows(tmp_path / "out.csv") == [
        ["id", "Text", "predicted_label", "predicted_score"],
        *([number, text, *expected_cells(text)] for number, text in rows),
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    for name, content in (
        ("in.csv", '"text"\na\n'),
        ("in.txt", "a\n"),
        ("in.jsonl", '{"text": "a"}\n'),
    ):
        engine = CountingEngine()
        (tmp_path / name).write_text("\ufeff" + content)
        label(tmp_path / name, tmp_path / f"{name}.out.csv", engine.classifier())
        assert engine.texts == ["a"]
        assert (tmp_path / f"{name}.out.csv").read_text().startswith("text,predicted_label")


@pytest.mark.parametrize(
    ("name", "delimiter"), [("in.tsv", "\t"), ("in.csv", ";"), ("in.csv", "|"), ("in.csv", "\t")]
)
def test_the_delimiter_is_detected_and_kept(tmp_path, name, delimiter):
    source = tmp_path / name
    source.write_text(f"id{delimiter}tweet\n1{delimiter}a, b\n")
    output = tmp_path / f"out{source.suffix}"
    label(source, output, CountingEngine().classifier())
    assert output.read_text().splitlines()[0].split(delimiter)[:2] == ["id", "tweet"]
    assert csv_rows(output, delimiter)[1] == ["1", "a, b", *expected_cells("a, b")]


def test_json_values_keep_their_types(tmp_path, caplog):
    lines = [
        '{"id": 1.0, "text": "caf\\u00e9", "big": 12345678901234567890123, "huge": 1e999}',
        "",
        '{"text":"b" , "x":{"y": [1, 2.5, true, null]} }',
        "[1]",
        '{"text": "c"',
        '{"text": [7]}',
        "{}",
        '{"text": "\\ud83d"}',
        '{"text": 7}',
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines))
    summary = label(source, tmp_path / "out.jsonl", CountingEngine().classifier())
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").open(encoding="utf-8")]
    none = {"predicted_label": None, "predicted_score": None}
    short = {"predicted_label": "short", "predicted_score": pytest.approx(0.930862, abs=1e-6)}
    assert written[0] == short | {
        "id": 1.0,
        "text": "café",
        "big": 12345678901234567890123,
        "huge": "1e999",
    }
    assert isinstance(written[0]["id"], float)
    assert written[1]["x"] == {"y": [1, 2.5, True, None]}
    assert written[2:5] == [{"text": [7]} | none, none, {"text": "\ufffd"} | none]
    assert written[5]["text"] == 7 and written[5]["predicted_label"] == "short"
    assert (summary.progress.scored, summary.progress.bad) == (3, 5)
    assert messages(caplog) == [
        "line 4 is not a JSON object; the row is not in the output",
        "line 5 is not a JSON object: Expecting ',' delimiter; the row is not in the output",
        "line 6 has a list or an object as its text",
        "line 7 has no text",
        "line 8 has a text that is not valid UTF-8",
    ]


def test_keys_that_occur_late_become_columns_of_a_csv(tmp_path):
    source = tmp_path / "in.jsonl"
    objects = [{"text": "a"}] * 200 + [{"text": "b", "late": [1, "x"]}]
    source.write_text("\n".join(map(json.dumps, objects)))
    label(source, tmp_path / "out.csv", CountingEngine().classifier())
    rows = csv_rows(tmp_path / "out.csv")
    assert rows[0] == ["text", "late", "predicted_label", "predicted_score"]
    assert rows[1] == ["a", "", *expected_cells("a")]
    assert rows[201] == ["b", '[1, "x"]', *expected_cells("b")]


def test_a_json_array_is_labeled_like_json_lines(tmp_path, caplog):
    source = tmp_path / "in.json"
    source.write_text(json.dumps([{"text": "a", "n": 1}, 3, {"text": "b"}], indent=1))
    label(source, tmp_path / "out.jsonl", CountingEngine().classifier())
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [row["text"] for row in written] == ["a", "b"] and written[0]["n"] == 1
    assert messages(caplog) == ["object 2 is not a JSON object; the row is not in the output"]


def test_parquet_columns_keep_their_types(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", None, "c"]),
            "number": pa.array([1, None, 3], pa.int16()),
            "when": pa.array([1, 2, None], pa.timestamp("ns")),
            "tags": pa.array([["x"], [], None], pa.list_(pa.string())),
            "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
            "price": pa.array([None, Decimal("1.50"), Decimal("2")], pa.decimal128(10, 2)),
            "raw": pa.array([b"\xff", b"", None]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    source = tmp_path / "in.parquet"
    label(source, tmp_path / "out.parquet", CountingEngine().classifier(), with_scores=True)
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.select(table.column_names).equals(table)
    _, best, long, short = expected_prediction("a")
    assert written.slice(0, 1).drop_columns(table.column_names).to_pylist() == [
        {
            "predicted_label": "short",
            "predicted_score": round(best, 6),
            "score_long": round(long, 6),
            "score_short": round(short, 6),
        }
    ]
    assert written["predicted_label"].to_pylist()[1] is None
    label(source, tmp_path / "out.csv", CountingEngine().classifier())
    assert csv_rows(tmp_path / "out.csv")[1][:7] == [
        "a",
        "1",
        "1970-01-01 00:00:00.000000001",
        '["x"]',
        "u",
        "",
        "\\xff",
    ]


def test_a_csv_becomes_a_parquet_file_of_texts(tmp_path):
    (tmp_path / "in.csv").write_text("id,text\n007,a\n,b\n")
    label(tmp_path / "in.csv", tmp_path / "out.parquet", CountingEngine().classifier())
    written = pq.read_table(tmp_path / "out.parquet")
    assert [str(kind) for kind in written.schema.types] == ["string", "string", "string", "double"]
    assert written["id"].to_pylist() == ["007", None]


def test_an_input_without_rows_becomes_an_output_with_the_columns(tmp_path):
    (tmp_path / "in.csv").write_text("id,text\n")
    for name in ("out.csv", "out.parquet"):
        summary = label(tmp_path / "in.csv", tmp_path / name, CountingEngine().classifier())
        assert summary.progress.rows == 0
    columns = ["id", "text", "predicted_label", "predicted_score"]
    assert csv_rows(tmp_path / "out.csv") == [columns]
    assert pq.read_table(tmp_path / "out.parquet").column_names == columns


def test_compressed_outputs_have_the_same_content(tmp_path):
    (tmp_path / "in.csv").write_text("id,text\n1,a\n")
    for name in ("out.csv", "out.csv.gz", "out.csv.zst"):
        label(tmp_path / "in.csv", tmp_path / name, CountingEngine().classifier())
    content = (tmp_path / "out.csv").read_bytes()
    assert gzip.decompress((tmp_path / "out.csv.gz").read_bytes()) == content
    with pa.input_stream(tmp_path / "out.csv.zst") as stream:
        assert stream.read() == content


def test_labels_of_a_multi_label_model_are_joined_in_csv_and_lists_elsewhere(tmp_path):
    """A text of 35 characters has the logits 3.5 and 3: both labels, probabilities .97 and .95."""
    (tmp_path / "in.txt").write_text("x" * 35 + "\n")
    classifier = CountingEngine().classifier(multi_label=True)
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        label(tmp_path / "in.txt", tmp_path / name, classifier, with_scores=True)
    assert csv_rows(tmp_path / "out.csv")[1][1:] == [
        "long|short",
        "0.970688",
        "0.970688",
        "0.952574",
    ]
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["predicted_label"], row["predicted_score"]) == (["long", "short"], 0.970688)
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["predicted_label"], row["score_short"]) == (["long", "short"], 0.952574)


def test_added_columns_never_replace_columns_of_the_input(tmp_path):
    header = "text,label,predicted_label,predicted_label_2,score_long"
    (tmp_path / "in.csv").write_text(f"{header}\na,1,2,3,4\n")
    label(
        tmp_path / "in.csv", tmp_path / "out.csv", CountingEngine().classifier(), with_scores=True
    )
    names, row = csv_rows(tmp_path / "out.csv")
    added = ["predicted_label_3", "predicted_score", "score_long_2", "score_short"]
    assert names == [*header.split(","), *added]
    assert row[:7] == ["a", "1", "2", "3", "4", *expected_cells("a")]


def test_labels_that_give_equal_column_names_get_numbers():
    assert free_name("a", {"a", "a_2"}) == "a_3"
    columns = prediction_columns(["a", "a_2"], ["score_a"], with_scores=True)
    assert columns.scores == ("score_a_2", "score_a_2_2")


# ------------------------------------------------------------------------------ rows with errors


def test_rows_with_errors_are_reported_with_their_line_and_do_not_stop_the_run(tmp_path, caplog):
    source = tmp_path / "in.csv"
    source.write_bytes(
        'ééé,text\n1,good\n2\n3,a,b\n\n4,\n5,"two\nlines"\n6,bad '.encode()
        + b'\xff\n\xfe7,fine\n8,"open\n9,last\n10,"x" y\n11,end\n'
    )
    summary = label(source, tmp_path / "out.csv", CountingEngine().classifier())
    assert csv_rows(tmp_path / "out.csv")[1:] == [
        ["1", "good", *expected_cells("good")],
        ["4", "", "", ""],
        ["5", "two\nlines", *expected_cells("two\nlines")],
        ["6", "bad \ufffd", "", ""],
        ["\ufffd7", "fine", *expected_cells("fine")],
        ["9", "last", *expected_cells("last")],
        ["11", "end", *expected_cells("end")],
    ]
    assert (summary.progress.scored, summary.progress.bad) == (5, 6)
    assert messages(caplog) == [
        "line 3 has 1 fields instead of 2; the row is not in the output",
        "line 4 has 3 fields instead of 2; the row is not in the output",
        "line 6 has no text",
        "line 9 has a text that is not valid UTF-8",
        "line 11 has text after a closing quote; the row is not in the output",
        "line 13 has text after a closing quote; the row is not in the output",
    ]


def test_a_stray_quote_far_from_the_end_costs_only_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(row_formats, "MAX_CELL_CHARS", 2**16)
    engine = CountingEngine()
    source = tmp_path / "in.csv"
    limit = csv.field_size_limit()
    rows = [f"row {i}" for i in range(20_000)]
    source.write_text("\n".join(["text", '"a, quoted text"', '"stray', *rows]))
    label(source, tmp_path / "out.csv", engine.classifier(), batch=1000)
    assert sorted(engine.texts) == sorted(["a, quoted text", *rows])
    assert csv.field_size_limit() == limit


def test_an_unquoted_file_loses_no_row(tmp_path, caplog):
    lines = []
    for i in range(300):
        quotes = ('"' if i == 5 else "", '"' if i == 44 else "")
        lines.append(f"{i}\t{quotes[0]}tweet {i}{quotes[1]}")
    source = tmp_path / "in.tsv"
    source.write_text("\n".join(["id\ttext", *lines]))
    summary = label(source, tmp_path / "out.jsonl", CountingEngine().classifier())
    assert (summary.progress.scored, summary.progress.bad) == (300, 0)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [row["id"] for row in written] == [str(i) for i in range(300)]
    assert written[5]["text"] == '"tweet 5'
    assert messages(caplog) == [
        f"note: {source} is read without quoting: line 7 has a quote that does not enclose a cell",
    ]
    lines[20] += "\textra"
    source.write_text("\n".join(["id\ttext", *lines]))
    reason = "line 7 may be the start of one quoted cell of 40 lines, or a row, and line 22 has not"
    with pytest.raises(UserError, match=reason):
        label(source, tmp_path / "other.jsonl", CountingEngine().classifier())
    assert not (tmp_path / "other.jsonl").exists()


def test_a_malformed_row_of_a_quoted_file_is_reported_and_the_others_have_no_quotes(
    tmp_path, caplog
):
    rows = [f'"text {i}";"pos"' for i in range(30)]
    rows[10] = '"text" said Bob";"pos"'
    source = tmp_path / "in.csv"
    source.write_text("\n".join(["text;label", *rows]))
    label(source, tmp_path / "out.jsonl", CountingEngine().classifier())
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [row["text"] for row in written] == [f"text {i}" for i in range(30) if i != 10]
    assert {row["label"] for row in written} == {"pos"}
    assert messages(caplog) == [
        "line 12 has text after a closing quote; the row is not in the output"
    ]


def test_a_stream_in_which_a_row_may_be_several_is_refused_there(tmp_path, monkeypatch):
    lines = ["id\ttext", "1\ta", '2\t"b', "3\tc", '4\td"', "5\te"]
    stdin = io.TextIOWrapper(io.BytesIO("\n".join(lines).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    read = []
    with (
        pytest.raises(UserError, match="--input is -, but line 3 may be the start of one quoted"),
        open_rows("-", "--input", "csv") as file,
    ):
        for row in file.rows:
            read.append(row.values["text"])
    assert read == ["a"]


@pytest.mark.parametrize(
    ("file_format", "content", "rows"),
    [
        ("tsv", "a, b; c, d\t1\ne\t0\n", [["a, b; c, d", "1"], ["e", "0"]]),
        ("csv", '\n"a\nb, c",1\n"d",0\n', [["a\nb, c", "1"], ["d", "0"]]),
        ("csv", '5" disk,1\nd,0\n', [['5" disk', "1"], ["d", "0"]]),
        ("tsv", '"a\nb"\t1\n', [["a\nb", "1"]]),
    ],
)
def test_a_stream_without_a_header_is_split_as_its_first_row(
    file_format, content, rows, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    options = ReadOptions(has_header=False)
    with open_rows("-", "--input", file_format, options=options) as file:
        assert [list((row.values or {}).values()) for row in file.rows] == rows


def test_a_letter_in_a_stream_is_one_row(monkeypatch, caplog):
    content = b'text,label\na,x\n"Hello, Bob\nsee you",x\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with open_rows("-", "--input", "csv") as file:
        assert [row.values["text"] for row in file.rows] == ["a", "Hello, Bob\nsee you"]
    assert messages(caplog) == [
        "note: the input has a quote from line 3 to line 4, which are read as one row"
    ]


def test_only_the_first_twenty_rows_with_errors_are_logged(tmp_path, caplog):
    source = tmp_path / "in.txt"
    source.write_text("\n" * 30 + "a\n")
    summary = label(source, tmp_path / "out.csv", CountingEngine().classifier())
    assert summary.progress.bad == 30
    assert len(caplog.records) == 21
    assert messages(caplog)[20] == "further rows with errors are only counted"


def test_a_damaged_file_is_rejected_although_rows_with_errors_are_not(tmp_path):
    damaged = {
        "nul.csv": b"text\na\0b\n",
        "cut.csv.gz": gzip.compress(b"text\na\n" * 1000)[:-9],
        "cut.parquet": b"PAR1",
        "array.json": b'[{"text": "a"}, {',
        "twice.csv": b"a,a\n1,2\n",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"^--input is .*{name}, but "):
            label(tmp_path / name, tmp_path / "out.csv", CountingEngine().classifier())


# ---------------------------------------------------------------------------- windows and progress


def test_only_one_window_is_read_ahead(monkeypatch):
    monkeypatch.setattr(file_scoring, "WINDOW_ROWS", 10)
    monkeypatch.setattr(file_scoring, "WINDOW_CHARS", 1000)
    read = 0

    def rows(size: int):
        nonlocal read
        for i in range(95):
            read += 1
            yield Row(i, size, {"text": "x"})

    ends = [(len(window), read) for window in row_windows(rows(1))]
    assert ends == [(10, 10 * (i + 1)) for i in range(9)] + [(5, 95)]
    assert {len(window) for window in row_windows(rows(400))} == {3, 2}


@pytest.fixture
def source_of_five_windows(tmp_path, monkeypatch) -> Path:
    """50 texts in five windows, six of them rows with errors, and in 15 batches."""
    monkeypatch.setattr(file_scoring, "WINDOW_ROWS", 10)
    lines = []
    for i in range(50):
        text = f"text {i}{'x' * (i % 7)}\n" if i % 9 else " "
        lines.append(f'{i},"{text}"\n')
    source = tmp_path / "in.csv"
    source.write_text("id,text\n" + "".join(lines))
    return source


@pytest.mark.parametrize("passes", [0, 1, 3, 8, 13])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl.gz", ".parquet"])
def test_a_killed_run_resumes_and_the_file_is_byte_identical(
    source_of_five_windows, tmp_path, suffix, passes
):
    undisturbed_output = tmp_path / f"undisturbed{suffix}"
    output = tmp_path / f"out{suffix}"
    second = CountingEngine()
    undisturbed = label(source_of_five_windows, undisturbed_output, CountingEngine().classifier())
    with pytest.raises(RuntimeError):
        label(source_of_five_windows, output, CountingEngine(passes).classifier())
    assert not output.exists()
    with (tmp_path / f"out{suffix}.partial").open("ab") as partial:
        partial.write(b"half a window" * 1000)
    resumed = label(source_of_five_windows, output, second.classifier())
    assert output.read_bytes() == undisturbed_output.read_bytes()
    assert resumed.progress == undisturbed.progress and resumed.progress.bad == 6
    assert resumed.rows == len(second.texts) and (resumed.rows < undisturbed.rows) == (passes >= 3)
    assert sorted(path.name for path in tmp_path.glob("out*")) == [f"out{suffix}"]


@pytest.mark.parametrize(
    "change", ["model", "batch", "scores", "input", "shorter output", "damaged record"]
)
def test_after_any_change_a_killed_run_starts_again(source_of_five_windows, tmp_path, change):
    output = tmp_path / "out.csv"
    engine = CountingEngine()
    options = {"batch": 4, "with_scores": False}
    fingerprint = "f"
    with pytest.raises(RuntimeError):
        label(source_of_five_windows, output, CountingEngine(8).classifier())
    assert (tmp_path / "out.csv.partial.json").exists()
    if change == "model":
        fingerprint = "g"
    elif change == "batch":
        options["batch"] = 5
    elif change == "scores":
        options["with_scores"] = True
    elif change == "input":
        source_of_five_windows.write_text(source_of_five_windows.read_text() + "one more\n")
    elif change == "shorter output":
        (tmp_path / "out.csv.partial").write_bytes(b"text")
    else:
        (tmp_path / "out.csv.partial.json").write_text("{")
    summary = label(source_of_five_windows, output, engine.classifier(fingerprint), **options)
    assert summary.rows == summary.progress.scored == len(engine.texts)


def test_another_text_column_is_another_job(tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("text,title\na,b\n")
    identities = []
    with open_rows(str(source), "--input", "csv", keep_invalid=True, find_keys=True) as file:
        added = prediction_columns(LABELS, file.columns, with_scores=False)
        for text_column in ("text", "text", "title"):
            job = Job(CountingEngine().classifier(), file, text_column, added, None, batch=4)
            identities.append(job_identity(job, source, "csv", {}))
    assert identities[0] == identities[1] != identities[2]


def test_without_a_record_of_progress_a_run_starts_at_the_beginning():
    assert read_progress(Path("no such file"), {}) == Progress()


def test_a_late_key_with_the_name_of_an_added_column_is_an_error_of_its_row(tmp_path, caplog):
    """Possible only on stdin, where the keys of later objects are not known in advance."""
    rows = [Row(1, 9, {"text": "a"}), Row(2, 9, {"text": "b", "predicted_label": 1})]
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    with open_rows(str(tmp_path / "in.jsonl"), "--input", "jsonl", find_keys=True) as file:
        file = replace(file, rows=iter(rows))
        added = prediction_columns(LABELS, file.columns, with_scores=False)
        writer = inference.make_writer("jsonl", "jsonl", file, added, multi_label=False)
        job = Job(CountingEngine().classifier(), file, "text", added, writer, 4)
        out = io.BytesIO()
        summary = file_scoring.label_rows(job, out, Progress())
    assert (summary.progress.scored, summary.progress.bad) == (1, 1)
    assert len(out.getvalue().splitlines()) == 1
    assert messages(caplog)[0].startswith("line 2 has the key predicted_label, which earlier rows")
