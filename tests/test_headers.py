"""A file without a header is noticed, and one with a header is not taken for such a file."""

import dataclasses
import gzip

import pytest
from corpora import alternating, comments

from compression_config import Options
from corpus.columns import read_corpus
from runtime.errors import UserError

TEXTS = comments(60)
LABELED_ROWS = [f"{text},{i % 2}" for i, text in enumerate(TEXTS)]


def write(tmp_path, *lines: str) -> Options:
    """Options that read a CSV with these lines."""
    path = tmp_path / "file.csv"
    path.write_text("\n".join(lines) + "\n")
    return Options(dataset_path=str(path))


@pytest.mark.parametrize(
    ("first_line", "named"),
    [
        ("a first comment,0", "'0'"),
        ("a first comment,1", "'1'"),
        ("comment number 7,2", "'comment number 7'"),
        ("2024,2.0", "'2.0'"),
    ],
)
def test_a_row_in_place_of_the_header_is_refused(tmp_path, first_line, named):
    with pytest.raises(UserError) as caught:
        read_corpus(write(tmp_path, first_line, *LABELED_ROWS))
    (line,) = caught.value.lines
    assert f"but its first line looks like a row: {named} is like the cells below it" in line
    assert "give --no_header, or --text_column and --label_columns if it is a header" in line


def test_a_class_name_in_place_of_the_header_is_refused(tmp_path):
    rows = [f"{text},{('ham', 'spam')[i % 2]}" for i, text in enumerate(TEXTS)]
    with pytest.raises(UserError, match="looks like a row: 'spam' is like the cells"):
        read_corpus(write(tmp_path, *rows[1:]))
    corpus = read_corpus(dataclasses.replace(write(tmp_path, *rows[1:]), no_header=True))
    assert corpus.text_column == "column_1" and corpus.label_columns == ("column_2",)
    assert corpus.task.labels == ("ham", "spam") and len(corpus.rows) == 59


@pytest.mark.parametrize(
    "header", ["text,spam", "text,1", "0,1", "what,hate", "Is this OK?,HateSpeech"]
)
def test_a_header_is_not_taken_for_a_row(tmp_path, header):
    rows = [f"{text},{('ham', 'spam')[i % 2]}" for i, text in enumerate(TEXTS)]
    rows = LABELED_ROWS if header.endswith(",1") else rows
    corpus = read_corpus(write(tmp_path, header, *rows))
    assert list(corpus.task.labels) in (["ham", "spam"], ["0", "1"])
    assert len(corpus.rows) == 60


@pytest.mark.parametrize(
    ("header", "classes"),
    [
        ("sms,spam", ("ham", "spam")),
        ("post,hate", ("hate", "offensive", "neither")),
        ("Tweet text,not spam", ("spam", "not spam")),
    ],
)
def test_a_name_of_a_class_above_its_column_is_noted(header, classes, tmp_path, caplog):
    rows = []
    for i, text in enumerate(TEXTS):
        rows.append(f"{text} of these sixty,{classes[i % len(classes)]}")
    options = write(tmp_path, header, *rows)
    corpus = read_corpus(options)
    assert corpus.table.column_names == header.split(",")
    assert set(corpus.task.labels) == set(classes) and len(corpus.rows) == 60
    assert caplog.messages == [
        f"note: {options.dataset_path}: the first line is read as the header, although "
        f"{header.split(',')[1]!r} is also a value of its column; give --no_header if it is a row"
    ]


def test_a_header_that_an_option_names_is_one(tmp_path, caplog):
    options = write(tmp_path, "a first comment,1,0", *(f"{row},0" for row in LABELED_ROWS))
    with pytest.raises(UserError, match="looks like a row"):
        read_corpus(options)
    named = dataclasses.replace(options, text_column="a first comment", label_columns=("1",))
    assert len(read_corpus(named).rows) == 60 and not caplog.messages


def test_a_header_that_is_as_long_as_a_text_is_noted(tmp_path, caplog):
    header = "the first comment without any label,hate"
    read_corpus(write(tmp_path, header, *LABELED_ROWS))
    assert caplog.messages == [
        "note: the first line is read as the header, with the text column 'the first comment "
        "without any label'; give --no_header if it is a row"
    ]


def test_a_header_in_the_middle_of_a_file_is_refused_with_its_line(tmp_path):
    options = write(tmp_path, "text,label", *LABELED_ROWS, "text,label", *LABELED_ROWS)
    with pytest.raises(UserError, match="but line 62 repeats the header; delete it"):
        read_corpus(options)


def test_a_held_out_file_that_repeats_the_header_is_refused_with_its_line(tmp_path):
    options = write(tmp_path, "text,label", *LABELED_ROWS)
    (tmp_path / "test.csv").write_text("text,label\na text,1\ntext,label\nanother,0\n")
    options = dataclasses.replace(options, test_path=str(tmp_path / "test.csv"))
    with pytest.raises(UserError, match="--test_path is .*, but line 3 repeats the header"):
        read_corpus(options)


def test_a_held_out_file_without_a_header_is_refused_as_such(tmp_path):
    options = write(tmp_path, "text,label", *LABELED_ROWS)
    (tmp_path / "test.csv").write_text("a text,1\nanother,0\na third,1\n")
    options = dataclasses.replace(options, test_path=str(tmp_path / "test.csv"))
    with pytest.raises(UserError, match="--test_path is .*, but its first line looks like a row"):
        read_corpus(options)


def test_the_same_header_in_two_files_is_judged_once(tmp_path, caplog):
    rows = [f"{text},{('other', 'hate')[i % 2]}" for i, text in enumerate(TEXTS)]
    options = write(tmp_path, "post,hate", *rows)
    (tmp_path / "test.csv").write_text("post,hate\na text,hate\nanother,other\n")
    options = dataclasses.replace(options, test_path=str(tmp_path / "test.csv"))
    assert len(read_corpus(options).rows) == 62
    assert len(caplog.messages) == 1 and "'hate' is also a value" in caplog.text


def test_two_equal_labels_in_place_of_the_header_hint_at_no_header(tmp_path):
    options = write(tmp_path, *(f"{row},1,1" for row in LABELED_ROWS))
    with pytest.raises(UserError, match="header names 1 more than once; give --no_header if that"):
        read_corpus(options)


def test_every_file_of_a_run_is_read_without_a_header(tmp_path):
    options = write(tmp_path, *LABELED_ROWS)
    with gzip.open(tmp_path / "test.csv.gz", "wt") as file:
        file.write("a held-out text,1\nanother,0\n")
    options = dataclasses.replace(options, no_header=True, test_path=str(tmp_path / "test.csv.gz"))
    corpus = read_corpus(options)
    assert len(corpus.rows) == 62
    assert corpus.labels.tolist() == [*alternating(60), 1, 0]
