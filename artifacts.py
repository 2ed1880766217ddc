"""A model directory on disk: whole or absent, and it says how it was made.

A stage writes into `<stage>.<fingerprint>.partial` and the folder is renamed when it is done. A finished folder
with the same fingerprint, in any experiment, is hard-linked instead of being made again.
"""

import hashlib
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from datasets import Dataset

RECORD = "stage.json"
VERSIONED = ("torch", "transformers", "datasets", "numpy", "scikit-learn", "torchao", "bitsandbytes", "onnxruntime")


def digest(value: Any) -> str:
    """16 hexadecimal digits that change when a JSON value does."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows_digest(split: Dataset) -> str:
    """What determines a split: ids, texts and labels, in order."""
    return digest(split.select_columns(["id", "text", "label"]).to_dict())


def file_digests(directory: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file of a model directory, its record left out."""
    return {str(path.relative_to(directory)): file_digest(path)
            for path in sorted(directory.rglob("*")) if path.is_file() and path.name != RECORD}  # fmt: skip


def source_digest(spec: str) -> str:
    """What determines the model that a hub name, directory or scratch shape starts from."""
    if Path(spec).is_dir():
        return digest(file_digests(Path(spec)))
    if ":" in spec:
        return spec
    from transformers import AutoConfig

    return f"{spec}@{getattr(AutoConfig.from_pretrained(spec), '_commit_hash', None)}"


def read_record(directory: Path) -> dict[str, Any]:
    """The `stage.json` of a finished directory."""
    return json.loads((directory / RECORD).read_text())


def find_finished(models: Path, fingerprint: str) -> Path | None:
    """A finished directory with this fingerprint under `models`/<experiment>/<stage>."""
    for record in sorted(models.glob(f"*/*/{RECORD}")):
        if not record.parent.name.endswith(".partial") and read_record(record.parent)["fingerprint"] == fingerprint:
            return record.parent
    return None


def link_tree(source: Path, target: Path) -> None:
    """Copy a directory by hard links, by bytes where links are impossible; `target` must be absent."""

    def link_or_copy(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=link_or_copy)


@contextmanager
def whole_or_absent(target: Path, fingerprint: str) -> Iterator[Path]:
    """A folder to write into, renamed to `target` once the block ends without an error."""
    partial = target.with_name(f"{target.name}.{fingerprint}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """`seconds` and sampled `peak_memory_mb` (resident set, MiB) of the block, filled in when it ends."""
    process, done = psutil.Process(), threading.Event()
    cost = {"seconds": time.monotonic(), "peak_memory_mb": process.memory_info().rss / 2**20}

    def sample() -> None:
        while not done.wait(0.05):
            cost["peak_memory_mb"] = max(cost["peak_memory_mb"], process.memory_info().rss / 2**20)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    yield cost
    done.set()
    sampler.join()
    cost["seconds"] = round(time.monotonic() - cost["seconds"], 2)
    cost["peak_memory_mb"] = round(cost["peak_memory_mb"], 1)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that determine figures."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found


def write_record(directory: Path, **entries: Any) -> None:
    """Write `stage.json`: the entries given, the hash of every file and the versions."""
    record = entries | {"files": file_digests(directory), "versions": versions()}
    (directory / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False))
