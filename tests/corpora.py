"""Labeled files and their audits, built by tests."""

from pathlib import Path
from typing import Any

import pandas as pd

from compression_config import Options
from corpus.audit import audit_corpus
from corpus.columns import read_corpus
from data import drop_unusable_rows, split_corpus


def comments(count: int) -> list[str]:
    """Distinct texts: `comment number 0`, `comment number 1`, ..."""
    return [f"comment number {i}" for i in range(count)]


def alternating(count: int) -> list[int]:
    """Labels 0, 1, 0, 1, ..."""
    return [i % 2 for i in range(count)]


def write_corpus(tmp_path: Path, **columns: Any) -> Options:
    """Options that read a file with these columns."""
    path = tmp_path / "file.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return Options(dataset_path=str(path))


def audit_of(options: Options) -> dict[str, Any]:
    """The audit of a file, without tokenizers."""
    corpus = read_corpus(options)
    splits = split_corpus(drop_unusable_rows(corpus), options)
    return audit_corpus(corpus, splits, {}, max_length=128)
