"""From the bytes of a file to its text: decompression, byte-order marks, detection of the encoding.

pyarrow is imported only to decompress .gz and .zst.
"""

from __future__ import annotations

import codecs
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

from runtime.errors import escape_unprintable

log = logging.getLogger(__name__)

CODECS = {".gz": "gzip", ".zst": "zstd"}

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

FOREIGN_SIGNATURES = {  # first bytes -> the real type of such a file, whatever its name
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "gzip data (name it .gz)",
    b"\x28\xb5\x2f\xfd": "zstd data (name it .zst)",
    b"BZh91AY": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"PAR1\x15": "Parquet (name it .parquet)",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"%PDF": "a PDF",
    b"<!DOCTYPE html": "a web page",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}

SAVE_AS_UTF_8 = "save the file as UTF-8 (in Excel: CSV UTF-8)"

EIGHT_BIT_ENCODINGS = ("cp1252", "latin-1")

UNDEFINED_CP1252 = b"\x81\x8d\x8f\x90\x9d"

HEAD_BYTES = 4096  # for signatures, byte-order marks and UTF-16 without a mark

CHUNK_BYTES = 2**16

BYTES_PER_GB = 10**9


class UnreadableFile(Exception):
    """The reason why a file is rejected, worded to follow `--flag is PATH, but`."""


def size_error(max_bytes: int) -> UnreadableFile:
    """The error for a file that is too large when it is decompressed."""
    return UnreadableFile(
        f"its content is larger than {max_bytes / BYTES_PER_GB:g} GB; --max_input_gb raises the "
        "limit"
    )


@dataclass(frozen=True)
class TextFile:
    """A text file: compression, encoding, bytes of its byte-order mark, and `errors` of `open`."""

    path: Path
    codec: str | None = None
    max_bytes: int | None = None  # a compressed file of more decompressed bytes is refused
    encoding: str = "utf-8"
    mark_bytes: int = 0
    errors: str = "strict"


class OpenText(NamedTuple):
    """An open text and a function that returns how many bytes of the file have been read."""

    lines: TextIO
    position: Callable[[], int]


def format_of_name(path: Path, formats: dict[str, str]) -> tuple[str | None, str | None]:
    """(format, compression) by the suffixes of a file's name; the format is None if unsupported.

    `formats` maps suffixes to formats. Parquet compresses its own columns.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    codec = None
    if suffixes and suffixes[-1] in CODECS:
        codec = CODECS[suffixes.pop()]
    file_format = formats.get(suffixes[-1]) if suffixes else None
    if codec and file_format == "parquet":
        file_format = None
    return file_format, codec


def decompress(raw: BinaryIO, codec: str | None) -> BinaryIO:
    """The decompressed bytes of an open file; reading them raises OSError if they are damaged."""
    if codec is None:
        return raw
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec)


@contextmanager
def open_text(file: TextFile, newline: str | None) -> Iterator[OpenText]:
    """The decoded lines of a file; `newline` as in Python's `open`."""
    with open(file.path, "rb") as raw:
        source = decompress(raw, file.codec)
        source.read(file.mark_bytes)
        with io.TextIOWrapper(source, file.encoding, file.errors, newline) as lines:
            yield OpenText(lines, raw.tell)


def byte_chunks(file: TextFile) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of the decompressed file; the last chunk is empty, for a decoder's end.

    UnreadableFile if a text of 8-bit units contains a NUL byte, or if a compressed file is too
    large.
    """
    with open(file.path, "rb") as raw:
        source = decompress(raw, file.codec)
        source.read(file.mark_bytes)
        offset = file.mark_bytes
        is_at_end = False
        while not is_at_end:
            chunk = source.read(CHUNK_BYTES)
            if file.encoding == "utf-8" and b"\0" in chunk:
                position = offset + chunk.index(0)
                raise UnreadableFile(
                    f"it is not text: a NUL byte at offset {position}; {SAVE_AS_UTF_8}"
                )
            yield offset, chunk
            offset += len(chunk)
            if file.codec and file.max_bytes and offset > file.max_bytes:
                raise size_error(file.max_bytes)
            is_at_end = not chunk


def first_invalid_byte(file: TextFile) -> int | None:
    """Offset of the first byte that the file's encoding does not allow; None if all are valid."""
    decoder = codecs.getincrementaldecoder(file.encoding)()
    for offset, chunk in byte_chunks(file):
        pending_bytes = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            return offset - pending_bytes + error.start
        if "\0" in text:
            raise UnreadableFile(f"it is not text: a NUL character after offset {offset}")
    return None


def detect_8_bit_encoding(file: TextFile) -> str | None:
    """cp1252, or latin-1 if cp1252 leaves a byte undefined; None if the file is damaged UTF-8.

    It is damaged UTF-8 if it has a byte-order mark, or if more of its non-ASCII characters are
    valid UTF-8 than not.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    valid = 0
    invalid = 0
    has_undefined = False
    for _, chunk in byte_chunks(file):
        text = decoder.decode(chunk, final=not chunk)
        valid_text = text.encode("utf-8", "ignore").decode("utf-8")
        invalid += len(text) - len(valid_text)
        valid += len(valid_text) - len(valid_text.encode("ascii", "ignore"))
        has_undefined |= len(chunk) > len(chunk.translate(None, UNDEFINED_CP1252))
    if file.mark_bytes or valid > invalid:
        return None
    return "latin-1" if has_undefined else "cp1252"


def guess_encoding(head: bytes) -> tuple[str, int]:
    """(encoding, bytes of the byte-order mark) from the first bytes of a file.

    UTF-16 without a mark has a NUL in many bytes at even offsets, or in many at odd offsets.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding, len(mark)
    even_nuls = head[::2].count(0)
    odd_nuls = head[1::2].count(0)
    most = max(even_nuls, odd_nuls)
    is_utf16 = (
        head[:2].count(0) == 1 and most * 16 > len(head) and most > 8 * min(even_nuls, odd_nuls)
    )
    if not is_utf16:
        return "utf-8", 0
    return ("utf-16-be" if even_nuls > odd_nuls else "utf-16-le"), 0


def check_signature(head: bytes) -> None:
    """Raise UnreadableFile if the first bytes are those of a file type that is not text."""
    for signature, file_type in FOREIGN_SIGNATURES.items():
        if head.startswith(signature):
            raise UnreadableFile(f"it is {file_type}")


def guess_text_file(file: TextFile) -> TextFile:
    """The file with an encoding that fits its first bytes; what does not fit is replaced."""
    with open(file.path, "rb") as raw:
        head = decompress(raw, file.codec).read(HEAD_BYTES)
    check_signature(head)
    encoding, mark_bytes = guess_encoding(head)
    if encoding == "utf-8":
        try:
            codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            encoding = "cp1252"
    return replace(file, encoding=encoding, mark_bytes=mark_bytes, errors="replace")


def detect_encoding(file: TextFile, *, keep_invalid: bool = False) -> TextFile:
    """The file with its encoding, detected from all of its bytes.

    UnreadableFile if it is not text or is damaged; with `keep_invalid`, the invalid bytes of
    damaged UTF-8 are decoded as lone surrogates instead (PEP 383).
    """
    with open(file.path, "rb") as raw:
        head = decompress(raw, file.codec).read(HEAD_BYTES)
    check_signature(head)
    encoding, mark_bytes = guess_encoding(head)
    file = replace(file, encoding=encoding, mark_bytes=mark_bytes)
    offset = first_invalid_byte(file)
    if offset is not None and encoding != "utf-8":
        raise UnreadableFile(
            f"it is damaged UTF-16: the byte at offset {offset} is invalid; {SAVE_AS_UTF_8}"
        )
    if offset is not None:
        eight_bit = detect_8_bit_encoding(file)
        if eight_bit is not None:
            file = replace(file, encoding=eight_bit)
        elif keep_invalid:
            file = replace(file, errors="surrogateescape")
        else:
            raise UnreadableFile(
                f"it is damaged UTF-8: the byte at offset {offset} is invalid; {SAVE_AS_UTF_8}"
            )
    name = escape_unprintable(str(file.path))
    if file.encoding in EIGHT_BIT_ENCODINGS:
        log.warning(
            "note: %s is not UTF-8 and is read as %s; if letters are wrong, %s",
            *(name, file.encoding, SAVE_AS_UTF_8),
        )
    elif file.encoding != "utf-8":
        log.info("%s is read as %s", name, file.encoding)
    return file
