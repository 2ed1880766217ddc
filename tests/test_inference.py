"""The scorer: it decides as the engines do, gives back what it read, goes on where it was
killed, and refuses."""

import csv
import errno
import io
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_quantization import CONFIGS, WORDS, save_pruned_model, save_tokenizer, sentences
from transformers import BertConfig

import inference
import task
from compression_config import UserError
from corpus import row_formats
from corpus.row_formats import Lines
from engines import autoselect, classifier, engine
from engines.classifier import Classifier, load, token_batches
from engines.engine import Engine, predict_logits
from engines.graphs import write_graphs, write_onnx
from inference import Progress, main, row_windows, score_file, scoring_identity
from runtime.artifacts import write_record
from task import decide

ROOT = Path(__file__).resolve().parent.parent
FORMS = ("torch", "onnx/model.onnx", "openvino/openvino_model.xml")
TOKENS = 48
TEXTS = sentences(90, seed=5)


def build(path: Path, config: BertConfig, every_form: bool) -> Path:
    save_pruned_model("bert", path, config)
    save_tokenizer("bert", path)
    about = json.loads((path / "tokenizer_config.json").read_text()) | {"model_max_length": TOKENS}
    (path / "tokenizer_config.json").write_text(json.dumps(about))
    balance(path)
    if every_form:
        write_graphs(path)
    else:
        (path / "onnx").mkdir()
        write_onnx(path, path / "onnx" / "model.onnx")
    write_record(path, stage="artifact", fingerprint="0", forms={})
    return path


def balance(path: Path) -> None:
    """Shift the head's bias so that each label holds for some of the texts."""
    weights = load_file(path / "model.safetensors")
    logits = predict_logits(engine.load_engine(path, "torch", TOKENS, threads=1), TEXTS)
    weights["classifier.bias"] -= torch.from_numpy(logits.mean(axis=0))
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def config(problem_type: str, *labels: str) -> BertConfig:
    shape = {
        name: value
        for name, value in CONFIGS["bert"].to_dict().items()
        if name not in ("id2label", "label2id", "num_labels", "problem_type", "model_type")
    }
    return BertConfig(
        **shape,
        problem_type=problem_type,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Two classes, a form in each engine."""
    return build(
        tmp_path_factory.mktemp("model"),
        config("single_label_classification", "fair", "foul"),
        True,
    )


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory) -> Path:
    """Three labels that overlap, an ONNX graph beside the checkpoint."""
    return build(
        tmp_path_factory.mktemp("multi"),
        config("multi_label_classification", "ad", "rude", "sad"),
        False,
    )


@pytest.fixture
def copied(model, tmp_path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch) -> None:
    """A cache of its own, short duels, and the environment that `main` changes given back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "false")
    monkeypatch.setattr(autoselect, "PAIR_BUDGET_S", 0.0)
    monkeypatch.setattr(autoselect, "SPIN_S", 0.0)


class Counting:
    """An engine whose logits tell how long a text is; it counts texts and can die in the middle."""

    def __init__(
        self, passes: int = 10**9, error: BaseException | type[BaseException] = RuntimeError
    ):
        self.passes, self.error, self.texts = passes, error, []

    def forward(self, rows: list[str]) -> np.ndarray:
        if self.passes == 0:
            raise self.error
        self.passes -= 1
        self.texts += rows
        return np.array([[len(text) / 10, 3.0] for text in rows], np.float32)

    def classifier(self, fingerprint: str = "f") -> Classifier:
        return Classifier(
            Engine(list, list, self.forward), ("long", "short"), False, "fake", 1, fingerprint
        )


def score(source: Path, output: Path, classifier: Classifier, batch: int = 4) -> inference.Summary:
    kind = row_formats.SUFFIXES[source.suffix]
    with source.open("rb") as stream:
        lines = Lines(stream)
        table = row_formats.TABLES[kind](lines, kind, None, None, classifier.labels, str(source))
        return score_file(
            classifier,
            table,
            lines,
            output,
            batch,
            scoring_identity(source, classifier, table, batch, {}),
        )


def scored(text: str) -> str:
    """The cells that the counting engine's scores give a text."""
    odds = float(np.exp(np.float32(len(text) / 10) - np.float32(3)))
    label, share = ("long" if odds > 1 else "short"), odds / (1 + odds)
    return f"{label},{share:.6f},{1 - share:.6f}"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_decides_as_its_engine_does(model, form):
    logits = predict_logits(engine.load_engine(model, form, TOKENS, threads=1), TEXTS)
    answers = load(model, form, threads=1)(TEXTS)
    assert [answer["label"] for answer in answers] == [
        ("fair", "foul")[i] for i in decide(logits, False)
    ]
    assert {answer["label"] for answer in answers} == {"fair", "foul"}
    shares = np.array([list(answer["scores"].values()) for answer in answers])
    assert np.abs(shares - task.probabilities(logits, False)).max() < 1e-5
    assert list(answers[0]["scores"]) == ["fair", "foul"]


def test_labels_that_overlap_come_as_a_list_that_may_be_empty(overlapping):
    logits = predict_logits(engine.load_engine(overlapping, "onnx", TOKENS, threads=1), TEXTS)
    answers = load(overlapping, "onnx", threads=1)(TEXTS)
    names = np.array(["ad", "rude", "sad"])
    assert [answer["label"] for answer in answers] == [list(names[row > 0]) for row in logits]
    assert {len(answer["label"]) for answer in answers} >= {1, 2}
    assert all(
        (answer["scores"][name] > 0.5) == (name in answer["label"])
        for answer in answers
        for name in names
    )


def test_a_text_in_place_of_a_list_of_texts_is_an_error_and_no_texts_are_no_answers(model):
    predict = load(model, "onnx", threads=1)
    assert predict([]) == []
    for wrong in ("a text", [None], [1.0]):
        with pytest.raises(TypeError, match="a list of strings"):
            predict(wrong)


def test_texts_longer_than_the_model_reads_are_cut(model):
    predict = load(model, "onnx", threads=1)
    long, longer = (predict([" ".join([WORDS[0]] * count)])[0] for count in (TOKENS, 40 * TOKENS))
    assert long == longer


def test_batches_hold_every_row_once_within_the_budget():
    rng = random.Random(0)
    lengths = [rng.randint(1, 600) for _ in range(500)]
    batches = token_batches(lengths, 32)
    assert sorted(row for rows in batches for row in rows) == list(range(500))
    padded = [len(rows) * max(lengths[row] for row in rows) for rows in batches]
    assert max(padded) <= classifier.BATCH_TOKENS and max(map(len, batches)) == 32
    assert token_batches([9000, 1], 32) == [[0], [1]]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_columns_are_kept_byte_for_byte_and_in_order(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(classifier, "WINDOW_ROWS", 3)
    rows = [
        "1,plain",
        '"2","she said ""so"""',
        '03,"two\nlines, a comma"',
        "4,  spaces ",
        "5,naïve 😀",
        '6,half"quote',
        '1e3,"ends\r\nso"',
        "8,a text that is a good deal longer than all of the others",
    ]
    texts = [
        "plain",
        'she said "so"',
        "two\nlines, a comma",
        "  spaces ",
        "naïve 😀",
        'half"quote',
        "ends\r\nso",
    ]
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(("\ufeff" + ending.join(["id,Text", *rows])).encode())
    score(source, output, Counting().classifier())
    heading, rest = output.read_bytes().decode().split(ending, 1)
    assert heading == "\ufeffid,Text,label,probability_long,probability_short"
    texts.append(rows[-1][2:])
    assert rest == "".join(
        f"{row},{scored(text)}{ending}" for row, text in zip(rows, texts, strict=True)
    )


def test_a_byte_order_mark_is_no_part_of_a_quoted_first_column(tmp_path):
    for name, content in (
        ("in.csv", '"text"\na\n'),
        ("in.txt", "a\n"),
        ("in.jsonl", '{"text": "a"}\n'),
    ):
        engine = Counting()
        (tmp_path / name).write_text("\ufeff" + content)
        score(tmp_path / name, tmp_path / f"out-{name}", engine.classifier())
        assert engine.texts == ["a"]
    assert (tmp_path / "out-in.csv").read_text().startswith('\ufeff"text",label')


def test_other_separators_are_found_and_kept(tmp_path):
    for name, separator in (("in.tsv", "\t"), ("in.csv", ";"), ("in.csv", "|"), ("in.csv", "\t")):
        source = tmp_path / name
        source.write_text(f"id{separator}tweet\n1{separator}a, b\n")
        score(source, tmp_path / f"out-{name}", Counting().classifier())
        lines = (tmp_path / f"out-{name}").read_text().splitlines()
        assert lines == [
            separator.join(["id", "tweet", "label", "probability_long", "probability_short"]),
            separator.join(["1", "a, b", *scored("a, b").split(",")]),
        ]


def test_json_lines_keep_their_keys_to_the_letter(tmp_path, caplog):
    lines = [
        '{"id": 1.0, "text": "caf\\u00e9", "big": 12345678901234567890123}',
        "",
        '{"text":"b" , "x":{} }',
        "[1]",
        '{"text": "c"',
        '{"text": 7}',
        "{}",
        '{"text": "\\ud83d"}',
        '{"text": "d", "label": 1}',
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))
    with pytest.raises(UserError, match="'label' already"):
        score(source, output, Counting().classifier())
    source.write_text("\n".join(lines[:-1]))
    summary = score(source, output, Counting().classifier())
    written = output.read_text().splitlines()
    bodies = [lines[0][:-1], lines[2][:-1].rstrip(), lines[5][:-1], "{", lines[7][:-1]]
    assert [line.startswith(body) for line, body in zip(written, bodies, strict=True)] == [True] * 5
    assert json.loads(written[0]) == json.loads(lines[0]) | {
        "label": "short",
        "probability_long": pytest.approx(0.069138, abs=1e-6),
        "probability_short": pytest.approx(0.930862, abs=1e-6),
    }
    assert json.loads(written[3]) == {
        "label": None,
        "probability_long": None,
        "probability_short": None,
    }
    assert (summary.progress.scored, summary.progress.bad) == (2, 5)
    assert [
        record.getMessage() for record in caplog.records if record.getMessage().startswith("line")
    ] == [
        "line 4: is no JSON object; left out of the output",
        "line 5: is no JSON object; left out of the output",
        "line 6: its text is not a string",
        "line 7: has no text",
        "line 8: its text is not UTF-8",
    ]


def test_bad_rows_stop_nothing_and_are_reported_with_their_line(tmp_path, caplog):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(
        b'id,text\n1,good\n2\n3,a,b\n\n4,\n5,"two\nlines"\n6,bad \xff\n\xfe7,fine\n8,"open\n9,last\n'
    )
    summary = score(source, output, Counting().classifier())
    assert output.read_bytes().splitlines()[1:] == [
        b"1,good," + scored("good").encode(),
        b"4,,,,",
        b'5,"two',
        b'lines",' + scored("two\nlines").encode(),
        b"6,bad \xff,,,",
        b"\xfe7,fine," + scored("fine").encode(),
        b"9,last," + scored("last").encode(),
    ]
    assert (summary.progress.scored, summary.progress.bad) == (4, 5)
    assert [record.getMessage() for record in caplog.records] == [
        "line 3: 1 cells under 2 columns; left out of the output",
        "line 4: 3 cells under 2 columns; left out of the output",
        "line 6: its text is blank",
        "line 9: its text is not UTF-8",
        "line 11: a quote is not closed; left out of the output",
    ]


def test_a_stray_quote_far_from_the_end_costs_its_line_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(row_formats, "LONGEST_CELL", 200)
    source, output, engine = tmp_path / "in.csv", tmp_path / "out.csv", Counting()
    source.write_text('text\n"stray\n' + "".join(f"row {i}\n" for i in range(100)))
    score(source, output, engine.classifier())
    csv.field_size_limit(131072)
    assert sorted(engine.texts) == sorted(f"row {i}" for i in range(100))


def test_no_more_than_twenty_bad_rows_are_shown(tmp_path, caplog):
    source = tmp_path / "in.txt"
    source.write_text("\n" * 30 + "a\n")
    assert score(source, tmp_path / "out.csv", Counting().classifier()).progress.bad == 30
    assert (
        len(caplog.records) == 21
        and caplog.records[-1].getMessage() == "further bad rows are only counted"
    )


def test_never_more_than_a_window_is_read_ahead(monkeypatch):
    monkeypatch.setattr(classifier, "WINDOW_ROWS", 10)
    monkeypatch.setattr(classifier, "WINDOW_BYTES", 1000)
    read = 0

    def rows(size: int):
        nonlocal read
        for i in range(95):
            read += 1
            yield row_formats.Row(i, b"x" * size, "x", "", True)

    ends = [(len(window), read) for window in row_windows(rows(1))]
    assert ends == [(10, 10 * (i + 1)) for i in range(9)] + [(5, 95)]
    assert {len(window) for window in row_windows(rows(400))} == {3, 2}


@pytest.fixture
def many(tmp_path, monkeypatch) -> Path:
    """50 texts in five windows, some of them bad, and in 15 batches."""
    monkeypatch.setattr(classifier, "WINDOW_ROWS", 10)
    source = tmp_path / "in.csv"
    source.write_text(
        "text\n"
        + "".join(f'"text {i}{"x" * (i % 7)}\n"\n' if i % 9 else "a,b\n" for i in range(50))
    )
    return source


@pytest.mark.parametrize("passes", [0, 1, 3, 8, 13])
def test_a_killed_scoring_goes_on_and_the_file_is_the_same_to_the_byte(many, tmp_path, passes):
    whole, output = tmp_path / "whole.csv", tmp_path / "out.csv"
    undisturbed = score(many, whole, Counting().classifier())
    dying, second = Counting(passes), Counting()
    with pytest.raises(RuntimeError):
        score(many, output, dying.classifier())
    assert not output.exists()
    with (tmp_path / "out.csv.partial").open("ab") as partial:
        partial.write(b"half a window" * 1000)
    resumed = score(many, output, second.classifier())
    assert output.read_bytes() == whole.read_bytes()
    assert resumed.progress == undisturbed.progress
    assert resumed.rows == len(second.texts) and (resumed.rows < undisturbed.rows) == (passes >= 3)
    assert sorted(path.name for path in tmp_path.glob("out.csv*")) == ["out.csv"]


@pytest.mark.parametrize("change", ["model", "batch", "input", "shorter", "damaged"])
def test_after_any_change_a_killed_scoring_starts_anew(many, tmp_path, change):
    output, again, fingerprint, batch = tmp_path / "out.csv", Counting(), "f", 4
    with pytest.raises(RuntimeError):
        score(many, output, Counting(8).classifier())
    assert (tmp_path / "out.csv.partial.json").exists()
    if change == "model":
        fingerprint = "g"
    elif change == "batch":
        batch = 5
    elif change == "input":
        many.write_text(many.read_text() + "one more\n")
    elif change == "shorter":
        (tmp_path / "out.csv.partial").write_bytes(b"text")
    else:
        (tmp_path / "out.csv.partial.json").write_text("{")
    summary = score(many, output, again.classifier(fingerprint), batch)
    assert summary.rows == summary.progress.scored == len(again.texts)


def test_ctrl_c_says_that_the_same_command_goes_on(many, tmp_path, monkeypatch, capsys, model):
    argv = [
        "--model",
        str(model),
        "--engine",
        "onnx",
        "--input",
        str(many),
        "--output",
        str(tmp_path / "out.csv"),
    ]
    monkeypatch.setattr(classifier, "load", lambda *_: Counting(3, KeyboardInterrupt).classifier())
    assert main(argv) == 130
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "inference.py: stopped; the same command goes on from here"
    )
    again = Counting()
    monkeypatch.setattr(classifier, "load", lambda *_: again.classifier())
    assert main(argv) == 0 and 0 < len(again.texts) < 40


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    many, tmp_path, monkeypatch, capsys, model
):
    argv = [
        "--model",
        str(model),
        "--engine",
        "onnx",
        "--input",
        str(many),
        "--output",
        str(tmp_path / "out.csv"),
    ]
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(classifier, "load", lambda *_: Counting(3, full).classifier())
    assert main(argv) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("inference.py: error: no space is left in ")
    )
    again = Counting()
    monkeypatch.setattr(classifier, "load", lambda *_: again.classifier())
    assert main(argv) == 0 and 0 < len(again.texts) < 40


def test_a_file_that_changed_since_the_model_was_made_is_refused(copied):
    (copied / "onnx" / "model.onnx").open("ab").write(b"x")
    with pytest.raises(UserError, match=r"onnx/model.onnx was changed since the model was made"):
        load(copied, "onnx", threads=1)
    with pytest.raises(UserError, match=r"onnx/model.onnx was changed since the model was made"):
        load(copied)
    assert load(copied, "openvino", threads=1)(["a"])
    (copied / "added_tokens.json").write_text("{}")
    with pytest.raises(UserError, match=r"added_tokens.json was changed"):
        load(copied, "openvino", threads=1)


def test_the_column_that_the_model_learnt_from_is_read_unless_another_is_named(copied, tmp_path):
    write_record(copied, stage="artifact", fingerprint="0", forms={}, text_column="Comment Body")
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("text;posted at;Comment Body\nba be;2024;day\n")
    argv = [
        "--model",
        str(copied),
        "--engine",
        "onnx",
        "--threads",
        "1",
        "--input",
        str(source),
        "--output",
        str(target),
    ]
    for more, text in (([], "day"), (["--text_column", "text", "--overwrite"], "ba be")):
        assert main([*argv, *more]) == 0
        (answer,) = load(copied, "onnx", threads=1)([text])
        shares = target.read_text().splitlines()[1].split(";")[-2:]
        assert list(map(float, shares)) == pytest.approx(list(answer["scores"].values()), abs=1e-5)
    source.write_text("text\nba be\n")
    assert main([*argv, "--overwrite"]) == 0


def test_a_model_without_a_record_is_served(copied):
    (copied / "stage.json").unlink()
    before = load(copied, "onnx", threads=1)
    (copied / "config.json").write_text((copied / "config.json").read_text() + " ")
    assert before.fingerprint != load(copied, "onnx", threads=1).fingerprint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "linear.joblib"])
def test_a_directory_that_holds_only_a_pickle_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch broken'\ntR.")
    why = (
        "the linear reference"
        if name == "linear.joblib"
        else "a pickle, and loading a pickle runs the code in it"
    )
    with pytest.raises(UserError, match=f"holds only {name}, {why}"):
        load(tmp_path)


def test_a_pickle_beside_graphs_is_never_opened(copied):
    (copied / "model.safetensors").rename(copied / "model-00001-of-00002.safetensors")
    torch.save(load_file(copied / "model-00001-of-00002.safetensors"), copied / "pytorch_model.bin")
    (copied / "stage.json").unlink()
    with pytest.raises(UserError, match="--engine is torch, but that does not load"):
        load(copied, "torch", threads=1)
    assert load(copied, threads=1).form != "torch"


def test_the_fastest_choice_is_remembered_and_measured_anew_where_a_file_changes(
    copied, monkeypatch
):
    first = load(copied)
    with monkeypatch.context() as patch:
        patch.setattr(autoselect, "compare_pair", lambda *_: pytest.fail("measured again"))
        second = load(copied)
    assert (first.form, first.threads) == (second.form, second.threads) and first.form in FORMS
    measured = []
    monkeypatch.setattr(
        autoselect, "compare_pair", lambda one, other: measured.append(other) or (one, 1.0)
    )
    (copied / "stage.json").unlink()
    load(copied)
    assert len(measured) == len(FORMS) * len({1, autoselect.available_cores()}) - 1


def test_the_faster_of_two_wins(monkeypatch):
    def entrant(name: str, most: int) -> autoselect.LoadedCandidate:
        def forward(texts):
            for _ in range(most * len(texts)):
                sum(range(1000))

        return autoselect.LoadedCandidate(name, 1, Engine(list, list, forward))

    slow, quick = entrant("slow", 20), entrant("quick", 1)
    assert [autoselect.compare_pair(*pair)[0].form for pair in ((slow, quick), (quick, slow))] == [
        "quick",
        "quick",
    ]


def test_a_cache_that_cannot_be_written_is_no_error(overlapping, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(overlapping, "onnx")(["a"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autoselect.choices_path().parent.mkdir()
    autoselect.choices_path().write_text("[broken")
    assert load(overlapping, "onnx")(["a"]) and json.loads(autoselect.choices_path().read_text())


def test_a_form_that_does_not_load_is_passed_over_unless_it_is_asked_for(copied, caplog):
    (copied / "onnx" / "model.onnx").write_bytes(b"no graph")
    write_record(copied, stage="artifact", fingerprint="0", forms={})
    assert load(copied, threads=1).form != "onnx/model.onnx"
    assert any("onnx/model.onnx is passed over" in record.getMessage() for record in caplog.records)
    for engine in ("onnx", "onnx/model.onnx"):
        with pytest.raises(UserError, match="--engine is onnx/model.onnx, but that does not load"):
            load(copied, engine)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_graphs_are_served_without_torch(model, tmp_path, engine):
    (tmp_path / "in.txt").write_text("a\nb\n")
    argv = [
        "--model",
        str(model),
        "--engine",
        engine,
        "--threads",
        "1",
        "--input",
        str(tmp_path / "in.txt"),
    ]
    script = f"""
import sys
from inference import main
code = main({argv!r})
heavy = {{"torch", "transformers", "pandas", "datasets", "yaml", "psutil", "zstandard", "pyarrow", "joblib"}}
print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
    assert len(list(csv.reader(io.StringIO(done.stdout)))) == 3


@pytest.mark.parametrize(("engine", "absent"), [("onnx", "openvino"), ("openvino", "onnxruntime")])
def test_one_engine_alone_is_enough(model, engine, absent):
    script = f"""
import sys
sys.modules |= dict.fromkeys(({absent!r}, "torch", "transformers"))
from inference import load
predict = load({str(model)!r})
print(predict.form, len(predict(["a", "b"])))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"{engine}/") and done.stdout.endswith(" 2\n"), done.stderr


def test_the_serving_requirements_are_pinned_as_all_are():
    pins, of_all = (
        [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
        for name in ("requirements-serve.txt", "requirements.txt")
    )
    assert set(pins) <= set(of_all)
    assert {line.split("==")[0] for line in pins} == {
        "onnxruntime",
        "openvino",
        "tokenizers",
        "numpy",
        "tqdm",
    }


def test_texts_are_printed_a_line_each(model, overlapping, capsys):
    texts = [*TEXTS[:3], f"{WORDS[3]}\n{WORDS[4]}"]
    assert main(["--model", str(model), "--engine", "onnx", "--threads", "1", *texts]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    answers = load(model, "onnx", threads=1)(texts)
    assert [line[0] for line in lines] == [answer["label"] for answer in answers]
    assert lines[3][2] == f"{WORDS[3]} {WORDS[4]}" and lines[0][
        1
    ] == "fair={:.3f} foul={:.3f}".format(*answers[0]["scores"].values())
    assert (
        main(["--model", str(overlapping), "--engine", "onnx", "--threads", "1", *TEXTS[:1]]) == 0
    )
    assert capsys.readouterr().out.split("\t")[1].startswith("ad=")


def test_a_file_is_scored_as_python_scores_its_texts(overlapping, tmp_path, caplog):
    caplog.set_level("INFO")
    source, output = tmp_path / "in.tsv", tmp_path / "out.tsv"
    source.write_text("comment\tn\n" + "".join(f"{text}\t{i}\n" for i, text in enumerate(TEXTS)))
    argv = [
        "--model",
        str(overlapping),
        "--engine",
        "onnx",
        "--threads",
        "1",
        "--input",
        str(source),
    ]
    assert main([*argv, "--output", str(output)]) == 0
    with output.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    answers = load(overlapping, "onnx", threads=1)(TEXTS)
    assert [row["label"] for row in rows] == ["|".join(answer["label"]) for answer in answers]
    assert [row["comment"] for row in rows] == TEXTS and [row["n"] for row in rows] == [
        *map(str, range(90))
    ]
    for row, answer in zip(rows, answers, strict=True):
        assert all(
            abs(float(row[f"probability_{name}"]) - p) < 1e-5
            for name, p in answer["scores"].items()
        )
    assert caplog.records[-1].getMessage().startswith("90 rows scored, 0 bad rows; ")


def test_standard_input_goes_to_standard_output_and_a_reader_that_leaves_is_no_error(
    model, tmp_path
):
    command = f"{sys.executable} inference.py --model {model} --engine onnx --threads 1 --input -"
    text = "\n".join(TEXTS * 100)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 2"],
        cwd=ROOT,
        input=text,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and done.stdout.startswith(
        "text,label,probability_fair,probability_foul\n"
    )
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr
    done = subprocess.run(
        [*command.split(), "--format", "jsonl"],
        cwd=ROOT,
        input='{"text": "a"}\n{"text": " "}\n',
        text=True,
        capture_output=True,
    )
    assert [list(json.loads(line)) for line in done.stdout.splitlines()] == [
        ["text", "label", "probability_fair", "probability_foul"]
    ] * 2
    assert "line 2: its text is blank" in done.stderr and "1 rows scored, 1 bad rows" in done.stderr


def test_only_bad_rows_are_exit_code_1_and_no_rows_at_all_are_none(model, tmp_path):
    argv = [
        "--model",
        str(model),
        "--engine",
        "onnx",
        "--threads",
        "1",
        "--input",
        str(tmp_path / "in.csv"),
    ]
    for content, code in (("text,n\n,1\n", 1), ("text,n\n", 0)):
        (tmp_path / "in.csv").write_text(content)
        assert main([*argv, "--output", str(tmp_path / "out.csv"), "--overwrite"]) == code


ERRORS = [
    ("", "--model is not given, but must be the directory of a model"),
    ("--model nowhere a", "--model is nowhere, but there is no such directory"),
    ("--model . a", "--model is ., but must hold model.safetensors, onnx/*.onnx or openvino/*.xml"),
    ("--model MODEL", "--input is not given, but without it there must be texts"),
    ("--model MODEL a --overwrite", "--overwrite is given, but goes with --input"),
    ("--model MODEL a --input in.csv", "TEXT is given, but not together with --input"),
    (
        "--model MODEL a --engine tensorrt",
        "--engine is tensorrt, but must be auto or what the model has: torch",
    ),
    (
        "--model MODEL a --engine onnx/../config.json",
        "--engine is onnx/../config.json, but must be auto or what",
    ),
    ("--model MODEL a --threads 0", "--threads is 0, but must be a whole number of at least 1"),
    (
        "--model MODEL --input in.csv --batch x",
        "--batch is x, but must be a whole number of at least 1",
    ),
    ("--model MODEL --input no.csv", "--input is no.csv, but there is no such file"),
    ("--model MODEL --input empty.csv", "--input is empty.csv, but that file is empty"),
    (
        "--model MODEL --input in.dat",
        "--input is in.dat, but must end in .csv, .tsv, .jsonl, .ndjson, .txt, or",
    ),
    (
        "--model MODEL --input in.csv --format xml",
        "--format is xml, but must be one of csv, tsv, jsonl, txt",
    ),
    (
        "--model MODEL --input in.csv --output out.csv",
        "--output is out.csv, but that file exists; --overwrite",
    ),
    (
        "--model MODEL --input in.csv --output in.csv --overwrite",
        "--output is in.csv, but must not be the input",
    ),
    (
        "--model MODEL --input in.csv --output new.jsonl",
        "--output is new.jsonl, but csv is written as csv",
    ),
    (
        "--model MODEL --input in.csv --output no/out.csv",
        "--output is no/out.csv, but no is no directory",
    ),
    (
        "--model MODEL --input in.csv --output new.csv --text_column c",
        "--text_column is c, but must be one of the",
    ),
    (
        "--model MODEL --input two.csv --output new.csv",
        "--text_column is not given, but must name one of the columns",
    ),
    (
        "--model MODEL --input taken.csv --output new.csv",
        "--input is taken.csv, but must not have the column 'label'",
    ),
    (
        "--model MODEL --input twice.csv --output new.csv --text_column a",
        "--text_column is a, but must be one of the",
    ),
    (
        "--model MODEL --input latin.csv --output new.csv",
        "--input is latin.csv, but must begin with a line of column",
    ),
    (
        "--model MODEL --input in.dat --format jsonl --output new.jsonl",
        "--input is in.dat, but must hold a JSON",
    ),
    (
        "--model MODEL --input in.dat --format txt --text_column a",
        "--text_column is a, but must not be given for txt",
    ),
    ("--model MODEL --what a", "unrecognized arguments: --what"),
]


@pytest.mark.parametrize(
    ("command", "line"), ERRORS, ids=[command or "nothing" for command, _ in ERRORS]
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_written(
    model, tmp_path, monkeypatch, capsys, command, line
):
    monkeypatch.chdir(tmp_path)
    files = {
        "in.csv": "a,text\n1,x\n",
        "two.csv": "a,b\n1,x\n",
        "taken.csv": "text,label\nx,1\n",
        "in.dat": "x\n",
        "twice.csv": "a,a\n1,x\n",
        "out.csv": "kept",
        "empty.csv": "",
    }
    for name, content in files.items():
        Path(name).write_text(content)
    Path("latin.csv").write_bytes("Überschrift\nx\n".encode("latin-1"))
    assert main([str(model) if word == "MODEL" else word for word in command.split()]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert lines[0].startswith(f"inference.py: error: {line}") and printed.out == ""
    assert len(lines) == (2 if not command else 1)
    assert {path.name for path in tmp_path.iterdir()} == {*files, "latin.csv"}


@pytest.mark.parametrize(
    "entries",
    [
        {"id2label": {"0": "a"}},
        {"id2label": {"0": "a", "1": "a"}},
        {"id2label": {}},
        {"problem_type": "regression"},
    ],
)
def test_a_config_that_names_no_classes_is_refused(copied, entries):
    about = json.loads((copied / "config.json").read_text()) | entries
    (copied / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="must name two labels or more in id2label"):
        load(copied)


def test_a_model_with_other_labels_than_logits_is_refused(copied):
    about = json.loads((copied / "config.json").read_text()) | {
        "id2label": {"0": "a", "1": "b", "2": "c"}
    }
    (copied / "config.json").write_text(json.dumps(about))
    (copied / "stage.json").unlink()
    with pytest.raises(UserError, match="gives 2 logits for 3 labels"):
        load(copied, "onnx", threads=1)


def test_progress_of_nothing_is_the_start():
    assert inference.read_progress(Path("no such file"), {}) == Progress()
