"""A model directory on disk: whole or absent, and it says how it was made.

A stage writes into `<stage>.<fingerprint>.partial`, which a killed run leaves behind with its checkpoints, and the
folder is renamed when it is done. A finished folder with the same fingerprint is hard-linked, not made again.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import torch
import zstandard
from datasets import Dataset
from filelock import FileLock, Timeout

from compression_config import UserError
from runtime.distributed import is_main_process, process_count, wait_for_everyone
from runtime.files import file_sha256, json_digest, write_json

RECORD = "stage.json"

CHECKPOINTS = "checkpoints"

HISTORY = "history.json"  # how a stage was trained

METADATA_FILES = (
    RECORD,
    HISTORY,
    "results_final.csv",
    "results_final.json",
    "report.html",
)  # about a model, not of it

ZSTD_LEVEL = 9

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


def rows_hash(split: Dataset, columns: Iterable[str] = ("id", "text", "label")) -> str:
    """What determines a split: its rows, in order."""
    chosen = split.select_columns(list(columns))
    return json_digest([json_digest(chosen[i : i + 10_000]) for i in range(0, len(chosen), 10_000)])


def file_hashes(directory: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file of a model directory; what is only about the model is left out."""
    return {
        str(path.relative_to(directory)): file_sha256(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in METADATA_FILES and CHECKPOINTS not in path.parts
    }


def model_hashes(directory: Path) -> dict[str, str]:
    """`file_digests` of a model directory; where it has a record, without what tells of the model (card, results)."""
    record = read_record(directory) if (directory / RECORD).is_file() else {}
    found = file_hashes(directory)
    return {name: found[name] for name in found if name in record.get("files", found)}


def source_hash(spec: str) -> str:
    """What determines the model that a hub name, directory or scratch shape starts from; nothing for nothing."""
    if not spec:
        return ""
    if Path(spec).is_dir():
        return json_digest(model_hashes(Path(spec)))
    if ":" in spec:
        return spec
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        spec, local_files_only=True
    )  # fetched when the options were checked
    return f"{spec}@{getattr(config, '_commit_hash', None)}"


def read_record(directory: Path) -> dict[str, Any]:
    """The `stage.json` of a finished directory."""
    return json.loads((directory / RECORD).read_text(encoding="utf-8"))


def is_intact(directory: Path, record: dict[str, Any]) -> bool:
    """Whether every file that the record lists is there, unchanged."""
    return all(
        (directory / name).is_file() and file_sha256(directory / name) == known
        for name, known in record["files"].items()
    )


def find_finished(folders: Iterable[Path], fingerprint: str) -> Path | None:
    """A finished, unchanged directory with this fingerprint anywhere under `folders`."""
    for folder in folders:
        for path in sorted(folder.rglob(RECORD)):
            if path.parent.name.endswith(".partial"):
                continue
            record = read_record(path.parent)
            if record["fingerprint"] == fingerprint and is_intact(path.parent, record):
                return path.parent
    return None


def link_or_copy(one: Path | str, other: Path | str) -> None:
    """A hard link, or a copy where links are impossible."""
    try:
        os.link(one, other)
    except OSError:
        shutil.copy2(one, other)


def link_tree(source: Path, target: Path) -> None:
    """Copy a directory by `link_or_copy`."""
    shutil.copytree(source, target, copy_function=link_or_copy, dirs_exist_ok=True)


def clear_except_checkpoints(folder: Path) -> None:
    """What a killed run left in `folder`: keep its checkpoints, drop the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name != CHECKPOINTS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def partial_path(target: Path, fingerprint: str) -> Path:
    """Where `target` is written until it is whole."""
    return target.with_name(f"{target.name}.{fingerprint}.partial")


def publish(partial: Path, target: Path) -> None:
    """Make a finished partial folder the target, in place of an older one."""
    shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
    old = partial_path(target, "old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recover_finished(target: Path, fingerprint: str) -> None:
    """Seal a partial folder that a run had finished when it was killed."""
    partial = partial_path(target, fingerprint)
    if (partial / RECORD).is_file() and is_intact(partial, read_record(partial)):
        publish(partial, target)


@contextmanager
def atomic_directory(target: Path, fingerprint: str) -> Iterator[Path]:
    """A folder to write into, renamed to `target` once the block ends without an error."""
    partial = partial_path(target, fingerprint)
    clear_except_checkpoints(partial)
    yield partial
    publish(partial, target)


@contextmanager
def write_together(target: Path, fingerprint: str) -> Iterator[Path]:
    """`whole_or_absent` for all processes of a run: the first prepares the folder and renames it."""
    others = nullcontext(partial_path(target, fingerprint))
    with atomic_directory(target, fingerprint) if is_main_process() else others as partial:
        wait_for_everyone()
        yield partial
        wait_for_everyone()
    wait_for_everyone()


def remove_partials(folder: Path) -> None:
    """Remove what killed runs left in `folder`, once everything there is whole."""
    for path in list(folder.rglob("*.partial")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; UserError where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"{folder} is in use by another run; wait for it, or give another --experiment"
        ) from None


@contextmanager
def measure_cost() -> Iterator[dict[str, float]]:
    """`seconds` and sampled `peak_memory_mb` (resident set, MiB) of the block, filled in when it ends."""
    process, done = psutil.Process(), threading.Event()
    cost = {"seconds": time.monotonic(), "peak_memory_mb": process.memory_info().rss / 2**20}

    def sample() -> None:
        while not done.wait(0.05):
            cost["peak_memory_mb"] = max(cost["peak_memory_mb"], process.memory_info().rss / 2**20)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield cost
    finally:
        done.set()
        sampler.join()
    cost["seconds"] = round(time.monotonic() - cost["seconds"], 2)
    cost["peak_memory_mb"] = round(cost["peak_memory_mb"], 1)


def write_tar_zst(files: Iterable[Path], root: Path, target: BinaryIO) -> None:
    """Write files as a zstd-compressed tar, named relative to `root`; without times and owners, so that equal files
    make an equal bundle."""
    with (
        zstandard.ZstdCompressor(ZSTD_LEVEL).stream_writer(target, closefd=False) as packed,
        tarfile.open(fileobj=packed, mode="w|") as bundle,
    ):
        for path in files:
            entry = tarfile.TarInfo(str(path.relative_to(root)))
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                bundle.addfile(entry, file)


def archive_path(directory: Path) -> Path:
    """Where the bundle of an artifact lies."""
    return directory.with_name(f"{directory.name}.tar.zst")


def write_archive(directory: Path) -> Path:
    """`<directory>.tar.zst` of every file in `directory`, whole or absent."""
    bundle = archive_path(directory)
    partial = bundle.with_name(f"{bundle.name}.partial")
    try:
        with partial.open("wb") as target:
            write_tar_zst(
                sorted(path for path in directory.rglob("*") if path.is_file()),
                directory.parent,
                target,
            )
        partial.replace(bundle)
    finally:
        partial.unlink(missing_ok=True)
    return bundle


class CountingFile(io.RawIOBase):
    """A file that only counts the bytes that are written to it."""

    count = 0

    def writable(self) -> bool:
        """It takes everything."""
        return True

    def write(self, data: Any) -> int:
        """Count."""
        self.count += len(data)
        return len(data)


def archive_bytes(files: Iterable[Path], root: Path) -> int:
    """How many bytes the bundle of these files takes."""
    counter = CountingFile()
    write_tar_zst(files, root, counter)
    return counter.count


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that determine figures."""
    found = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found


def write_record(directory: Path, **entries: Any) -> None:
    """Write `stage.json`: the entries given, the hash of every file, the versions and the threads."""
    record = entries | {
        "files": file_hashes(directory),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
        "processes": process_count(),
    }
    write_json(directory / RECORD, record)
