"""A model directory on disk: complete or absent, with a record of how it was made.

A stage writes into `<stage>.<fingerprint>.partial`, which a killed run leaves behind with its
checkpoints. The directory is renamed when it is complete. A finished directory with the same
fingerprint is hard-linked instead of recomputed.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from filelock import FileLock, Timeout

from runtime.checkpoints import CHECKPOINTS
from runtime.distributed import is_main_process, process_count, wait_for_everyone
from runtime.errors import UserError
from runtime.files import (
    HISTORY_NAME,
    RECORD_NAME,
    REPORTS_KEY,
    delete,
    file_sha256,
    files_named,
    flush_names_to_disk,
    flush_tree_to_disk,
    follow_umask,
    json_digest,
    link_tree,
    partial_paths,
    read_json,
    read_state,
    write_json,
)

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

METADATA_FILES = (  # they describe a model and are not part of it
    RECORD_NAME,
    HISTORY_NAME,
    "results_final.csv",
    "results_final.json",
    "report.html",
)
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
    "scikit-learn",
    "torchao",
    "bitsandbytes",
    "onnxruntime",
    "openvino",
    "nncf",
)
REPORT_FILES = ("results_final.csv", "results_final.json", "report.html", "README.md")
RECORD_ENTRIES = {"fingerprint": str, "files": dict}
COST_ENTRIES = ("seconds", "peak_memory_mb")  # the record of an artifact has none
HASHED_ROWS = 10_000  # rows that are serialized at once
MEMORY_SAMPLE_S = 0.05


def rows_hash(split: Dataset, columns: Iterable[str] = ("id", "text", "label")) -> str:
    """A digest of the rows of a split, in order."""
    rows = split.select_columns(list(columns))
    starts = range(0, len(rows), HASHED_ROWS)
    return json_digest([json_digest(rows[start : start + HASHED_ROWS]) for start in starts])


def file_hashes(directory: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file of a model directory, without metadata and
    checkpoints."""
    hashes = {}
    for path in sorted(directory.rglob("*")):
        is_model = path.name not in METADATA_FILES and CHECKPOINTS not in path.parts
        if is_model and path.is_file():
            hashes[str(path.relative_to(directory))] = file_sha256(path)
    return hashes


def model_hashes(directory: Path) -> dict[str, str]:
    """`file_hashes`; if the directory has a record, only of the files that the record lists."""
    hashes = file_hashes(directory)
    record = read_state(directory / RECORD_NAME, read_record_file)
    if record is None:
        return hashes
    return {name: value for name, value in hashes.items() if name in record["files"]}


def source_hash(spec: str) -> str:
    """A digest of the model that a hub name, directory or scratch shape names; "" for ""."""
    if not spec:
        return ""
    if Path(spec).is_dir():
        return json_digest(model_hashes(Path(spec)))
    if ":" in spec:
        return spec
    from transformers import AutoConfig

    # the checks of the options have downloaded it
    config = AutoConfig.from_pretrained(spec, local_files_only=True, trust_remote_code=False)
    return f"{spec}@{getattr(config, '_commit_hash', None)}"


def read_record(directory: Path) -> dict[str, Any]:
    """The `stage.json` of a finished directory; ValueError if it is damaged."""
    return read_record_file(directory / RECORD_NAME)


def read_record_file(path: Path) -> dict[str, Any]:
    """A `stage.json`; ValueError if it is not a record of a finished directory."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    for name, kind in RECORD_ENTRIES.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"it has no valid {name!r}")
    for name in COST_ENTRIES:
        if name in record and not isinstance(record[name], int | float):
            raise ValueError(f"it has no valid {name!r}")
    return record


def write_record(directory: Path, **entries: Any) -> None:
    """Write `stage.json`: the entries, the hash of every file, library versions, threads and
    processes."""
    import torch

    record = entries | {
        "files": file_hashes(directory),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
        "processes": process_count(),
    }
    write_json(directory / RECORD_NAME, record)


def record_reports(directory: Path) -> None:
    """Add to `stage.json` the hashes of the reports, which are written after it."""
    hashes = {}
    for name in REPORT_FILES:
        if (directory / name).is_file():
            hashes[name] = file_sha256(directory / name)
    write_json(directory / RECORD_NAME, read_record(directory) | {REPORTS_KEY: hashes})


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that determine results."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def damaged_file(directory: Path, record: dict[str, Any]) -> Path | None:
    """The first file of the record that is absent or changed; None if the directory is intact."""
    for name, expected in record["files"].items():
        path = directory / name
        try:
            is_unchanged = file_sha256(path) == expected
        except OSError:
            is_unchanged = False
        if not is_unchanged:
            return path
    return None


def is_finished(directory: Path, fingerprint: str, level: int) -> bool:
    """Whether a directory is a finished, unchanged stage with this fingerprint.

    A damaged record is named in a log line of this level; a damaged file of a stage with this
    fingerprint in a warning.
    """
    record = read_state(directory / RECORD_NAME, read_record_file, level)
    if record is None or record["fingerprint"] != fingerprint:
        return False
    damaged = damaged_file(directory, record)
    if damaged is None:
        return True
    if directory.exists():  # otherwise another run has just replaced it
        log.warning("%s is damaged: %s is not reused", damaged, directory)
    return False


def find_finished(directories: Iterable[Path], fingerprint: str) -> Path | None:
    """A finished, unchanged directory with this fingerprint: one of `directories`, or anywhere
    under them.

    What is not a finished stage is skipped. So is what another run replaces in the meantime.
    """
    checked = set()
    for directory in directories:
        if is_finished(directory, fingerprint, logging.WARNING):
            return directory
        checked.add(directory)
        for path in files_named(directory, RECORD_NAME):
            if path.parent in checked or path.parent.name.endswith(".partial"):
                continue
            checked.add(path.parent)
            if is_finished(path.parent, fingerprint, logging.DEBUG):
                return path.parent
    return None


def clear_except_checkpoints(directory: Path) -> None:
    """Delete what a killed run left in `directory`, except its checkpoints."""
    if not directory.is_dir():
        delete(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.name != CHECKPOINTS or not path.is_dir():
            delete(path)


def partial_path(target: Path, fingerprint: str) -> Path:
    """Where `target` is written until it is complete."""
    return target.with_name(f"{target.name}.{fingerprint}.partial")


def publish(partial: Path, target: Path) -> None:
    """Rename a finished partial directory to `target`, replacing an older one.

    Its files are on the disk before, and its name after it.
    """
    shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
    follow_umask(partial)
    flush_tree_to_disk(partial)
    old = partial_path(target, "old")
    delete(old)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    flush_names_to_disk(target.parent)
    delete(old)


def publish_if_finished(target: Path, fingerprint: str) -> None:
    """Publish a partial directory that a run had finished when it was killed."""
    partial = partial_path(target, fingerprint)
    if is_finished(partial, fingerprint, logging.WARNING):
        publish(partial, target)


def link_finished(source: Path, target: Path, fingerprint: str) -> bool:
    """Make `target` a copy of a finished directory, with hard links where possible.

    False, without a `target`, if another run replaces `source` in the meantime.
    """
    partial = partial_path(target, fingerprint)
    clear_except_checkpoints(partial)
    try:
        link_tree(source, partial)
    except FileNotFoundError:
        return False
    except shutil.Error as error:  # of several files
        log.debug("%s cannot be copied: %s", source, error)
        return False
    if not is_finished(partial, fingerprint, logging.DEBUG):
        return False
    publish(partial, target)
    return True


@contextmanager
def atomic_directory(target: Path, fingerprint: str) -> Iterator[Path]:
    """A directory to write into, renamed to `target` when the block ends without an error."""
    partial = partial_path(target, fingerprint)
    clear_except_checkpoints(partial)
    yield partial
    publish(partial, target)


@contextmanager
def write_together(target: Path, fingerprint: str) -> Iterator[Path]:
    """`atomic_directory` for all processes of a run; the main process prepares and renames it."""
    if is_main_process():
        directory = atomic_directory(target, fingerprint)
    else:
        directory = nullcontext(partial_path(target, fingerprint))
    with directory as partial:
        wait_for_everyone()
        yield partial
        wait_for_everyone()
    wait_for_everyone()


def delete_partials(directory: Path) -> None:
    """Delete what killed runs left under `directory`."""
    for path in partial_paths(directory):
        delete(path)


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory; UserError if another process holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ".lock"
    if path.is_dir():
        log.warning("%s is a directory: it is deleted", path)
        delete(path)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{directory} is in use by another run; wait for it, or give another --experiment"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def measure_cost() -> Iterator[dict[str, float]]:
    """`seconds` and sampled `peak_memory_mb` (resident set, MiB) of the block, set when it ends."""
    process = psutil.Process(os.getpid())
    finished = threading.Event()
    start_s = time.monotonic()
    cost = {"seconds": 0.0, "peak_memory_mb": resident_mib(process)}

    def sample_memory() -> None:
        while not finished.wait(MEMORY_SAMPLE_S):
            cost["peak_memory_mb"] = max(cost["peak_memory_mb"], resident_mib(process))

    sampler = threading.Thread(target=sample_memory, daemon=True)
    sampler.start()
    try:
        yield cost
    finally:
        finished.set()
        sampler.join()
    cost["seconds"] = round(time.monotonic() - start_s, 2)
    cost["peak_memory_mb"] = round(cost["peak_memory_mb"], 1)


def resident_mib(process: psutil.Process) -> float:
    """Resident memory of a process, in MiB."""
    return process.memory_info().rss / 2**20
