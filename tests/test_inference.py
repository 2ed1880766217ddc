"""`inference.py` as a user calls it: files of every kind, stdin, interruptions, packages."""

import csv
import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from counting_engine import CountingEngine
from missing_packages import hide_package
from served_models import CLASSES, TEXTS, build_multi_label_model, build_two_class_model
from tiny_models import WORDS

import inference
from corpus.input_files import table_columns
from engines import autoselect, file_scoring
from engines.classifier import load
from inference import main
from runtime.artifacts import write_record

ROOT = Path(__file__).resolve().parent.parent
BANGLA = Path(os.environ.get("REAL_DATA_DIR", "absent")) / "bangla_hatespeech_binary.csv"
ADDED = ["predicted_label", "predicted_score"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Two classes, one format per engine."""
    return build_two_class_model(tmp_path_factory.mktemp("model"), every_format=True)


@pytest.fixture(scope="module")
def multi_label_model(tmp_path_factory) -> Path:
    """Three labels of which any number may apply."""
    return build_multi_label_model(tmp_path_factory.mktemp("multi"))


@pytest.fixture
def model_copy(model, tmp_path) -> Path:
    """A copy of the two-class model that a test may change."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def short_timings_and_restored_environment(tmp_path, monkeypatch) -> None:
    """A separate cache of choices, short comparisons, and the environment that `main` changes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "false")
    monkeypatch.setattr(autoselect, "PAIR_BUDGET_S", 0.0)
    monkeypatch.setattr(autoselect, "SPIN_S", 0.0)


def arguments(model: Path, source: Path | str, output: Path | None = None) -> list[str]:
    """The command line that labels a file with ONNX on one thread."""
    argv = ["--model", str(model), "--engine", "onnx", "--threads", "1", "--input", str(source)]
    return argv if output is None else [*argv, "--output", str(output)]


def read_rows(path: Path, delimiter: str = ",") -> list[list[str]]:
    """The cells of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter=delimiter, strict=True))


# ---------------------------------------------------- a file that can be trained on can be labeled


@pytest.fixture(scope="module")
def comments() -> list[list[str]]:
    """Header and rows of a real Bangla file, or of a synthetic one if the real one is absent."""
    if BANGLA.exists():
        return read_rows(BANGLA)
    texts = ["গান ভালো, 😀", 'তিনি বলেন "না"', "দুই\nলাইন"]
    return [["Comments", "HateSpeech"], *([f"{texts[i % 3]} {i}", str(i % 2)] for i in range(300))]


@pytest.fixture(scope="module")
def labeled_rows(model, comments, tmp_path_factory) -> list[list[str]]:
    """The rows of a plain CSV with the predicted label and its probability."""
    folder = tmp_path_factory.mktemp("plain")
    write_rows(folder / "in.csv", comments)
    argv = [*arguments(model, folder / "in.csv", folder / "out.csv"), "--text_column", "Comments"]
    assert main(argv) == 0
    rows = read_rows(folder / "out.csv")
    assert [row[:2] for row in rows] == comments
    return rows


def write_rows(path: Path, rows: list[list[str]], encoding: str = "utf-8") -> None:
    """A CSV."""
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)


def close(rows: list[list[str]], expected: list[list[str]]) -> bool:
    """Whether rows are equal but for the last digit of the probability in the last column."""
    assert [row[:-1] for row in rows] == [row[:-1] for row in expected]
    scores = [float(row[-1]) for row in rows[1:]]
    return scores == pytest.approx([float(row[-1]) for row in expected[1:]], abs=2e-6)


def test_a_gzipped_csv_is_labeled(model, comments, labeled_rows, tmp_path):
    write_rows(tmp_path / "in.csv", comments)
    content = gzip.compress((tmp_path / "in.csv").read_bytes())
    (tmp_path / "in.csv.gz").write_bytes(content)
    argv = arguments(model, tmp_path / "in.csv.gz", tmp_path / "out.csv.gz")
    assert main([*argv, "--text_column", "Comments"]) == 0
    text = gzip.decompress((tmp_path / "out.csv.gz").read_bytes()).decode()
    assert close(list(csv.reader(io.StringIO(text, newline=""))), labeled_rows)


def test_a_parquet_file_is_labeled(model, comments, labeled_rows, tmp_path):
    texts, labels = zip(*comments[1:], strict=True)
    table = pa.table({"Comments": texts, "HateSpeech": [int(label) for label in labels]})
    pq.write_table(table, tmp_path / "in.parquet")
    argv = arguments(model, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert main([*argv, "--text_column", "Comments"]) == 0
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.select(["Comments", "HateSpeech"]).equals(table)
    rows = [written.column_names]
    for row in written.to_pylist():
        rows.append([str(value) for value in row.values()])
    assert close(rows, labeled_rows)


def test_a_json_lines_file_is_labeled(model, comments, labeled_rows, tmp_path):
    objects = [{"Comments": text, "HateSpeech": int(label)} for text, label in comments[1:]]
    lines = [json.dumps(row, ensure_ascii=False) for row in objects]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    argv = arguments(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert main([*argv, "--text_column", "Comments"]) == 0
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").open(encoding="utf-8")]
    assert [{name: row[name] for name in comments[0]} for row in written] == objects
    rows = [list(written[0])]
    for row in written:
        rows.append([str(value) for value in row.values()])
    assert close(rows, labeled_rows)


def test_a_utf16_csv_is_labeled(model, comments, labeled_rows, tmp_path, caplog):
    caplog.set_level("INFO")
    write_rows(tmp_path / "in.csv", comments, "utf-16")
    argv = arguments(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert main([*argv, "--text_column", "Comments"]) == 0
    assert close(read_rows(tmp_path / "out.csv"), labeled_rows)
    assert caplog.records[0].getMessage().endswith("in.csv is read as utf-16-le")


def test_a_cp1252_csv_with_accents_is_labeled(model, tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [["Comments", "n"], ["“The café’s façade – superb”", "1"], ["a résumé; 5€", "2"]]
    write_rows(tmp_path / "in.csv", rows, "cp1252")
    argv = arguments(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert main([*argv, "--text_column", "Comments"]) == 0
    written = read_rows(tmp_path / "out.csv")
    assert [row[:2] for row in written] == rows
    assert {row[2] for row in written[1:]} <= set(CLASSES)
    assert (
        caplog.records[0]
        .getMessage()
        .partition(";")[0]
        .endswith("in.csv is not UTF-8 and is read as cp1252")
    )


def test_a_csv_with_a_column_called_label_is_labeled(model, comments, labeled_rows, tmp_path):
    write_rows(tmp_path / "in.csv", [["Comments", "label"], *comments[1:]])
    argv = arguments(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert main([*argv, "--text_column", "Comments"]) == 0
    written = read_rows(tmp_path / "out.csv")
    assert written[0] == ["Comments", "label", *ADDED]
    assert close(written, [written[0], *labeled_rows[1:]])


def test_a_txt_file_with_the_trained_column_is_a_table_and_another_one_is_lines(
    model_copy, tmp_path
):
    write_record(model_copy, stage="artifact", fingerprint="abc", text_column="Comments")
    rows = [["Comments", "n"], ["ba be", "1"], ["bi, bo", "2"]]
    write_rows(tmp_path / "table.txt", rows)
    assert main(arguments(model_copy, tmp_path / "table.txt", tmp_path / "table.csv")) == 0
    assert [row[:2] for row in read_rows(tmp_path / "table.csv")] == rows
    (tmp_path / "lines.txt").write_text("ba, be\nbi, bo\n")
    assert main(arguments(model_copy, tmp_path / "lines.txt", tmp_path / "lines.csv")) == 0
    written = read_rows(tmp_path / "lines.csv")
    assert [row[0] for row in written] == ["text", "ba, be", "bi, bo"]


def test_quotes_in_lines_of_text_are_not_judged_as_a_table(model, tmp_path, caplog):
    lines = ['He said, "hello"', '"Quoted" start, of a line', "plain, line"] * 3
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    assert main(arguments(model, tmp_path / "lines.txt", tmp_path / "lines.csv")) == 0
    assert [row[0] for row in read_rows(tmp_path / "lines.csv")[1:]] == lines
    assert "quot" not in caplog.text.replace(str(tmp_path), "")


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8-sig"])
def test_the_columns_of_a_table_are_found_in_its_beginning(encoding, tmp_path):
    (tmp_path / "table.txt").write_bytes("Kommentär;n\nba be;1\n".encode(encoding))
    assert table_columns(str(tmp_path / "table.txt")) == ("Kommentär", "n")
    assert table_columns(str(tmp_path / "missing.txt")) == ()


def test_an_output_that_was_labeled_can_be_labeled_again(model, tmp_path):
    (tmp_path / "in.csv").write_text("text\nba be\n")
    assert main(arguments(model, tmp_path / "in.csv", tmp_path / "out.csv")) == 0
    assert main(arguments(model, tmp_path / "out.csv", tmp_path / "again.csv")) == 0
    header, row = read_rows(tmp_path / "again.csv")
    assert header == ["text", *ADDED, "predicted_label_2", "predicted_score_2"]
    assert row[1:3] == row[3:]


# ---------------------------------------------------------------- what is written, and to where


def test_texts_are_printed_one_per_line(model, multi_label_model, capsys):
    texts = [*TEXTS[:3], f"{WORDS[3]}\n{WORDS[4]}"]
    assert main(["--model", str(model), "--engine", "onnx", "--threads", "1", *texts]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    answers = load(model, "onnx", threads=1)(texts)
    assert [line[0] for line in lines] == [answer["label"] for answer in answers]
    assert lines[3][2] == f"{WORDS[3]} {WORDS[4]}"
    scores = answers[0]["scores"]
    assert lines[0][1] == f"fair={scores['fair']:.3f} foul={scores['foul']:.3f}"
    argv = ["--model", str(multi_label_model), "--engine", "onnx", "--threads", "1", TEXTS[0]]
    assert main(argv) == 0
    assert capsys.readouterr().out.split("\t")[1].startswith("ad=")


def test_a_file_is_labeled_as_python_labels_its_texts(multi_label_model, tmp_path, caplog):
    caplog.set_level("INFO")
    source = tmp_path / "in.tsv"
    output = tmp_path / "out.tsv"
    source.write_text("comment\tn\n" + "".join(f"{text}\t{i}\n" for i, text in enumerate(TEXTS)))
    assert main([*arguments(multi_label_model, source, output), "--scores"]) == 0
    with output.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    answers = load(multi_label_model, "onnx", threads=1)(TEXTS)
    assert list(rows[0]) == ["comment", "n", *ADDED, "score_ad", "score_rude", "score_sad"]
    assert [row["comment"] for row in rows] == TEXTS
    assert [row["n"] for row in rows] == [str(i) for i in range(90)]
    for row, answer in zip(rows, answers, strict=True):
        assert row["predicted_label"] == ("|".join(answer["label"]) or "[]")
        best = max(answer["scores"].values())
        assert float(row["predicted_score"]) == pytest.approx(best, abs=1e-5)
        for name, score in answer["scores"].items():
            assert float(row[f"score_{name}"]) == pytest.approx(score, abs=1e-5)
    assert caplog.records[-1].getMessage().startswith("90 rows labeled, 0 rows with errors; ")


def test_the_column_that_the_model_was_trained_on_is_read_unless_another_is_named(
    model_copy, tmp_path
):
    write_record(
        model_copy, stage="artifact", fingerprint="0", forms={}, text_column="Comment Body"
    )
    source = tmp_path / "in.csv"
    output = tmp_path / "out.csv"
    source.write_text("text;posted at;Comment Body\nba be;2024;day\n")
    argv = [*arguments(model_copy, source, output), "--overwrite", "--scores"]
    for more, text in (([], "day"), (["--text_column", "text"], "ba be")):
        assert main([*argv, *more]) == 0
        (answer,) = load(model_copy, "onnx", threads=1)([text])
        scores = [float(cell) for cell in read_rows(output, ";")[1][-2:]]
        assert scores == pytest.approx(list(answer["scores"].values()), abs=1e-5)
    source.write_text("text\nba be\n")
    assert main(argv) == 0


def run_command(command: list[str], **options) -> subprocess.CompletedProcess:
    """`python inference.py` in a process."""
    return subprocess.run(
        [sys.executable, "inference.py", *command],
        cwd=ROOT,
        text=True,
        capture_output=True,
        **options,
    )


def test_stdin_goes_to_stdout_and_a_closed_pipe_is_not_an_error(model):
    command = " ".join([sys.executable, "inference.py", *arguments(model, "-")])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 2"],
        cwd=ROOT,
        input="\n".join(TEXTS * 100),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("text,predicted_label,predicted_score\n")
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr


def test_json_lines_on_stdin_become_json_lines_on_stdout(model):
    rows = '{"text": "a"}\n{"text": " "}\n'
    done = run_command([*arguments(model, "-"), "--format", "jsonl"], input=rows)
    assert [list(json.loads(line)) for line in done.stdout.splitlines()] == [["text", *ADDED]] * 2
    assert "line 2 has a blank text" in done.stderr
    assert "1 rows labeled, 1 rows with errors" in done.stderr


def test_a_csv_on_stdin_keeps_its_columns_and_delimiter(model):
    done = run_command(
        [*arguments(model, "-"), "--format", "csv"], input='id;text\n1;"a;\nb"\n2\n3;c\n'
    )
    rows = list(csv.reader(io.StringIO(done.stdout), delimiter=";"))
    assert [row[:2] for row in rows] == [["id", "text"], ["1", "a;\nb"], ["3", "c"]]
    assert rows[0][2:] == ADDED and "line 4 has 1 fields instead of 2" in done.stderr


def test_only_rows_with_errors_give_exit_code_1_and_no_rows_give_0(model, tmp_path):
    argv = [*arguments(model, tmp_path / "in.csv", tmp_path / "out.csv"), "--overwrite"]
    for content, code in (("text,n\n,1\n", 1), ("text,n\n", 0)):
        (tmp_path / "in.csv").write_text(content)
        assert main(argv) == code


# ------------------------------------------------------------------------------- interruptions


@pytest.fixture
def source_of_five_windows(tmp_path, monkeypatch) -> Path:
    """50 texts in five windows."""
    monkeypatch.setattr(file_scoring, "WINDOW_ROWS", 10)
    source = tmp_path / "in.csv"
    source.write_text("text\n" + "".join(f"text {i}{'x' * (i % 7)}\n" for i in range(50)))
    return source


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt, 130, "interrupted; run the same command again to resume"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: no space left in "),
    ],
    ids=["Ctrl-C", "full disk"],
)
def test_after_an_interruption_the_same_command_resumes(
    source_of_five_windows, tmp_path, monkeypatch, capsys, model, error, code, message
):
    argv = arguments(model, source_of_five_windows, tmp_path / "out.csv")
    interrupted = CountingEngine(3, error)
    monkeypatch.setattr(inference, "load", lambda *_: interrupted.classifier())
    assert main([*argv, "--batch", "8"]) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"inference.py: {message}")
    again = CountingEngine()
    monkeypatch.setattr(inference, "load", lambda *_: again.classifier())
    assert main([*argv, "--batch", "8"]) == 0 and 0 < len(again.texts) < 50
    assert len(read_rows(tmp_path / "out.csv")) == 51


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_process_that_is_killed_resumes_to_the_same_file(model, tmp_path, suffix):
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{text} {i}\n" for i in range(700) for text in TEXTS))
    undisturbed = tmp_path / f"undisturbed{suffix}"
    output = tmp_path / f"out{suffix}"
    command = [sys.executable, "inference.py", *arguments(model, source, output)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    progress = tmp_path / f"out{suffix}.partial.json"
    while not progress.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9 and not output.exists()
    done = run_command(arguments(model, source, output))
    assert done.returncode == 0 and "resuming " in done.stderr, done.stderr
    assert run_command(arguments(model, source, undisturbed)).returncode == 0
    assert output.read_bytes() == undisturbed.read_bytes()
    assert not progress.exists()


# ------------------------------------------------------------------------------------- packages


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_graphs_are_served_without_torch_and_text_files_without_pyarrow(model, tmp_path, engine):
    (tmp_path / "in.txt").write_text("a\nb\n")
    argv = ["--model", str(model), "--engine", engine, "--threads", "1"]
    argv += ["--input", str(tmp_path / "in.txt")]
    script = f"""
import sys
from inference import main
code = main({argv!r})
heavy = {{"torch", "transformers", "pandas", "datasets", "yaml", "psutil", "zstandard", "pyarrow",
         "joblib"}}
print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
    assert len(list(csv.reader(io.StringIO(done.stdout)))) == 3


def test_parquet_is_labeled_without_torch_and_pandas(model, tmp_path):
    """Values in nanoseconds are what pyarrow needs pandas for."""
    table = pa.table({"text": ["a"], "when": pa.array([1], pa.timestamp("ns"))})
    pq.write_table(table, tmp_path / "in.parquet")
    for name in ("out.parquet", "out.csv"):
        argv = arguments(model, tmp_path / "in.parquet", tmp_path / name)
        script = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "pandas"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from inference import main
sys.exit(main({argv!r}))
"""
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["text", "when", *ADDED]
    assert read_rows(tmp_path / "out.csv")[1][1] == "1970-01-01 00:00:00.000000001"


def test_pyarrow_is_asked_for_only_if_a_file_needs_it(model, tmp_path, monkeypatch, capsys):
    hide_package(monkeypatch, "pyarrow")
    (tmp_path / "in.csv").write_text("text\na\n")
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(b"text\na\n"))
    assert main(arguments(model, tmp_path / "in.csv", tmp_path / "out.csv")) == 0
    for name, output, rejected in (
        ("in.csv", "out.parquet", "--output is {}/out.parquet"),
        ("in.csv", "out.csv.zst", "--output is {}/out.csv.zst"),
        ("in.csv.gz", "new.csv", "--input is {}/in.csv.gz"),
    ):
        assert main(arguments(model, tmp_path / name, tmp_path / output)) == 2
        expected = f"{rejected.format(tmp_path)}, but needs pyarrow: pip install pyarrow"
        assert expected in capsys.readouterr().err


def pins(name: str) -> list[str]:
    """The lines of a requirements file, without comments."""
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_serving_requirements_have_the_versions_of_the_others():
    serving = pins("requirements-serve.txt")
    assert set(serving) <= set(pins("requirements.txt"))
    names = {line.split("==")[0] for line in serving}
    assert names == {"onnxruntime", "openvino", "tokenizers", "numpy", "tqdm", "pyarrow"}


def feed(path: Path, content: bytes) -> threading.Thread:
    """A thread that writes `content` into a named pipe as soon as it is read."""
    thread = threading.Thread(target=path.write_bytes, args=(content,), daemon=True)
    thread.start()
    return thread


def test_a_named_pipe_is_labeled_like_a_file(model, tmp_path):
    content = "text,n\n" + "".join(f'"{text}, so",{i}\n' for i, text in enumerate(TEXTS))
    (tmp_path / "in.csv").write_text(content)
    options = ["--model", str(model), "--engine", "onnx", "--threads", "1"]
    argv = [*options, "--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "a.csv")]
    assert main(argv) == 0
    os.mkfifo(tmp_path / "pipe.csv")
    thread = feed(tmp_path / "pipe.csv", content.encode())
    argv = [*options, "--input", str(tmp_path / "pipe.csv"), "--output", str(tmp_path / "b.csv")]
    assert main(argv) == 0
    thread.join()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.partial*")) == []


def test_dev_stdin_is_stdin(model, tmp_path, capsysbinary, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"text\nhello there\n")))
    argv = ["--model", str(model), "--engine", "onnx", "--threads", "1"]
    assert main([*argv, "--input", "/dev/stdin", "--format", "csv"]) == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert lines[0] == "text,predicted_label,predicted_score"
    assert lines[1].startswith("hello there,")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        (
            "pipe.csv.gz",
            "",
            "and compressed, but stdin or a pipe must be plain text; give the file",
        ),
        ("pipe.parquet", "", "and Parquet, but stdin or a pipe must be plain text; give the file"),
        ("pipe.jsonl", "--output {}/out.csv", "--output is"),
        ("pipe.txt", "--no_header", "--no_header is given, but the format is txt, not csv or tsv"),
        ("pipe.csv", "--max_input_gb 0", "--max_input_gb is 0, but must be a number above 0"),
        ("pipe.csv", "--max_input_gb nan", "--max_input_gb is nan, but must be a number above 0"),
    ],
)
def test_what_a_pipe_cannot_be_is_refused_before_it_is_opened(
    name, words, said, model, tmp_path, capsys
):
    os.mkfifo(tmp_path / name)
    argv = ["--model", str(model), "--input", str(tmp_path / name)]
    assert main([*argv, *words.format(tmp_path).split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_file_without_a_header_is_labeled_with_no_header(model, tmp_path, capsysbinary, caplog):
    (tmp_path / "in.csv").write_text("hello there\nsecond text\n")
    argv = ["--model", str(model), "--engine", "onnx", "--threads", "1"]
    argv += ["--input", str(tmp_path / "in.csv")]
    assert main(argv) == 0
    assert len(capsysbinary.readouterr().out.decode().splitlines()) == 2
    assert "the first line is read as the header, and 'hello there' as the column" in caplog.text
    assert main([*argv, "--no_header"]) == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert lines[0] == "column_1,predicted_label,predicted_score" and len(lines) == 3
