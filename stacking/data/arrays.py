"""Writes arrays of unknown length incrementally, and maps them into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stacking.storage.files import fsync

_HEADER_BYTES = 128


class GrowingArray:
    """A .npy file to which rows are appended; its length is set when it is closed."""

    def __init__(self, path: Path, kind: npt.DTypeLike) -> None:
        self.kind, self.length = np.dtype(kind), 0
        self._row: tuple[int, ...] = ()
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.write(b"\0" * _HEADER_BYTES)

    def append(self, values: npt.NDArray[Any]) -> None:
        """Appends ``values`` [N] or [N, columns]; every call must use the same number of columns."""
        self._file.write(np.ascontiguousarray(values, dtype=self.kind).data)
        self.length, self._row = self.length + len(values), values.shape[1:]

    def close(self) -> None:
        """Writes the header and makes the file durable."""
        shape = (self.length, *self._row)
        text = f"{{'descr': {self.kind.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
        header = text.ljust(_HEADER_BYTES - 11) + "\n"
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("latin1"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


@contextmanager
def growing_array(path: Path, kind: npt.DTypeLike) -> Iterator[GrowingArray]:
    """Creates an array that appears at ``path`` when it is complete, and not at all if the block raises."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        array = GrowingArray(partial, kind)
        yield array
        array.close()
        os.replace(partial, path)
        fsync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def mapped_array(path: Path) -> npt.NDArray[Any]:
    """Maps a .npy file of format 1.0, which is what this module and `numpy.save` write for numbers.

    Unlike `numpy.load`, reads nothing else: no archives, and no header longer than format 1.0 can have.

    Raises:
        ValueError: it is another file, or is shorter than its header says.
    """
    with open(path, "rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is not of version 1.0")
        shape, fortran_order, kind = np.lib.format.read_array_header_1_0(file)
        if kind.hasobject or fortran_order:
            raise ValueError("it holds objects, or columns")
        start = file.tell()
    if 0 in shape:  # an empty array cannot be mapped
        return np.empty(shape, kind)
    return np.asarray(np.memmap(path, kind, "r", start, shape))
