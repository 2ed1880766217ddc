"""Zstandard-compressed tar archives, and their size without writing them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from runtime.files import delete, replace_durably

ZSTD_LEVEL = 9
FILE_MODE = 0o644


def write_tar_zst(files: Iterable[Path], root: Path, target: BinaryIO) -> None:
    """Write files as a tar, named relative to `root`.

    Times and owners are left out, so that equal files make an equal archive.
    """
    compressor = zstandard.ZstdCompressor(ZSTD_LEVEL)
    with (
        compressor.stream_writer(target, closefd=False) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        for path in files:
            entry = tarfile.TarInfo(str(path.relative_to(root)))
            entry.size = path.stat().st_size
            entry.mode = FILE_MODE
            with path.open("rb") as file:
                archive.addfile(entry, file)


def archive_path(directory: Path) -> Path:
    """The path of the archive of a directory."""
    return directory.with_name(f"{directory.name}.tar.zst")


def write_archive(directory: Path) -> Path:
    """Write `<directory>.tar.zst` of every file in `directory`, atomically; returns its path.

    All entries are plain files below the name of the directory. ValueError for a link, which could
    bring a file from elsewhere into the archive.
    """
    path = archive_path(directory)
    partial = path.with_name(f"{path.name}.partial")
    delete(partial)
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    links = [file for file in directory.rglob("*") if file.is_symlink()]
    if links:
        raise ValueError(f"{links[0]} is a link and cannot be archived")
    try:
        with partial.open("wb") as target:
            write_tar_zst(files, directory.parent, target)
        replace_durably(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


class CountingFile(io.RawIOBase):
    """A file that only counts the bytes written to it."""

    count = 0

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any) -> int:
        """Count the bytes."""
        self.count += len(data)
        return len(data)


def archive_bytes(files: Iterable[Path], root: Path) -> int:
    """The size in bytes of the archive of these files."""
    counter = CountingFile()
    write_tar_zst(files, root, counter)
    return counter.count
