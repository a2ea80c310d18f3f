"""Reads and writes safetensors files as streams, without holding tensors in memory.

The format (https://github.com/huggingface/safetensors): eight bytes with the header's length, a JSON object from name
to dtype, shape and byte range, then the tensors. The ``safetensors`` library reads the files written here.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from stacking.errors import DamagedFile
from stacking.storage.blocks import BlockHasher, Entry
from stacking.storage.partition import Shape, numel
from stacking.storage.verified_files import VerifiedFiles, read_bytes

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Maps the format's dtype names to numpy's."""
_CODES = {name: code for code, name in DTYPES.items()}
_LENGTH = struct.Struct("<Q")
_LARGEST_HEADER = 100_000_000
_MOST_AXES = 64


class TensorSpec(NamedTuple):
    """Describes a tensor: its dtype and shape."""

    dtype: str
    """The dtype's name in numpy."""
    shape: Shape

    @property
    def nbytes(self) -> int:
        """The size of the elements in bytes."""
        return numel(self.shape) * np.dtype(self.dtype).itemsize


class TensorRange(NamedTuple):
    """Locates a part of a tensor inside a range of a file; all counts are in bytes."""

    name: str
    start: int
    """Offset in the tensor."""
    offset: int
    """Offset in the range."""
    nbytes: int


class FileLayout:
    """Lays out a file of tensors, in the order of ``specs``.

    Args:
        metadata: texts for the header, which the format keeps under ``__metadata__``.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None) -> None:
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for name, spec in specs.items():
            start, end = end, end + spec.nbytes
            header[name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # aligns the tensors
        self.header = _LENGTH.pack(len(encoded)) + encoded
        self.size = len(self.header) + end
        offsets = ((name, header[name]["data_offsets"]) for name in specs)
        self.places = {name: (len(self.header) + start, len(self.header) + end) for name, (start, end) in offsets}
        """First byte and end of each tensor in the file."""
        self._starts = [start for start, _ in self.places.values()]

    def parts(self, first: int, last: int) -> Iterator[TensorRange]:
        """Yields the parts of tensors in bytes ``first … last`` of the file."""
        before = max(0, bisect_right(self._starts, first) - 1)
        for name, (start, end) in islice(self.places.items(), before, None):
            if start >= last:
                return
            low, high = max(first, start), min(last, end)
            if low < high:
                yield TensorRange(name, low - start, low - first, high - low)


class SafetensorsWriter:
    """Writes tensors with known names, dtypes and shapes, in that order, in slices of any size.

    Use as a context manager; on exit it checks that everything was written.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None) -> None:
        self._specs, self._layout = specs, FileLayout(specs, metadata)
        self._written = 0
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self._hasher = BlockHasher()
        self._write(memoryview(self._layout.header))

    @property
    def entry(self) -> Entry:
        """The file's manifest entry, computed from the bytes as they were written."""
        return self._hasher.entry()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self._written < self._layout.size:
            raise ValueError(f"the last {self._layout.size - self._written:,} bytes of the tensors are missing")

    def append(self, name: str, values: np.ndarray) -> None:
        """Writes the next elements, which belong to ``name``.

        Raises:
            ValueError: another tensor is due, or the dtype differs from the header.
        """
        start, end = self._layout.places[name]
        is_due = start <= self._written <= end - values.nbytes
        if not is_due or values.dtype != np.dtype(self._specs[name].dtype):
            raise ValueError(f"{values.size} {values.dtype} values for {name}, {self._specs[name]}, are not due")
        self._write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

    def _write(self, data: memoryview) -> None:
        self._file.write(data)
        self._hasher.update(data)
        self._written += len(data)


def _place(entry: Mapping[str, Any]) -> tuple[TensorSpec, int]:
    """Parses a header entry; returns the tensor's description and its offset after the header.

    Raises:
        ValueError: the entry is inconsistent. Other exceptions: it is malformed.
    """
    shape, (first, last) = entry["shape"], entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, first, last)) or len(shape) > _MOST_AXES:
        raise ValueError("a shape or an offset is not of whole numbers")
    spec = TensorSpec(DTYPES[entry["dtype"]], tuple(shape))
    if last - first != spec.nbytes:
        raise ValueError("the offsets of a tensor do not fit its shape")
    return spec, first


def _end(places: Mapping[str, tuple[TensorSpec, int]]) -> int:
    """Returns the end of the last tensor.

    Raises:
        ValueError: tensors overlap or have gaps between them, which the format forbids.
    """
    end = 0
    for first, nbytes in sorted((first, spec.nbytes) for spec, first in places.values()):
        if first != end:
            raise ValueError("the tensors do not follow each other")
        end += nbytes
    return end


@dataclass(frozen=True)
class SafetensorsFile:
    """Opens a file for reading slices of its tensors; none of them is held in memory."""

    path: Path
    specs: dict[str, TensorSpec]
    _offsets: dict[str, int]

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Opens a file and reads its header.

        Raises:
            DamagedFile: the file is missing, is not in the format, or its size contradicts its header.
        """
        length = np.empty(1, "<u8")
        read_bytes(path, 0, length)
        size = path.stat().st_size
        if length[0] > min(size - _LENGTH.size, _LARGEST_HEADER):
            raise DamagedFile(path, "is not a safetensors file")
        encoded = np.empty(int(length[0]), np.uint8)
        read_bytes(path, _LENGTH.size, encoded)
        start = _LENGTH.size + encoded.size
        try:
            header = json.loads(encoded.tobytes())
            header.pop("__metadata__", None)
            places = {name: _place(entry) for name, entry in header.items()}
            end = _end(places)
        except RecursionError:
            raise DamagedFile(path, "has no readable header (it is nested too deeply)") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFile(path, f"has no readable header ({error})") from None
        if start + end != size:
            raise DamagedFile(path, f"has {size:,} bytes where its header says {start + end:,}")
        specs = {name: spec for name, (spec, _) in places.items()}
        return cls(path, specs, {name: start + offset for name, (_, offset) in places.items()})

    def fill(self, name: str, start: int, into: np.ndarray, files: VerifiedFiles | None = None) -> None:
        """Fills ``into`` with elements of the flattened tensor ``name``, beginning at ``start``.

        Args:
            files: verifies the bytes, if given.

        Raises:
            DamagedFile: the file is missing, truncated or altered.
        """
        read = files.read if files is not None else read_bytes
        read(self.path, self._offsets[name] + start * into.itemsize, into)
