"""Recognises files of unexpected formats, such as failed downloads, by their first bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from stacking.errors import UserError
from stacking.storage.blocks import fill, open_file

_TAR = 257
"""Offset of a tar archive's signature."""

Signature = tuple[int, bytes, str, str]
"""Offset, signature (compared as is or in lower case), the file's kind, and a remedy."""

DOWNLOADS: tuple[Signature, ...] = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
    (0, b"<!doctype html", "is a web page", "download the file itself"),
    (0, b"<html", "is a web page", "download the file itself"),
    (0, b"\x1f\x8b", "is compressed by gzip", "unpack it with gunzip"),
)
"""What a download that went wrong leaves in place of any file."""

SIGNATURES: tuple[Signature, ...] = (
    *DOWNLOADS,
    (0, b"BZh", "is compressed by bzip2", "unpack it with bunzip2"),
    (0, b"\xfd7zXZ", "is compressed by xz", "unpack it with unxz"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed by Zstandard", "unpack it with unzstd"),
    (0, b"\x89HDF\r\n", "is an HDF5 file, as TensorFlow writes", "take the model's PyTorch weights"),
    (0, b"GGUF", "is a GGUF file", "take the model's PyTorch weights"),
    (_TAR, b"ustar", "is a tar archive", "unpack it"),
)
"""What may be found in place of a model's weights or configuration."""


def first_bytes(path: Path) -> bytes:
    """Returns the beginning of a file, which identifies its format.

    Raises:
        DamagedFile: the file is missing, or is not a regular file.
    """
    buffer = bytearray(512)
    descriptor = open_file(path)
    try:
        return bytes(buffer[: fill(descriptor, 0, memoryview(buffer))])
    finally:
        os.close(descriptor)


def refuse_other_formats(path: Path) -> None:
    """Rejects a file whose first bytes identify another format.

    Raises:
        UserError: the file has another format; the message says which, and how to get the right file.
        DamagedFile: the file is missing, or is not a regular file.
    """
    refuse_signatures(path, first_bytes(path), SIGNATURES)


def refuse_signatures(path: Path, head: bytes, signatures: Iterable[Signature]) -> None:
    """Rejects a file that begins with ``head`` if one of ``signatures`` is in it.

    Raises:
        UserError: the message says what the file is, and how to get the right one.
    """
    for start, signature, what, remedy in signatures:
        found = head[start : start + len(signature)]
        if signature in (found, found.lower()):
            raise UserError(path, what, remedy)
