"""Reading and splitting: columns found without doubt, no text on two sides, contradictions gone."""

import random
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compression_config import Options, UserError
from corpus.columns import read_corpus, text_key
from data import drop_unusable_rows, label_array, load_splits, split_corpus


def write(tmp_path, **columns) -> Options:
    path = tmp_path / "file.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return Options(dataset_path=str(path))


def texts(count: int) -> list[str]:
    return [f"comment number {i}" for i in range(count)]


def keys(splits) -> dict[str, set[str]]:
    """Texts by split, white space folded by the test's own hand."""
    return {
        name: {" ".join(text.split()) for text in split["text"]} for name, split in splits.items()
    }


def test_splits_are_disjoint_stratified_and_repeatable(tmp_path):
    options = write(tmp_path, text=texts(400), label=[int(i % 4 == 0) for i in range(400)])
    splits, task, columns = load_splits(options)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 280,
        "validation": 40,
        "test": 80,
    }
    assert task.labels == ("0", "1") and columns == {
        "text_column": "text",
        "label_columns": ("label",),
    }
    found = keys(splits)
    assert not found["train"] & found["test"] and not found["train"] & found["validation"]
    assert all(
        label_array(split).mean() == pytest.approx(0.25, abs=0.02) for split in splits.values()
    )
    again, _, _ = load_splits(options)
    assert all(again[name]["id"] == splits[name]["id"] for name in splits)


def test_copies_of_a_text_stay_on_one_side_whatever_their_spacing(tmp_path):
    body = texts(100) + [f"  comment  number {i} " for i in range(100)]
    splits, _, _ = load_splits(write(tmp_path, text=body, label=[i % 2 for i in range(200)]))
    found = keys(splits)
    assert not found["train"] & found["test"] and not found["validation"] & found["test"]
    assert sum(len(split) for split in splits.values()) == 200


def test_the_text_that_models_read_is_raw(tmp_path):
    body = [f" ক\u09c7\u09be {i}  " for i in range(100)]
    splits, _, _ = load_splits(write(tmp_path, text=body, label=[i % 2 for i in range(100)]))
    assert all(text in body for text in splits["train"]["text"])


def test_contradicting_texts_are_dropped(tmp_path):
    body = texts(100) + ["comment number 0"]
    splits, _, _ = load_splits(write(tmp_path, text=body, label=[i % 2 for i in range(100)] + [1]))
    assert not any("comment number 0" in found for found in keys(splits).values())


def test_the_files_own_split_is_honoured_and_its_leaks_dropped(tmp_path):
    split = ["train"] * 100 + ["dev"] * 20 + ["test"] * 20
    body = texts(140)
    body[0] = body[139]
    splits, _, _ = load_splits(
        write(tmp_path, text=body, label=[i % 2 for i in range(139)] + [0], split=split)
    )
    assert splits["test"]["id"][:] == list(range(120, 140)) and len(splits["validation"]) == 20
    assert 0 not in splits["train"]["id"][:]


def test_a_file_with_only_a_test_split_gets_its_validation_from_training(tmp_path):
    options = write(
        tmp_path,
        text=texts(200),
        label=[i % 2 for i in range(200)],
        split=["train"] * 150 + ["test"] * 50,
    )
    splits, _, _ = load_splits(options)
    assert splits["test"]["id"][:] == list(range(150, 200))
    assert len(splits["validation"]) == 15


def test_data_fraction_touches_training_rows_alone(tmp_path):
    whole = write(tmp_path, text=texts(400), label=[i % 2 for i in range(400)])
    part = Options(dataset_path=whole.dataset_path, data_fraction=0.5)
    many, few = load_splits(whole)[0], load_splits(part)[0]
    assert len(few["train"]) == len(many["train"]) // 2
    assert (
        few["test"]["id"][:] == many["test"]["id"][:]
        and few["validation"]["id"][:] == many["validation"]["id"][:]
    )


def test_several_flag_columns_are_one_multi_label_task(tmp_path):
    rng = np.random.default_rng(0)
    flags = {name: rng.integers(0, 2, 200) for name in ("rude", "ad", "threat")}
    splits, task, columns = load_splits(write(tmp_path, comment=texts(200), **flags))
    assert task.multi_label and task.labels == ("rude", "ad", "threat")
    row = splits["train"][0]
    assert row["label"] == [float(flags[name][row["id"]]) for name in task.labels]


def test_classes_may_be_words(tmp_path):
    names = ["spam", "ham", "eggs"]
    splits, task, _ = load_splits(
        write(tmp_path, text=texts(300), kind=[names[i % 3] for i in range(300)])
    )
    assert task.labels == ("eggs", "ham", "spam")
    row = splits["test"][0]
    assert task.labels[row["label"]] == names[row["id"] % 3]


def test_dates_and_keys_are_no_texts(tmp_path):
    dates = [f"2024-05-{1 + i % 28:02d}T10:{i // 28:02d}:00Z" for i in range(100)]
    labelled = write(
        tmp_path,
        date=dates,
        key=[f"#{i}-7 x" for i in range(10, 110)],
        body=texts(100),
        **{"is it?": ["no", "yes"] * 50},
    )
    assert load_splits(labelled)[2] == {"text_column": "body", "label_columns": ("is it?",)}


def test_rows_without_text_or_label_are_dropped(tmp_path):
    body, labels = texts(100), [float(i % 2) for i in range(100)]
    body[3], labels[5] = " ", None
    splits, task, _ = load_splits(write(tmp_path, text=body, label=labels))
    assert sum(len(split) for split in splits.values()) == 98 and task.labels == ("0", "1")


@pytest.mark.parametrize(
    "columns, said",
    [
        (
            {"text": texts(40), "a": [0, 1, 2, 3] * 10, "b": [0, 1] * 20},
            "several candidates (a, b)",
        ),
        (
            {"text": texts(40), "other": texts(40), "label": [0, 1] * 20},
            "several candidates (text, other)",
        ),
        ({"text": texts(40)}, "--label_columns is needed"),
        (
            {"text": [None, ""] * 20 + texts(20), "label": [0, 1] * 30},
            "40 of 60 rows lack a text or a label",
        ),
        ({"text": texts(4), "label": [0, 1] * 2}, "has 2 texts, too few to hold out 20%"),
    ],
)
def test_doubtful_files_are_refused_in_one_line(tmp_path, columns, said):
    with pytest.raises(UserError) as caught:
        load_splits(write(tmp_path, **columns))
    assert (
        len(caught.value.lines) == 1
        and said in caught.value.lines[0]
        and "\n" not in caught.value.lines[0]
    )


def test_validation_and_test_files_are_taken_as_they_are_and_their_leaks_dropped(tmp_path):
    write(tmp_path, text=texts(100), label=[i % 2 for i in range(100)])
    for name, start in (("validation", 90), ("test", 110)):
        rows = {
            "text": [f"comment number {i}" for i in range(start, start + 20)],
            "label": [0, 1] * 10,
        }
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    splits, _, _ = load_splits(
        Options(
            dataset_path=str(tmp_path / "file.csv"),
            validation_path=str(tmp_path / "validation.csv"),
            test_path=str(tmp_path / "test.csv"),
        )
    )
    assert splits.num_rows == {"train": 90, "validation": 20, "test": 20}
    assert splits["test"]["text"][0] == "comment number 110" and splits["test"]["id"][0] == 120


def test_folds_are_disjoint_tests_that_cover_every_text_and_share_the_rates(tmp_path):
    body = texts(300) + [f" comment  number {i}" for i in range(30)]
    write(tmp_path, text=body, label=[int(i % 300 % 3 == 0) for i in range(330)])
    options = Options(dataset_path=str(tmp_path / "file.csv"), num_folds=5)
    labelled = drop_unusable_rows(read_corpus(options))
    folds = [split_corpus(labelled, options, fold) for fold in range(5)]
    tests = [set(fold["test"]["id"]) for fold in folds]
    assert sum(map(len, tests)) == 330 and set().union(*tests) == set(range(330))
    for fold in folds:
        found = keys(fold)
        assert not found["test"] & found["train"] and not found["validation"] & (
            found["train"] | found["test"]
        )
        assert len(found["validation"]) == pytest.approx(30, abs=1) and len(found["test"]) == 60
        assert label_array(fold["test"]).mean() == pytest.approx(1 / 3, abs=0.05)


def test_groups_are_spread_over_the_splits(tmp_path):
    group = ["rare" if i % 10 == 0 else "common" for i in range(400)]
    write(tmp_path, text=texts(400), label=[i // 10 % 2 for i in range(400)], group=group)
    splits, _, _ = load_splits(
        Options(dataset_path=str(tmp_path / "file.csv"), group_column="group")
    )
    assert [list(split["group"]).count("rare") for split in splits.values()] == [28, 4, 8]


def labelled_files():
    """Texts of which many repeat with other blanks, in classes of any balance, each with at
    least 12 texts."""
    sizes = st.lists(st.integers(12, 60), min_size=2, max_size=4)
    return st.tuples(sizes, st.floats(0, 0.8), st.integers(0, 2**31), st.booleans())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(labelled_files())
def test_any_file_is_split_without_overlap_or_loss_at_its_own_rates(tmp_path, drawn):
    sizes, copied, seed, folded = drawn
    rng = random.Random(seed)
    rows = [
        (f"text {label} {i}", f"class {label}")
        for label, size in enumerate(sizes)
        for i in range(size)
    ]
    rows += [
        (f" {text.replace(' ', '  ')}\u200b", label)
        for text, label in rows
        if rng.random() < copied
    ]
    rng.shuffle(rows)
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "file.csv", index=False)
    options = Options(
        dataset_path=str(tmp_path / "file.csv"),
        text_column="text",
        label_columns=("label",),
        seed=seed,
        num_folds=3 if folded else None,
    )
    labelled = drop_unusable_rows(read_corpus(options))
    splits = split_corpus(labelled, options, 1 if folded else None)
    ids = [i for split in splits.values() for i in split["id"]]
    assert sorted(ids) == list(range(len(rows)))
    found = {
        name: {" ".join(text.replace("\u200b", "").split()) for text in split["text"]}
        for name, split in splits.items()
    }
    assert sum(map(len, found.values())) == sum(sizes)  # every text on one side
    share = 1 / 3 if folded else 0.2
    for label, size in enumerate(sizes):
        held = sum(key.startswith(f"text {label} ") for key in found["test"])
        assert abs(held - share * size) <= 1  # a class is held out to the nearest whole texts
    again = split_corpus(labelled, options, 1 if folded else None)
    assert all(list(again[name]["id"]) == list(splits[name]["id"]) for name in splits)


def test_the_sample_is_what_its_script_makes():
    root = Path(__file__).parent.parent
    script = runpy.run_path(str(root / "scripts" / "make_sample_data.py"))
    table = pd.read_csv(root / "data" / "HateSpeech.csv")
    made = pd.DataFrame(script["make_comments"](5000, 42), columns=["Comments", "HateSpeech"])
    assert made.equals(table)
    keys = text_key(pa.array(table["Comments"].tolist(), pa.large_string()))
    assert len(keys.unique()) == 5000
