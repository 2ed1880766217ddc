"""A model directory on disk: complete or absent, with a record of how it was made.

A stage writes into `<stage>.<fingerprint>.partial`, which a killed run leaves behind with its
checkpoints. The directory is renamed when it is complete. A finished directory with the same
fingerprint is hard-linked instead of recomputed.
"""

from __future__ import annotations

import os
import platform
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
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
    file_sha256,
    files_named,
    follow_umask,
    json_digest,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    from datasets import Dataset

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
    if not (directory / RECORD_NAME).is_file():
        return hashes
    listed = read_record(directory).get("files", hashes)
    return {name: value for name, value in hashes.items() if name in listed}


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
    """The `stage.json` of a finished directory."""
    return read_json(directory / RECORD_NAME)


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


def is_intact(directory: Path, record: dict[str, Any]) -> bool:
    """Whether every file that the record lists is present and unchanged."""
    for name, expected in record["files"].items():
        path = directory / name
        if not path.is_file() or file_sha256(path) != expected:
            return False
    return True


def find_finished(directories: Iterable[Path], fingerprint: str) -> Path | None:
    """A finished, unchanged directory with this fingerprint anywhere under `directories`."""
    for directory in directories:
        for path in files_named(directory, RECORD_NAME):
            if path.parent.name.endswith(".partial"):
                continue
            with suppress(OSError, ValueError, KeyError):  # another run may be replacing it
                record = read_record(path.parent)
                if record["fingerprint"] == fingerprint and is_intact(path.parent, record):
                    return path.parent
    return None


def clear_except_checkpoints(directory: Path) -> None:
    """Delete what a killed run left in `directory`, except its checkpoints."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.name != CHECKPOINTS:
            delete(path)


def delete(path: Path) -> None:
    """Delete a file or a directory tree."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def partial_path(target: Path, fingerprint: str) -> Path:
    """Where `target` is written until it is complete."""
    return target.with_name(f"{target.name}.{fingerprint}.partial")


def publish(partial: Path, target: Path) -> None:
    """Rename a finished partial directory to `target`, replacing an older one."""
    shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
    follow_umask(partial)
    old = partial_path(target, "old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def publish_if_finished(target: Path, fingerprint: str) -> None:
    """Publish a partial directory that a run had finished when it was killed."""
    partial = partial_path(target, fingerprint)
    if (partial / RECORD_NAME).is_file() and is_intact(partial, read_record(partial)):
        publish(partial, target)


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
    for path in list(directory.rglob("*.partial")):
        delete(path)


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory; UserError if another process holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock", timeout=0)
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
