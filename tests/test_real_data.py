"""Public datasets: columns, splits and known problems are detected without help.

REAL_DATA_DIR is the directory with the files; without it, the tests are skipped.
"""

import logging
import os
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from corpora import audit_of

from compression_config import Options
from corpus.audit import audit_table
from corpus.text_keys import text_key
from data import label_array, load_splits

DIRECTORY = os.environ.get("REAL_DATA_DIR", "")
pytestmark = pytest.mark.skipif(not DIRECTORY, reason="REAL_DATA_DIR is not set")

BANGLA_BINARY = "bangla_hatespeech_binary.csv"
BANGLA_MULTI_LABEL = "bangla_cyberbully_multilabel.csv"
ENGLISH_BINARY = "english_offensive_binary.csv"
BULLYING_LABELS = ("bully", "sexual", "religious", "threat", "spam")


def normalized(text: str) -> str:
    """The key of a text, computed without the code under test."""
    visible = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return " ".join(unicodedata.normalize("NFC", visible).split())


def options_of(name: str, **options) -> Options:
    return Options(dataset_path=str(Path(DIRECTORY) / name), **options)


def test_bangla_binary_drops_contradictions_and_keeps_duplicates_in_one_split(caplog):
    with caplog.at_level(logging.WARNING):
        splits, task, columns = load_splits(options_of(BANGLA_BINARY))
    assert columns == {"text_column": "Comments", "label_columns": ("HateSpeech",)}
    assert task.labels == ("0", "1")
    assert "their 38 texts have more than one label" in caplog.text
    keys = {}
    for name, split in splits.items():
        keys[name] = set(text_key(split.data.column("text").combine_chunks()).to_pylist())
        assert label_array(split).mean() == pytest.approx(0.507, abs=0.02)
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]


def test_english_keeps_the_splits_of_the_file():
    splits, task, columns = load_splits(options_of(ENGLISH_BINARY))
    assert columns == {"text_column": "text", "label_columns": ("label",)}
    assert not task.multi_label
    rows = pd.read_csv(Path(DIRECTORY) / ENGLISH_BINARY)
    rows["key"] = rows["text"].map(normalized)
    rows = rows[rows.groupby("key")["label"].transform("nunique") == 1]  # without 8 texts
    splits_of_key = rows.groupby("key")["split"]
    in_test = splits_of_key.transform(lambda names: "test" in set(names))
    in_validation = splits_of_key.transform(lambda names: "validation" in set(names))
    is_leak = in_test & (rows["split"] != "test")
    is_leak |= in_validation & (rows["split"] == "train")
    assert is_leak.sum() == 11
    assert splits.num_rows == rows[~is_leak]["split"].value_counts().to_dict()
    for name, split in splits.items():
        assert split["id"][:] == rows.index[~is_leak & (rows["split"] == name)].tolist()


def test_bangla_multi_label_needs_its_label_columns_and_detects_its_text_column(caplog):
    options = options_of(BANGLA_MULTI_LABEL, label_columns=BULLYING_LABELS)
    with caplog.at_level(logging.WARNING):
        splits, task, columns = load_splits(options)
    assert columns["text_column"] == "comment"
    assert task.multi_label and task.labels == BULLYING_LABELS
    assert "more than one label" in caplog.text
    for split in splits.values():
        assert (label_array(split).sum(axis=0) > 0).all()


def test_the_audit_reports_the_problems_of_the_bangla_binary_file():
    audit = audit_of(options_of(BANGLA_BINARY))
    assert audit["rows"] == 16407
    assert audit["labels"]["1"] == pytest.approx(0.507, abs=0.001)
    (drift,) = audit["order_drift"]
    assert drift["last_row"] == 12000
    assert drift["before"] == pytest.approx(0.693, abs=0.001)
    assert drift["after"] == 8 / 4407
    assert audit["copies"]["normalized"] == 620  # 3.8 % of texts
    assert audit["contradictions"]["texts"] == 38
    characters = audit["characters"]
    assert characters["no_break_space"]["characters"] == 556
    assert characters["left_to_right_mark"]["characters"] == 195
    assert characters["edge_blanks"]["rows"] == 3562  # 22 %
    assert characters["changed_by_nfc"]["rows"] == 5619  # 34 %
    assert "label 1: 69.3% up to row 12000, 0.2% after it" in audit_table(audit)


def test_the_audit_reports_the_problems_of_the_multi_label_file():
    audit = audit_of(options_of(BANGLA_MULTI_LABEL, label_columns=BULLYING_LABELS))
    assert audit["copies"]["normalized"] == 2398  # 19.1 % of texts
    assert audit["contradictions"]["texts"] == 372
    assert audit["characters"]["newline"]["rows"] == 311
    assert audit["near_equal_values"]["Gender"] == [["female", "female "]]
    widest = audit["order_drift"][0]
    assert widest["label"] == "threat"
    assert 10000 < widest["last_row"] < 10700
    assert widest["before"] < 0.02


def test_the_audit_reports_the_leaks_across_the_splits_of_the_english_file():
    audit = audit_of(options_of(ENGLISH_BINARY))
    assert audit["leaks"] == {
        "same_text": 11,
        "near_identical_validation": 9,
        "near_identical_test": 1,
    }
    assert audit["order_drift"] == []
    assert audit["characters"]["edge_blanks"]["rows"] == 14100
