"""Real public files, where REAL_DATA_DIR names their folder: columns, splits and traps found
unaided."""

import logging
import os
from pathlib import Path

import pytest

from compression_config import Options
from corpus.audit import audit_corpus, audit_table
from corpus.columns import read_corpus, text_key
from data import drop_unusable_rows, label_array, load_splits, split_corpus

FOLDER = os.environ.get("REAL_DATA_DIR")
pytestmark = pytest.mark.skipif(not FOLDER, reason="REAL_DATA_DIR is not set")


def load(name: str, **options):
    return load_splits(Options(dataset_path=str(Path(FOLDER or "") / name), **options))


def test_bangla_binary_drops_its_contradictions_and_keeps_copies_together(caplog):
    with caplog.at_level(logging.WARNING):
        splits, task, columns = load("bangla_hatespeech_binary.csv")
    assert columns == {
        "text_column": "Comments",
        "label_columns": ("HateSpeech",),
    } and task.labels == ("0", "1")
    assert "their 38 texts have more than one label" in caplog.text
    texts = {name: split.data.column("text").combine_chunks() for name, split in splits.items()}
    keys = {name: set(text_key(part).to_pylist()) for name, part in texts.items()}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["validation"]
    assert all(
        label_array(split).mean() == pytest.approx(0.507, abs=0.02) for split in splits.values()
    )


def test_english_keeps_its_own_split():
    splits, task, columns = load("english_offensive_binary.csv")
    assert columns == {"text_column": "text", "label_columns": ("label",)} and not task.multi_label
    assert splits.num_rows == {
        "train": 11890,
        "validation": 1322,
        "test": 858,
    }  # 16 leaks and 7 contradictions less


def test_bangla_multi_label_needs_its_label_columns_and_finds_its_text(caplog):
    names = ("bully", "sexual", "religious", "threat", "spam")
    with caplog.at_level(logging.WARNING):
        splits, task, columns = load("bangla_cyberbully_multilabel.csv", label_columns=names)
    assert columns["text_column"] == "comment" and task.multi_label and task.labels == names
    assert "more than one label" in caplog.text
    assert all((label_array(split).sum(axis=0) > 0).all() for split in splits.values())


def audited(name: str, **options) -> dict:
    chosen = Options(dataset_path=str(Path(FOLDER or "") / name), **options)
    labelled = read_corpus(chosen)
    return audit_corpus(labelled, split_corpus(drop_unusable_rows(labelled), chosen), {}, 128)


def test_the_audit_finds_the_traps_of_the_bangla_binary_file():
    found = audited("bangla_hatespeech_binary.csv")
    assert found["rows"] == 16407 and found["labels"]["1"] == pytest.approx(0.507, abs=0.001)
    (drift,) = found["order_drift"]
    assert drift["last_row"] == 12000
    assert drift["before"] == pytest.approx(0.693, abs=0.001) and drift["after"] == 8 / 4407
    assert (
        found["copies"]["normalized"] == 620 and found["contradictions"]["texts"] == 38
    )  # 3.8 % of texts
    marks = found["characters"]
    assert (
        marks["no_break_space"]["characters"] == 556
        and marks["left_to_right_mark"]["characters"] == 195
    )
    assert (
        marks["edge_blanks"]["rows"] == 3562 and marks["changed_by_nfc"]["rows"] == 5619
    )  # 22 % and 34 %
    assert "label 1: 69.3% up to row 12000, 0.2% after it" in audit_table(found)


def test_the_audit_finds_the_traps_of_the_multi_label_file():
    names = ("bully", "sexual", "religious", "threat", "spam")
    found = audited("bangla_cyberbully_multilabel.csv", label_columns=names)
    assert (
        found["copies"]["normalized"] == 2398 and found["contradictions"]["texts"] == 372
    )  # 19.1 % of texts
    assert found["characters"]["newline"]["rows"] == 311
    assert found["near_equal_values"]["Gender"] == [["female", "female "]]
    threat = found["order_drift"][0]
    assert (
        threat["label"] == "threat"
        and 10000 < threat["last_row"] < 10700
        and threat["before"] < 0.02
    )


def test_the_audit_finds_what_leaks_over_the_english_files_own_split():
    found = audited("english_offensive_binary.csv")
    assert found["leaks"] == {
        "same_text": 16,
        "near_identical_validation": 9,
        "near_identical_test": 1,
    }
    assert found["order_drift"] == [] and found["characters"]["edge_blanks"]["rows"] == 14100
