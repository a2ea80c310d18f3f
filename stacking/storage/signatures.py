"""Files that are not what their name says, told by their first bytes: a download that went wrong, another format."""

from __future__ import annotations

import os
from pathlib import Path

from stacking.errors import UserError
from stacking.storage.blocks import fill, open_file

_TAR = 257
"""Where a tar archive has its signature."""

SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
    (0, b"<!doctype html", "is a web page", "download the file itself"),
    (0, b"<html", "is a web page", "download the file itself"),
    (0, b"\x1f\x8b", "is compressed by gzip", "unpack it with gunzip"),
    (0, b"BZh", "is compressed by bzip2", "unpack it with bunzip2"),
    (0, b"\xfd7zXZ", "is compressed by xz", "unpack it with unxz"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed by Zstandard", "unpack it with unzstd"),
    (0, b"\x89HDF\r\n", "is an HDF5 file, as TensorFlow writes", "take the model's PyTorch weights"),
    (0, b"GGUF", "is a GGUF file", "take the model's PyTorch weights"),
    (_TAR, b"ustar", "is a tar archive", "unpack it"),
)
"""Where, which bytes (in lower case or as they are), what the file is, and what to do about it."""


def first_bytes(path: Path) -> bytes:
    """The beginning of a file, as far as it tells the format.

    Raises:
        DamagedFile: it is missing, or is no regular file.
    """
    buffer = bytearray(512)
    descriptor = open_file(path)
    try:
        return bytes(buffer[: fill(descriptor, 0, memoryview(buffer))])
    finally:
        os.close(descriptor)


def refuse_other_formats(path: Path) -> None:
    """Refuse a file whose first bytes are those of something else.

    Raises:
        UserError: says what it is, and how to get the file that is meant.
        DamagedFile: it is missing, or is no regular file.
    """
    head = first_bytes(path)
    for start, signature, what, remedy in SIGNATURES:
        found = head[start : start + len(signature)]
        if signature in (found, found.lower()):
            raise UserError(path, what, remedy)
