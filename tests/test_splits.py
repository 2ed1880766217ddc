"""Reading and splitting: unambiguous columns, no leakage between splits, no contradictions."""

import dataclasses
import json
import random
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from corpora import alternating, audit_of, comments, write_corpus
from datasets import DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compression_config import Options
from corpus.columns import read_corpus
from corpus.text_keys import text_key
from data import drop_unusable_rows, label_array, load_splits, split_corpus
from runtime.errors import UserError

ROOT = Path(__file__).parent.parent


def normalized(text: str) -> str:
    """A key that does not use the code under test."""
    return " ".join(text.replace("\u200b", "").split())


def text_sets(splits: DatasetDict) -> dict[str, set[str]]:
    """The distinct texts of each split."""
    texts = {}
    for name, split in splits.items():
        texts[name] = {normalized(text) for text in split["text"]}
    return texts


def test_splits_are_disjoint_stratified_and_reproducible(tmp_path):
    labels = [int(i % 4 == 0) for i in range(400)]
    options = write_corpus(tmp_path, text=comments(400), label=labels)
    splits, task, columns = load_splits(options)
    assert splits.num_rows == {"train": 280, "validation": 40, "test": 80}
    assert task.labels == ("0", "1")
    assert columns == {"text_column": "text", "label_columns": ("label",)}
    texts = text_sets(splits)
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    repeated, _, _ = load_splits(options)
    for name, split in splits.items():
        assert label_array(split).mean() == pytest.approx(0.25, abs=0.02)
        assert repeated[name]["id"] == split["id"]


def test_duplicates_stay_in_one_split_regardless_of_white_space(tmp_path):
    body = comments(100) + [f"  comment  number {i} " for i in range(100)]
    splits, _, _ = load_splits(write_corpus(tmp_path, text=body, label=alternating(200)))
    texts = text_sets(splits)
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    assert sum(len(split) for split in splits.values()) == 200


def test_the_text_of_a_split_is_raw(tmp_path):
    body = [f" ক\u09c7\u09be {i}  " for i in range(100)]
    splits, _, _ = load_splits(write_corpus(tmp_path, text=body, label=alternating(100)))
    assert set(splits["train"]["text"]) <= set(body)


def test_contradicting_texts_are_dropped(tmp_path):
    body = [*comments(100), "comment number 0"]
    options = write_corpus(tmp_path, text=body, label=[*alternating(100), 1])
    for texts in text_sets(load_splits(options)[0]).values():
        assert "comment number 0" not in texts


def test_a_text_whose_label_differs_between_the_splits_of_the_file_is_in_none_of_them(tmp_path):
    split = ["train"] * 100 + ["dev"] * 20 + ["test"] * 20
    body = comments(140)
    body[0] = body[139]
    labels = alternating(140)  # 0 in training, 1 in test
    options = write_corpus(tmp_path, text=body, label=labels, split=split)
    splits, _, _ = load_splits(options)
    assert splits["test"]["id"][:] == list(range(120, 139))
    assert 0 not in splits["train"]["id"][:]
    audit = audit_of(options)
    assert audit["contradictions"] == {"texts": 1, "rows": 2}
    assert audit["leaks"]["same_text"] == 0


def test_the_splits_of_the_file_are_kept_and_their_leaks_dropped(tmp_path):
    split = ["train"] * 100 + ["dev"] * 20 + ["test"] * 20
    body = comments(140)
    body[0] = body[139]
    labels = [*alternating(139), 0]
    splits, _, _ = load_splits(write_corpus(tmp_path, text=body, label=labels, split=split))
    assert splits["test"]["id"][:] == list(range(120, 140))
    assert len(splits["validation"]) == 20
    assert 0 not in splits["train"]["id"][:]


def test_a_missing_validation_split_is_drawn_from_the_training_split(tmp_path):
    split = ["train"] * 150 + ["test"] * 50
    options = write_corpus(tmp_path, text=comments(200), label=alternating(200), split=split)
    splits, _, _ = load_splits(options)
    assert splits["test"]["id"][:] == list(range(150, 200))
    assert len(splits["validation"]) == 15


def test_data_fraction_reduces_only_the_training_split(tmp_path):
    options = write_corpus(tmp_path, text=comments(400), label=alternating(400))
    full, _, _ = load_splits(options)
    half, _, _ = load_splits(dataclasses.replace(options, data_fraction=0.5))
    assert len(half["train"]) == len(full["train"]) // 2
    assert half["test"]["id"][:] == full["test"]["id"][:]
    assert half["validation"]["id"][:] == full["validation"]["id"][:]


def test_several_binary_columns_are_one_multi_label_task(tmp_path):
    rng = np.random.default_rng(0)
    flags = {name: rng.integers(0, 2, 200) for name in ("rude", "ad", "threat")}
    splits, task, _ = load_splits(write_corpus(tmp_path, comment=comments(200), **flags))
    assert task.multi_label and task.labels == ("rude", "ad", "threat")
    row = splits["train"][0]
    assert row["label"] == [float(flags[name][row["id"]]) for name in task.labels]


def test_class_names_may_be_words(tmp_path):
    kinds = ["spam", "ham", "eggs"] * 100
    splits, task, _ = load_splits(write_corpus(tmp_path, text=comments(300), kind=kinds))
    assert task.labels == ("eggs", "ham", "spam")
    row = splits["test"][0]
    assert task.labels[row["label"]] == kinds[row["id"]]


def test_a_row_with_an_empty_cell_in_one_label_column_is_dropped(tmp_path):
    rude = [float(label) for label in alternating(100)]
    ad = [float(i % 3 == 0) for i in range(100)]
    rude[0] = None
    ad[99] = None
    splits, _, _ = load_splits(write_corpus(tmp_path, text=comments(100), rude=rude, ad=ad))
    labels = {}
    for split in splits.values():
        labels |= dict(zip(split["id"], split["label"], strict=True))
    assert labels == {i: [rude[i], ad[i]] for i in range(1, 99)}


def test_dates_and_keys_are_not_texts(tmp_path):
    columns = {
        "date": [f"2024-05-{1 + i % 28:02d}T10:{i // 28:02d}:00Z" for i in range(100)],
        "key": [f"#{i}-7 x" for i in range(10, 110)],
        "body": comments(100),
        "is it?": ["no", "yes"] * 50,
    }
    _, _, detected = load_splits(write_corpus(tmp_path, **columns))
    assert detected == {"text_column": "body", "label_columns": ("is it?",)}


def test_rows_without_text_or_label_are_dropped_and_their_lines_named(tmp_path, caplog):
    body = comments(100)
    labels = [float(label) for label in alternating(100)]
    body[0] = "two\nlines"
    body[3] = " "
    labels[5] = None
    splits, task, _ = load_splits(write_corpus(tmp_path, text=body, label=labels))
    assert sum(len(split) for split in splits.values()) == 98
    assert task.labels == ("0", "1")
    assert caplog.messages == ["dropped 2 rows without a text or a label: lines 6, 8"]


def test_rows_of_json_lines_are_named_by_their_lines(tmp_path, caplog):
    lines = ["", ""]
    for number, text in enumerate(comments(100)):
        lines.append(json.dumps({"text": text, "label": None if number == 3 else number % 2}))
    (tmp_path / "file.jsonl").write_text("\n".join(lines))
    load_splits(Options(dataset_path=str(tmp_path / "file.jsonl")))
    assert caplog.messages == ["dropped 1 rows without a text or a label: line 6"]


def test_rows_of_several_files_are_named_with_their_file(tmp_path, caplog):
    options = write_corpus(tmp_path, text=comments(100), label=alternating(100))
    options = with_held_out_files(options)
    path = Path(options.test_path)
    path.write_text(path.read_text().replace("comment number 112,", ","))
    load_splits(options)
    assert caplog.messages[0] == f"dropped 1 rows without a text or a label: line 4 of {path}"


UNUSABLE_FILES = {
    "several candidates (a, b)": {
        "text": comments(40),
        "a": [0, 1, 2, 3] * 10,
        "b": alternating(40),
    },
    "several candidates (text, other)": {
        "text": comments(40),
        "other": comments(40),
        "label": alternating(40),
    },
    "--label_columns is needed": {"text": comments(40)},
    "40 of 60 rows lack a text or a label": {
        "text": [None, ""] * 20 + comments(20),
        "label": alternating(60),
    },
    "the file has too few texts for a validation split": {
        "text": comments(4),
        "label": alternating(4),
    },
}


@pytest.mark.parametrize("message", UNUSABLE_FILES)
def test_an_unusable_file_is_refused_in_one_line(tmp_path, message):
    with pytest.raises(UserError) as caught:
        load_splits(write_corpus(tmp_path, **UNUSABLE_FILES[message]))
    (line,) = caught.value.lines
    assert message in line and "\n" not in line


def with_held_out_files(options: Options) -> Options:
    """The options with files of 20 rows each for validation and test, from comment 90 on."""
    directory = Path(options.dataset_path).parent
    for name, start in (("validation", 90), ("test", 110)):
        texts = [f"comment number {i}" for i in range(start, start + 20)]
        rows = pd.DataFrame({"text": texts, "label": alternating(20)})
        rows.to_csv(directory / f"{name}.csv", index=False)
    return dataclasses.replace(
        options,
        validation_path=str(directory / "validation.csv"),
        test_path=str(directory / "test.csv"),
    )


def test_validation_and_test_files_are_used_unchanged_and_their_leaks_dropped(tmp_path):
    options = write_corpus(tmp_path, text=comments(100), label=alternating(100))
    splits, _, _ = load_splits(with_held_out_files(options))
    assert splits.num_rows == {"train": 90, "validation": 20, "test": 20}
    assert splits["test"]["text"][0] == "comment number 110"
    assert splits["test"]["id"][0] == 120


@pytest.mark.parametrize("split", ["train", "fold 1"])
def test_a_test_file_beside_a_column_split_is_refused(tmp_path, split):
    options = write_corpus(tmp_path, text=comments(100), label=alternating(100), split=split)
    with pytest.raises(UserError, match="which has a column split, but --validation_path and"):
        load_splits(with_held_out_files(options))


def test_folds_have_disjoint_test_splits_that_cover_every_text_and_keep_the_rates(tmp_path):
    body = comments(300) + [f" comment  number {i}" for i in range(30)]
    labels = [int(i % 300 % 3 == 0) for i in range(330)]
    options = write_corpus(tmp_path, text=body, label=labels)
    options = dataclasses.replace(options, num_folds=5)
    corpus = drop_unusable_rows(read_corpus(options))
    test_ids = []
    for fold in range(5):
        splits = split_corpus(corpus, options, fold)
        test_ids += splits["test"]["id"][:]
        texts = text_sets(splits)
        assert not texts["test"] & texts["train"]
        assert not texts["validation"] & (texts["train"] | texts["test"])
        assert len(texts["validation"]) == pytest.approx(30, abs=1)
        assert len(texts["test"]) == 60
        assert label_array(splits["test"]).mean() == pytest.approx(1 / 3, abs=0.05)
    assert sorted(test_ids) == list(range(330))


def test_groups_are_spread_evenly_over_the_splits(tmp_path):
    group = ["rare" if i % 10 == 0 else "common" for i in range(400)]
    labels = [i // 10 % 2 for i in range(400)]
    options = write_corpus(tmp_path, text=comments(400), label=labels, group=group)
    splits, _, _ = load_splits(dataclasses.replace(options, group_column="group"))
    assert [list(split["group"]).count("rare") for split in splits.values()] == [28, 4, 8]


def drawn_corpora():
    """Class sizes, the rate of duplicates, a seed, and whether to draw a fold."""
    sizes = st.lists(st.integers(12, 60), min_size=2, max_size=4)
    return st.tuples(sizes, st.floats(0, 0.8), st.integers(0, 2**31), st.booleans())


def rows_with_duplicates(
    sizes: list[int], duplicate_rate: float, seed: int
) -> list[tuple[str, str]]:
    """Shuffled rows (text, label) in which some texts have a duplicate with other white space."""
    rng = random.Random(seed)
    rows = []
    for label, size in enumerate(sizes):
        rows += [(f"text {label} {i}", f"class {label}") for i in range(size)]
    duplicates = []
    for text, label in rows:
        if rng.random() < duplicate_rate:
            duplicates.append((f" {text.replace(' ', '  ')}\u200b", label))
    rows += duplicates
    rng.shuffle(rows)
    return rows


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn_corpora())
def test_any_file_is_split_without_overlap_or_loss_and_stratified(tmp_path, drawn):
    sizes, duplicate_rate, seed, is_folded = drawn
    rows = rows_with_duplicates(sizes, duplicate_rate, seed)
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "file.csv", index=False)
    options = Options(
        dataset_path=str(tmp_path / "file.csv"),
        text_column="text",
        label_columns=("label",),
        seed=seed,
        num_folds=3 if is_folded else None,
    )
    fold = 1 if is_folded else None
    corpus = drop_unusable_rows(read_corpus(options))
    splits = split_corpus(corpus, options, fold)
    ids = []
    for split in splits.values():
        ids += split["id"][:]
    assert sorted(ids) == list(range(len(rows)))
    texts = text_sets(splits)
    assert sum(len(split_texts) for split_texts in texts.values()) == sum(sizes)  # no overlap
    test_fraction = 1 / 3 if is_folded else 0.2
    for label, size in enumerate(sizes):
        held_out = [text for text in texts["test"] if text.startswith(f"text {label} ")]
        assert abs(len(held_out) - test_fraction * size) <= 1
    repeated = split_corpus(corpus, options, fold)
    for name, split in splits.items():
        assert list(repeated[name]["id"]) == list(split["id"])


def test_the_sample_file_is_what_its_script_generates():
    script = runpy.run_path(str(ROOT / "scripts" / "make_sample_data.py"))
    table = pd.read_csv(ROOT / "data" / "HateSpeech.csv")
    rows = script["make_comments"](5000, 42)
    assert pd.DataFrame(rows, columns=["Comments", "HateSpeech"]).equals(table)
    keys = text_key(pa.array(table["Comments"].tolist(), pa.large_string()))
    assert len(keys.unique()) == 5000
