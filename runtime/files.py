"""Whole-or-absent files and their hashes. Standard library only."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

HISTORY_NAME = "history.json"  # the metrics of each training epoch


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file by renaming a finished one, so that a killed process leaves the old file or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
