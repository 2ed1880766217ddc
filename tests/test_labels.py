"""Labels are the texts of their cells: none are merged, and missing ones are named."""

import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus.labels import read_label_column, read_task
from corpus.readers import FileRows, RowPlaces
from task import Task

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "300"))


def read(**columns: list) -> tuple[Task, list]:
    """The task and the labels of columns in a file whose header is line 1."""
    table = pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})
    numbers = np.arange(2, len(table) + 2)
    places = RowPlaces([FileRows(table, numbers, "line", "file.csv")])
    task, labels = read_task(table, tuple(columns), places)
    return task, labels.tolist()


def notes(caplog) -> list[str]:
    """The notes that were logged."""
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1_0", "1e1", "10"], ("10", "1_0", "1e1")),
        (["7", "+7", "007"], ("+7", "007", "7")),
        (
            ["1234567890123456789", "1234567890123456788", "1234567890123456787"],
            ("1234567890123456787", "1234567890123456788", "1234567890123456789"),
        ),
        (["9007199254740993.0", "9007199254740992.0"], ("9007199254740992", "9007199254740993")),
        (["10", "9", "-1", "2"], ("-1", "2", "9", "10")),
        (["0.5", "1.0", "2"], ("0.5", "1.0", "2")),
        (["1", "1.0", "x"], ("1", "1.0", "x")),
        (["true", "1", "1.0"], ("1", "1.0", "true")),
        (["a", " b ", "b"], ("a", "b")),
        (["Inf", "nano", "1"], ("1", "Inf", "nano")),
    ],
)
def test_a_label_is_the_text_of_its_cell(cells, labels, caplog):
    task, ids = read(label=cells * 2)
    assert task.labels == labels
    assert [task.labels[one] for one in ids] == [
        cell.strip().removesuffix(".0") if "9007199254740993" in labels else cell.strip()
        for cell in cells * 2
    ]
    assert notes(caplog) == []


def test_whole_numbers_of_a_float_column_are_one_class_with_a_note(caplog):
    task, ids = read(label=["0", "1", "1.0", "1.", "0"])
    assert (task.labels, ids) == (("0", "1"), [0, 1, 1, 1, 0])
    assert notes(caplog) == ["note: label column label: 1 and 1. and 1.0 are one class"]


def test_what_pandas_writes_for_a_missing_value_is_missing_and_its_lines_are_named(caplog):
    _, ids = read(label=["a", "nan", "b", " NaN", "", "<NA>", None])
    assert ids == [0, -1, 1, -1, -1, -1, -1]
    assert notes(caplog) == [
        "note: label column label: <NA>, NaN, nan is read as a missing label in lines 3, 5, 7"
    ]


@pytest.mark.parametrize("word", ["None", "null", "N/A", "NA"])
def test_other_na_words_are_missing_among_numbers_and_classes_among_words(word, caplog):
    task, ids = read(label=["0", word, "1", "0"])
    assert (task.labels, ids) == (("0", "1"), [0, -1, 1, 0])
    task, ids = read(label=["sexism", word, "racism"])
    assert set(task.labels) == {"sexism", word, "racism"} and -1 not in ids
    assert notes(caplog) == [
        f"note: label column label: {word} is read as a missing label in line 3",
        f"note: label column label: {word} is read as a class in line 3; leave the cell empty if "
        "the label is missing",
    ]


def test_a_note_names_five_rows_and_counts_the_others(caplog):
    read(label=["a", "nan", "b", "nan"] * 4)
    assert notes(caplog)[0].endswith("in lines 3, 5, 7, 9, 11 and 3 more")


def test_columns_of_0_and_1_follow_the_same_rules(caplog):
    task, flags = read(rude=["0", "1.0", "nan", "1"], ad=["True", "none", "false", "1"])
    assert task.multi_label and task.labels == ("rude", "ad")
    assert flags == [[0, 1], [1, -1], [-1, 0], [1, 1]]
    assert notes(caplog) == [
        "note: label column rude: nan is read as a missing label in line 4",
        "note: label column rude: 1 and 1.0 are one class",
        "note: label column ad: none is read as a missing label in line 3",
    ]


def test_control_characters_of_a_label_are_escaped_in_notes(caplog):
    read(**{"la\x1b[31mbel": ["a", "nan", "b"]})
    assert notes(caplog)[0].startswith("note: label column la\\x1b[31mbel: nan")


CELLS = st.lists(
    st.text(st.sampled_from("0123456789_eE+-. infaxNA\u09e7\u200d"), min_size=1, max_size=6)
    | st.integers(-(10**20), 10**20).map(str),
    min_size=1,
    max_size=12,
)


@settings(max_examples=EXAMPLES, deadline=None, database=None)
@example(["1.", "1.0", "01"])
@given(CELLS)
def test_any_distinct_texts_stay_distinct_labels(cells):
    """But for whole numbers that are written as floats, and for missing labels."""
    column = read_label_column(pa.chunked_array([pa.array(cells, pa.string())]), "label")
    labels = [column.labels[code] for code in column.codes]
    for cell, label in zip(cells, labels, strict=True):
        assert label in (None, cell.strip(), cell.strip().partition(".")[0])
    for first, one in zip(cells, labels, strict=True):
        for second, other in zip(cells, labels, strict=True):
            if one == other and one is not None and first.strip() != second.strip():
                assert int(first.partition(".")[0]) == int(second.partition(".")[0])
                assert {first.strip("0123456789 -"), second.strip("0123456789 -")} <= {"", "."}
