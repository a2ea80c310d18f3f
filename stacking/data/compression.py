"""Opens compressed files as streams of plain bytes: gzip, bzip2, xz and Zstandard."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from stacking.errors import DamagedFile, StackingError, UserError
from stacking.storage.os_errors import TRANSIENT


def _zstandard(raw: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa

    stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
    return io.BufferedReader(cast(Any, stream), 1 << 16)


OPENERS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": lambda raw: cast(IO[bytes], gzip.GzipFile(fileobj=raw)),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstandard,
}
_MAGIC = {".gz": b"\x1f\x8b\x08", ".xz": b"\xfd7zXZ\0", ".zst": b"\x28\xb5\x2f\xfd"}


def plain_suffix(path: Path) -> str:
    """Returns the suffix in lower case without a compression suffix: ``.txt`` for ``a.TXT.gz``."""
    return Path(path.stem if path.suffix.lower() in OPENERS else path.name).suffix.lower()


@contextmanager
def open_plain(path: Path) -> Iterator[IO[bytes]]:
    """Opens ``path`` for reading, decompressed. The suffix determines the compression; without one, the first bytes do.

    Raises:
        UserError: the file cannot be read.
        DamagedFile: it does not match its suffix, or is truncated.
        StackingError: the file system failed; another try may succeed.
    """
    suffix = path.suffix.lower()
    try:
        with open(path, "rb") as raw:
            if suffix not in OPENERS:
                suffix = _recognised(raw)
            yield OPENERS[suffix](raw) if suffix else raw
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _torn(path, suffix, error) from None
    except OSError as error:
        if error.errno in TRANSIENT and error.strerror:
            problem = f"{path}: cannot be read ({error.strerror}); the file system failed, try again"
            raise StackingError(problem) from error
        if error.errno is None and suffix in OPENERS:  # how bz2 and zstd report damage
            raise _torn(path, suffix, error) from None
        raise UserError(path, f"cannot be read ({error.strerror or error})", "check the file") from None


def first_bytes(path: Path, count: int) -> bytes:
    """Returns the first ``count`` decompressed bytes of ``path``, fewer if it is shorter."""
    with open_plain(path) as stream:
        return stream.read(count)


def _recognised(raw: IO[bytes]) -> str:
    head = raw.read(10)
    raw.seek(0)
    if head[:3] == b"BZh" and head[4:] == b"1AY&SY":
        return ".bz2"
    return next((suffix for suffix, magic in _MAGIC.items() if head.startswith(magic)), "")


def _torn(path: Path, suffix: str, error: Exception) -> DamagedFile:
    names = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
    return DamagedFile(path, f"is a torn {names[suffix]} file ({error})", "fetch or compress it again")
