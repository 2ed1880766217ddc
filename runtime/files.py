"""Whole-or-absent files, their hashes, and the names of files that several modules know. No
torch."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

RECORD_NAME = "stage.json"  # how a stage was made
REPORTS_KEY = "reports"  # in RECORD_NAME: the hashes of the files that describe the model
HISTORY_NAME = "history.json"  # the metrics of each training epoch
MAX_STEM_CHARACTERS = 50  # of a file's name in the name of its partial file
MAX_REASON_CHARACTERS = 200

# How file systems refuse to flush a directory: network file systems, and Windows.
CANNOT_FLUSH_NAMES = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)

Value = TypeVar("Value")


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content is on the disk.

    Without it, a power cut after a rename can leave an empty file under the new name.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_names_to_disk(directory: Path) -> None:
    """Wait until the names in a directory are on the disk, if its file system can do that."""
    try:
        flush_to_disk(directory)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH_NAMES:
            raise


def flush_tree_to_disk(directory: Path) -> None:
    """`flush_to_disk` for every file and directory of a tree."""
    for parent, _, names in os.walk(directory):
        for name in names:
            flush_to_disk(Path(parent) / name)
        flush_names_to_disk(Path(parent))


def replace_durably(partial: Path, path: Path) -> None:
    """Rename a finished file, which survives a power cut from then on."""
    flush_to_disk(partial)
    partial.replace(path)
    flush_names_to_disk(path.parent)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file by renaming a finished one: a killed process or a power cut leaves the old file
    or the new one."""
    stem = path.name[:MAX_STEM_CHARACTERS]
    partial = path.with_name(f"{stem}.{os.getpid()}.partial")
    delete(partial)
    partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    replace_durably(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False))


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_state(
    path: Path, read: Callable[[Path], Value], level: int = logging.WARNING
) -> Value | None:
    """`read(path)` for a file that a run wrote; None if it is absent or damaged.

    A damaged file is named in one log line of this level; the caller recomputes what it contained.
    `read` raises OSError, ValueError, KeyError or TypeError for damage.
    """
    try:
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS]
        log.log(level, "%s is damaged and ignored: %s", path, reason or type(error).__name__)
        return None


def delete(path: Path) -> None:
    """Delete a file or a directory tree, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Make a directory of ours, in place of a file that is there."""
    if path.exists() and not path.is_dir():
        log.warning("%s must be a directory: the file is deleted", path)
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)


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


def partial_paths(directory: Path) -> Iterator[Path]:
    """The outermost files and directories under `directory` whose names end in `.partial`."""
    for parent, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            if name.endswith(".partial"):
                yield Path(parent) / name
        directories[:] = [name for name in directories if not name.endswith(".partial")]


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
