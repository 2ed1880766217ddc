"""Whole-or-absent files, their hashes, and the names of files that several modules know. No
torch."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

RECORD_NAME = "stage.json"  # how a stage was made
REPORTS_KEY = "reports"  # in RECORD_NAME: the hashes of the files that describe the model
HISTORY_NAME = "history.json"  # the metrics of each training epoch


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file by renaming a finished one: a killed process leaves the old file or the new
    one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False))


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def files_named(directory: Path, name: str) -> list[Path]:
    """Every file of this name under `directory`, sorted.

    Directories that another process deletes in the meantime are skipped.
    """
    paths = []
    for parent, _, names in os.walk(directory):  # it ignores errors, unlike Path.rglob
        if name in names:
            paths.append(Path(parent) / name)
    return sorted(paths)


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """A hard link, or a copy if the file system does not support links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def follow_umask(directory: Path) -> None:
    """Give the files of a directory that this process made the permissions of that directory.

    Some libraries write weights through temporary files, which only their owner can read. The
    permissions of a new directory follow the umask.
    """
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o777 != mode:
            with suppress(PermissionError):  # a hard link to another user's file
                path.chmod(mode)


def link_tree(source: Path, target: Path) -> None:
    """Copy a directory with hard links where possible."""
    shutil.copytree(source, target, copy_function=link_or_copy, dirs_exist_ok=True)
