"""The kinds of labels that people bring: what each file becomes, and what the user is told."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from corpora import comments

from compression_config import OPTIONS, Options
from corpus.column_choice import has_label_name
from corpus.columns import LabeledCorpus, read_corpus
from corpus.input_files import ReadOptions
from corpus.label_cells import list_labels, separates_labels
from corpus.labeled_rows import ColumnNames, read_labeled_rows
from corpus.prediction_files import CsvWriter
from data import drop_unusable_rows, label_array, load_splits, split_corpus
from runtime.command_line import parse_options
from runtime.errors import UserError
from runtime.suggestions import ALIASES
from task import Task

ROWS = 120


def repeat(*cells: Any) -> list[Any]:
    """ROWS cells: these, over and over."""
    return [cells[i % len(cells)] for i in range(ROWS)]


def write(folder: Path, suffix: str, columns: dict[str, list]) -> Options:
    """Options that read a file of ROWS comments and these columns."""
    path = folder / f"file{suffix}"
    table = pd.DataFrame({"text": comments(ROWS), **columns})
    if suffix == ".csv":
        table.to_csv(path, index=False)
    elif suffix == ".json":
        table.to_json(path, orient="records")
    elif suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    return Options(dataset_path=str(path))


class Kind(NamedTuple):
    """A file and what it becomes."""

    name: str
    suffix: str
    columns: dict[str, list]
    label_columns: tuple[str, ...]
    labels: tuple[str, ...]
    first_rows: list  # class names, or lists of labels, of the first rows
    notes: tuple[str, ...] = ()  # a part of each note, in order
    options: dict[str, Any] = {}


SEVERAL = ("ad|rude", "rude", "ad", "threat", "threat|rude")
SEVERAL_LISTS = [["ad", "rude"], ["rude"], ["ad"], ["threat"], ["threat", "rude"], []]
SEVERAL_LABELS = ("ad", "rude", "threat")
CLASS_NAMES = ("Arts, Crafts", "Health, Beauty", "Sports; Outdoor", "A|B")

KINDS = (
    Kind("words", ".csv", {"kind": repeat("ham", "spam")}, ("kind",), ("ham", "spam"), ["ham"]),
    Kind(
        "names for 0 and 1",
        ".csv",
        {"label": repeat(0, 1)},
        ("label",),
        ("clean", "offensive"),
        ["clean", "offensive"],
        options={"label_names": ("1=offensive", "0 = clean")},
    ),
    Kind(
        "names for 0/1 columns",
        ".csv",
        {"a": repeat(0, 1), "b": repeat(1, 1, 0)},
        ("a", "b"),
        ("Ad", "Bad"),
        [["Bad"], ["Ad", "Bad"], []],
        options={"label_names": ("a=Ad", "b=Bad")},
    ),
    Kind(
        "a|b",
        ".csv",
        {"tags": repeat(*SEVERAL)},
        ("tags",),
        SEVERAL_LABELS,
        [["ad", "rude"], ["rude"], ["ad"]],
        ("labels separated by '|', such as 'ad|rude'; the labels are ad, rude, threat;",),
    ),
    Kind(
        "a,b",
        ".csv",
        {"tags": repeat(*(cell.replace("|", ", ") for cell in SEVERAL))},
        ("tags",),
        SEVERAL_LABELS,
        [["ad", "rude"], ["rude"]],
        ("labels separated by ',', such as 'ad, rude'",),
    ),
    Kind(
        "a;b",
        ".csv",
        {"tags": repeat(*(cell.replace("|", ";") for cell in SEVERAL))},
        ("tags",),
        SEVERAL_LABELS,
        [["ad", "rude"], ["rude"]],
        ("labels separated by ';', such as 'ad;rude'",),
    ),
    Kind(
        "an empty cell beside a|b",
        ".csv",
        {"tags": repeat(*SEVERAL, None, "[]")},
        ("tags",),
        SEVERAL_LABELS,
        [["ad", "rude"], ["rude"], ["ad"], ["threat"], ["rude", "threat"], []],
        (
            "separated by '|'",
            "17 rows have an empty cell, which is read as a missing",
            "dropped 17",
        ),
    ),
    Kind(
        "a forced separator",
        ".csv",
        {"tags": repeat("ad / rude", "ad", "threat")},
        ("tags",),
        SEVERAL_LABELS,
        [["ad", "rude"], ["ad"]],
        ("labels separated by '/'",),
        {"label_separator": "/"},
    ),
    Kind(
        "no separator on request",
        ".csv",
        {"tags": repeat(*SEVERAL)},
        ("tags",),
        tuple(sorted(SEVERAL)),
        ["ad|rude", "rude"],
        options={"label_separator": "none"},
    ),
    Kind(
        "class names with commas",
        ".csv",
        {"kind": repeat(*CLASS_NAMES)},
        ("kind",),
        tuple(sorted(CLASS_NAMES)),
        list(CLASS_NAMES),
    ),
    Kind(
        "class names that share a part",
        ".csv",
        {"kind": repeat("Yes, very", "Yes, rather", "No, very", "No, rather")},
        ("kind",),
        ("No, rather", "No, very", "Yes, rather", "Yes, very"),
        ["Yes, very"],
        ("'No, rather' is read as one class; --label_separator ',' reads it as several labels",),
    ),
    Kind(
        "decimal commas",
        ".csv",
        {"score": repeat("1", "1,5", "2", "2,5", "5")},
        ("score",),
        ("1", "1,5", "2", "2,5", "5"),
        ["1", "1,5"],
        ("'1,5' is read as one class",),
    ),
    Kind(
        "ids with commas",
        ".csv",
        {"ids": repeat("1", "1,2", "2", "0,1,2", "0")},
        ("ids",),
        ("0", "1", "2"),
        [["1"], ["1", "2"]],
        ("labels separated by ',', such as '0,1,2'",),
    ),
    *(
        Kind(
            f"lists in {suffix}",
            suffix,
            {"tags": repeat(*SEVERAL_LISTS)},
            ("tags",),
            SEVERAL_LABELS,
            [["ad", "rude"], ["rude"], ["ad"], ["threat"], ["rude", "threat"], []],
            ("lists of labels, such as",),
        )
        for suffix in (".csv", ".json", ".jsonl", ".parquet")
    ),
    Kind(
        "JSON lists in CSV",
        ".csv",
        {"tags": repeat(*map(json.dumps, SEVERAL_LISTS))},
        ("tags",),
        SEVERAL_LABELS,
        [["ad", "rude"], ["rude"]],
        ('lists of labels, such as \'["ad", "rude"]\'',),
    ),
    Kind(
        "choices of Label Studio",
        ".csv",
        {"tags": repeat('{"choices":["ad","rude"]}', '{"choices":["threat"]}')},
        ("tags",),
        SEVERAL_LABELS,
        [["ad", "rude"], ["threat"]],
        ("lists of labels",),
    ),
    Kind(
        "lists of one label (Doccano)",
        ".jsonl",
        {"label": repeat(["pos"], ["neg"]), "Comments": repeat([])},
        ("label",),
        ("neg", "pos"),
        ["pos", "neg"],
        ("are skipped: Comments", "every list has one label, so the labels are classes"),
    ),
    Kind(
        "lists of 0 and 1",
        ".parquet",
        {"label": repeat([0.0, 1.0, 1.0], [1.0, 0.0, 0.0])},
        ("label",),
        ("none", "rude", "ad"),
        [["rude", "ad"], ["none"]],
        ("its lists of 0 and 1 are read as one flag per label",),
        {"label_names": ("0=none", "1=rude", "2=ad")},
    ),
    Kind(
        "nested extra keys",
        ".jsonl",
        {"label": repeat(0, 1), "meta": repeat({"a": 1}), "words": repeat(["x", "y"], ["z"])},
        ("label",),
        ("0", "1"),
        ["0"],
        ("note: columns with lists or objects are skipped: meta, words",),
    ),
    Kind(
        "label beside label_text",
        ".csv",
        {"label": repeat(2, 0, 1), "label_text": repeat("good", "bad", "fair")},
        ("label_text",),
        ("bad", "fair", "good"),
        ["good", "bad"],
        ("label column label_text: label is one-to-one with it and is not used",),
    ),
    Kind(
        "50 classes and more by name",
        ".csv",
        {"intent": repeat(*(f"intent {i}" for i in range(60)))},
        ("intent",),
        tuple(sorted(f"intent {i}" for i in range(60))),
        ["intent 0", "intent 1"],
    ),
    Kind(
        "ratings",
        ".csv",
        {"stars": repeat(5, 4, 3, 2, 1)},
        ("stars",),
        ("1", "2", "3", "4", "5"),
        ["5"],
        ("1 to 5 are read as classes without an order",),
    ),
)


def label_names_of(corpus: LabeledCorpus, count: int) -> list:
    """The labels of the first complete rows: names, or lists of names."""
    names = np.array(corpus.task.labels)
    if corpus.task.multi_label:
        return [names[row == 1].tolist() for row in corpus.labels[:count]]
    return names[corpus.labels[:count]].tolist()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_label_is_read_and_explained(kind, tmp_path, caplog):
    options = dataclasses.replace(write(tmp_path, kind.suffix, kind.columns), **kind.options)
    corpus = read_corpus(options)
    assert (corpus.text_column, corpus.label_columns) == ("text", kind.label_columns)
    assert corpus.task.labels == kind.labels
    assert label_names_of(corpus, len(kind.first_rows)) == kind.first_rows
    assert len(caplog.messages) == len(kind.notes)
    for message, part in zip(caplog.messages, kind.notes, strict=True):
        assert part in message and message.isprintable()


REFUSED = (  # name, columns, options, the error
    (
        "a label without a name",
        {"label": repeat(0, 1, 2)},
        {"label_names": ("0=a", "1=b")},
        "--label_names is 0=a 1=b, but must name each label of the file, 0, 1, 2: 2 has no name",
    ),
    (
        "a name for no label",
        {"label": repeat(0, 1)},
        {"label_names": ("0=a", "1=b", "2=c")},
        "each label of the file, 0, 1: 2 is not one of them",
    ),
    (
        "a separator that is nowhere",
        {"label": repeat("a", "b")},
        {"label_separator": ";"},
        "--label_separator is ;, but no cell of label contains it",
    ),
    (
        "a list that is cut",
        {"label": repeat('["a"]', '["a", "b"]', '["a", "b')},
        {},
        'but ["a", "b in lines 4, 7, 10, 13, 16 and 35 more is not a list of words or numbers',
    ),
    (
        "a label twice in a list",
        {"label": repeat('["a", "a"]', '["b"]')},
        {},
        'is label, but ["a", "a"] in lines 2, 4, 6, 8, 10 and 55 more names a label twice',
    ),
    (
        "label columns that disagree",
        {"label": repeat(0, 1, 2), "label_text": repeat("a", "b", "c", "c")},
        {},
        "--label_columns is needed: the file has several candidates (label, label_text)",
    ),
    (
        "a similar column",
        {"Label": repeat(0, 1)},
        {"label_columns": ("label",), "text_column": "tex"},
        "--text_column is tex, but the file has the columns text, Label; did you mean text?",
    ),
    (
        "targets of a regression",
        {"target": [i / 100 for i in range(60)] * 2},
        {},
        "--label_columns is needed: the file has no candidate",
    ),
    (
        "users, not labels",
        {"user": repeat(*(f"user {i}" for i in range(60)))},
        {},
        "--label_columns is needed: the file has no candidate",
    ),
)


@pytest.mark.parametrize(
    ("columns", "options", "error"), [case[1:] for case in REFUSED], ids=[one[0] for one in REFUSED]
)
def test_labels_that_cannot_be_decided_are_refused(columns, options, error, tmp_path):
    with pytest.raises(UserError) as caught:
        read_corpus(dataclasses.replace(write(tmp_path, ".csv", columns), **options))
    assert error in caught.value.lines[0]


def json_file(folder: Path, rows: Iterable[dict], *, is_array: bool = False) -> Options:
    """Options that read JSON Lines, or an array."""
    path = folder / "file.json"
    rows = list(rows)
    path.write_text(json.dumps(rows) if is_array else "\n".join(map(json.dumps, rows)))
    return Options(dataset_path=str(path))


def test_exports_of_annotation_tools_are_recognized(tmp_path):
    spans = [{"id": i, "text": f"t {i}", "label": [[0, 1, "X"]], "Comments": []} for i in range(9)]
    with pytest.raises(UserError, match="it is a Doccano export of labeled spans; export a"):
        read_corpus(json_file(tmp_path, spans))
    task = {"annotations": [{"result": []}], "data": {"text": "t"}, "created_at": "", "id": 1}
    with pytest.raises(UserError, match="it is a Label Studio export .* as JSON-MIN or CSV"):
        read_corpus(json_file(tmp_path, [task], is_array=True))
    old = {"id": 1, "text": "t", "annotations": [{"label": 2}], "annotation_approver": None}
    with pytest.raises(UserError, match="it is a Doccano export with nested .* as JSONL or CSV"):
        read_corpus(json_file(tmp_path, [old]))


def test_an_object_in_a_named_column_is_refused_with_its_line(tmp_path):
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(comments(40))]
    rows[6]["label"] = {"value": 1}
    options = json_file(tmp_path, rows)
    with pytest.raises(UserError) as caught:
        read_corpus(dataclasses.replace(options, label_columns=("label",)))
    assert caught.value.lines == (
        "--label_columns is label, but line 7 has a list or an object in label, which must have "
        "plain values",
    )
    rows[6] = {"text": ["a", "b"], "label": 1}
    options = json_file(tmp_path, rows)
    with pytest.raises(UserError, match="--text_column is text, but line 7 has a list"):
        read_corpus(dataclasses.replace(options, text_column="text"))


def test_what_inference_writes_is_read_back(tmp_path):
    """The labels of a CSV of predictions, also of none and of one with the separator in it."""
    rows = [["a", "b|c"], ["a"], [], ["d"], ["a", "d"], ["b|c"]]
    writer = CsvWriter(["text", "predicted_label"], "predicted_label", ",")
    predictions = []
    for i, text in enumerate(comments(ROWS)):
        predictions.append({"text": text, "predicted_label": rows[i % len(rows)]})
    path = tmp_path / "labeled.csv"
    path.write_bytes(writer.header() + writer.encode(predictions))
    corpus = read_corpus(Options(dataset_path=str(path)))
    assert corpus.task == Task(("a", "b|c", "d"), multi_label=True)
    assert label_names_of(corpus, len(rows)) == rows


MODEL = Task(("Ad", "Rude", "Threat"), multi_label=True)
MODEL_NAMES = {"ad": "Ad", "rude": "Rude", "threat": "Threat"}


@pytest.mark.parametrize(
    "cells",
    [
        ["ad|rude", "threat", "[]", "rude|ad|threat"],
        ["Ad, Rude", "Threat", "[]", "Rude,Ad,Threat"],
        [["ad", "rude"], ["threat"], [], ["rude", "ad", "threat"]],
        [[1, 1, 0], [0, 0, 1], [0, 0, 0], [1.0, 1.0, 1.0]],
    ],
    ids=["joined", "names of the model", "lists", "flags"],
)
def test_a_finished_model_is_measured_on_several_labels_in_a_cell(cells, tmp_path):
    table = pd.DataFrame({"text": comments(5), "tags": [*cells, None]})
    table.to_csv(tmp_path / "file.csv", index=False)
    names = ColumnNames(None, None, "text", ("tags",), MODEL_NAMES)
    rows = read_labeled_rows(str(tmp_path / "file.csv"), MODEL, names, ReadOptions())
    assert rows.labels.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]]
    assert rows.dropped == 1


def test_a_finished_model_knows_the_labels_of_the_file_by_their_names(tmp_path):
    columns = {"label": repeat(1, 0), "Ad": repeat(0, 1), "rude": repeat(1, 1), "threat": repeat(0)}
    path = write(tmp_path, ".csv", columns).dataset_path
    names = ColumnNames("text", ("label",), label_names={"0": "clean", "1": "hate"})
    task = Task(("clean", "hate"), multi_label=False)
    assert read_labeled_rows(path, task, names, ReadOptions()).labels[:2].tolist() == [1, 0]
    names = ColumnNames("text", ("rude", "Ad", "threat"), label_names=MODEL_NAMES)
    rows = read_labeled_rows(path, MODEL, names, ReadOptions())
    assert rows.labels[:2].tolist() == [[0, 1, 0], [1, 1, 0]]
    names = ColumnNames("text", ("label",), label_names=MODEL_NAMES)
    with pytest.raises(UserError, match="the model does not have its labels '0', '1'; those of"):
        read_labeled_rows(path, MODEL, names, ReadOptions())


@pytest.mark.parametrize(
    ("cells", "separator", "is_separator"),
    [
        (["a|b", "b|c", "c|a"], "|", True),  # every part is in two cells
        (["a,b", "b,c", "c,a"], ",", False),  # no part is a cell of its own
        (["a,b", "a", "b"], ",", True),
        (["a,b", "a"], ",", False),  # b is only in one cell
        (["a", "b"], ",", False),
        (["a,", "a"], ",", False),
        (["a,a", "a"], ",", False),
        (["a|b"], "|", False),
    ],
)
def test_a_separator_is_detected_by_parts_that_occur_without_each_other(
    cells, separator, is_separator
):
    assert separates_labels(cells, separator) is is_separator


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ('["a", "b"]', ("a", "b")),
        ("['a', 'b']", ("a", "b")),
        ("[1, 2.0, true]", ("1", "2.0", "true")),
        ("[]", ()),
        ('{"choices": ["a"]}', ("a",)),
        ('["a"', None),
        ("[a]", None),
        ('[["a"]]', None),
        ("[null]", None),
        ('[" "]', None),
        ("a", None),
    ],
)
def test_a_list_is_one_of_words_and_numbers(cell, labels):
    assert list_labels(cell) == labels


@pytest.mark.parametrize("name", ["label", "Label", "label_text", "labelText", "coarse-class"])
def test_a_name_says_that_a_column_has_labels(name):
    assert has_label_name(name) and not has_label_name(f"x{name}x")


def rare_file(folder: Path, counts: dict[str, int]) -> Options:
    """Options that read a file with so many rows of each label."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    path = folder / "rare.csv"
    pd.DataFrame({"text": comments(len(labels)), "label": labels}).to_csv(path, index=False)
    return Options(dataset_path=str(path))


def test_rare_classes_are_stratified_as_far_as_they_go(tmp_path, caplog):
    options = rare_file(tmp_path, {"a": 100, "b": 60, "one": 1, "two": 2, "three": 3, "four": 4})
    splits, task, _ = load_splits(options)
    counts = {}
    for name, split in splits.items():
        counts[name] = np.bincount(label_array(split), minlength=6).tolist()
    assert task.labels == ("a", "b", "four", "one", "three", "two")
    assert counts["train"][2:] == [2, 1, 1, 1]
    assert counts["validation"][2:] == [1, 0, 1, 0]
    assert counts["test"][2:] == [1, 0, 1, 1]
    assert caplog.messages == [
        "note: the validation split has no row with the label one, two, which has only one or two "
        "rows; its F1 there is not part of macro-F1",
        "note: the test split has no row with the label one, which has only one or two rows; its "
        "F1 there is not part of macro-F1",
    ]


def test_a_rare_label_of_several_is_in_every_split_of_three_texts(tmp_path):
    flags = {"ad": repeat(0, 1), "rude": repeat(1, 1, 0), "rare": [1, 1, 1] + [0] * (ROWS - 3)}
    options = write(tmp_path, ".csv", flags)
    for seed in range(5):
        splits, _, _ = load_splits(dataclasses.replace(options, seed=seed))
        for split in splits.values():
            assert label_array(split).sum(axis=0).min() >= 1
        assert sum(splits.num_rows.values()) == ROWS


def test_a_class_that_a_split_of_the_file_lacks_is_named_with_its_rows(tmp_path):
    split = ["train"] * 60 + ["validation"] * 30 + ["test"] * 30
    columns = {"label": repeat("a", "b")[:90] + ["c"] * 5 + repeat("a", "b")[:25], "split": split}
    corpus = drop_unusable_rows(read_corpus(write(tmp_path, ".csv", columns)))
    with pytest.raises(UserError, match="label c has 5 rows, but none in the train split of 60"):
        split_corpus(corpus, Options())


def test_a_tiny_file_is_split_with_a_note(tmp_path, caplog):
    splits, _, _ = load_splits(rare_file(tmp_path, {"a": 7, "b": 5}))
    assert splits.num_rows == {"train": 7, "validation": 2, "test": 3}
    assert caplog.messages == [
        "note: the test split has 3 rows, so that each of them is 33 points of accuracy: the "
        "results say little about new texts; add rows, or give --num_folds"
    ]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--bach 16", "unknown option --bach; did you mean --batch?"),
        ("--teacher-path x", "unknown option --teacher-path; did you mean --teacher_path?"),
        ("--learning_rate 1", "unknown option --learning_rate; did you mean --lr or --teacher_lr?"),
        ("--batch_size=8", "unknown option --batch_size=8; did you mean --batch?"),
        ("--train_file x", "unknown option --train_file; did you mean --dataset_path?"),
        ("--something else", "unknown option --something"),
        (
            "--quant_method Dinamic",
            "--quant_method is Dinamic, but must be one of fp16, dynamic, static, int4; did you "
            "mean dynamic?",
        ),
        ("--label_names 0", "--label_names is 0, but must be LABEL=NAME"),
        ("--label_names =a", "--label_names is =a, but must be LABEL=NAME"),
        (
            "--label_names 0=a 1=a",
            "--label_names has the name a twice, but each must be unique",
        ),
        (
            "--label_names 0=a 0=b",
            "--label_names has the label 0 twice, but each must be unique",
        ),
        (
            "--label_separator , --label_columns a b",
            "--label_separator is given with --label_columns a b, but it separates the labels in "
            "one column",
        ),
    ],
)
def test_a_wrong_option_says_what_to_do(words, error):
    with pytest.raises(UserError) as caught:
        parse_options(words.split())
    assert caught.value.lines == (error,)


def test_every_alias_stands_for_an_option_and_is_none_itself():
    for alias, names in ALIASES.items():
        assert alias not in OPTIONS and set(names) <= set(OPTIONS)


def test_a_wrong_key_of_an_option_file_gets_a_suggestion(tmp_path):
    (tmp_path / "run.yaml").write_text("bach: 3\nconfig: x\n")
    with pytest.raises(UserError, match="'bach' is not an option of that file; did you mean batch"):
        parse_options(["--config", str(tmp_path / "run.yaml")])
