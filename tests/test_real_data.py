"""Real public files, where REAL_DATA_DIR names their folder: columns, splits and traps found unaided."""

import logging
import os
from pathlib import Path

import pytest

from compression_config import DataOptions
from data import label_array, load_splits, text_key

FOLDER = os.environ.get("REAL_DATA_DIR")
pytestmark = pytest.mark.skipif(not FOLDER, reason="REAL_DATA_DIR is not set")


def load(name: str, **options):
    return load_splits(DataOptions(dataset_path=str(Path(FOLDER or "") / name), **options))


def test_bangla_binary_drops_its_contradictions_and_keeps_copies_together(caplog):
    with caplog.at_level(logging.WARNING):
        splits, task, columns = load("bangla_hatespeech_binary.csv")
    assert columns == {"text_column": "Comments", "label_columns": ("HateSpeech",)} and task.labels == ("0", "1")
    assert "37 texts carry contradicting labels" in caplog.text
    keys = {name: {text_key(text) for text in split[:]["text"]} for name, split in splits.items()}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["validation"]
    assert all(label_array(split).mean() == pytest.approx(0.507, abs=0.02) for split in splits.values())


def test_english_keeps_its_own_split():
    splits, task, columns = load("english_offensive_binary.csv")
    assert columns == {"text_column": "text", "label_columns": ("label",)} and not task.multi_label
    assert splits.num_rows == {"train": 11890, "validation": 1322, "test": 858}  # 16 leaks and 7 contradictions less


def test_bangla_multi_label_needs_its_label_columns_and_finds_its_text(caplog):
    names = ("bully", "sexual", "religious", "threat", "spam")
    with caplog.at_level(logging.WARNING):
        splits, task, columns = load("bangla_cyberbully_multilabel.csv", label_columns=names)
    assert columns["text_column"] == "comment" and task.multi_label and task.labels == names
    assert "texts carry contradicting labels" in caplog.text
    assert all((label_array(split).sum(axis=0) > 0).all() for split in splits.values())
