"""Reads files of ``torch.save`` without executing code from them and without loading their tensors.

Such a file is a zip archive with a pickle (``data.pkl``) and one uncompressed record per storage; before torch 1.6 it
was a sequence of pickles followed by the storages. `read_pickle` reads the pickle without importing or calling anything
chosen by the file. Tensors become `StoredTensor`, a location inside the record of their storage that is read in slices.
Objects of classes outside `KNOWN` become stand-ins. This module does not import torch, so it starts fast.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from stacking.errors import DamagedFile, UserError
from stacking.storage.partition import Shape, numel
from stacking.storage.pickled import (
    Function,
    MaliciousPickle,
    StandIn,
    UnreadablePickle,
    described,
    read_pickle,
)
from stacking.storage.signatures import refuse_other_formats
from stacking.storage.verified_files import VerifiedFiles, read_bytes

_BLOCK = 1 << 22
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_BRAIN_FLOAT = "bfloat16"
_MOST_AXES = 64
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file written before torch 1.6."""

DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": _BRAIN_FLOAT,
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Maps torch's storage classes to the dtypes of their elements."""


class StorageType(NamedTuple):
    """Describes the elements of a storage."""

    dtype: str

    @property
    def itemsize(self) -> int:
        return np.dtype("uint16" if self.dtype == _BRAIN_FLOAT else self.dtype).itemsize


class _Storage(NamedTuple):
    path: Path
    offset: int
    numel: int
    kind: StorageType


class StoredTensor(NamedTuple):
    """References a tensor that stays in its file."""

    path: Path
    offset: int
    """Offset of the first element in the file, in bytes."""
    dtype: str
    shape: Shape
    stride: Shape | None = None
    """Strides in elements, for a tensor that is not contiguous."""

    @property
    def numel(self) -> int:
        """The number of elements."""
        return numel(self.shape)

    @property
    def read_dtype(self) -> str:
        """The dtype of the values read: half-precision floats are converted exactly to float32."""
        return "float32" if self.dtype in (_BRAIN_FLOAT, "float16") else self.dtype

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Reads elements ``start … stop`` of the flattened tensor without verifying them.

        Raises:
            DamagedFile: the file is too short.
        """
        values = np.empty((self.numel if stop is None else stop) - start, self.read_dtype)
        self.fill(start, values)
        return values

    def fill(self, start: int, into: np.ndarray, files: VerifiedFiles | None = None) -> None:
        """Fills ``into`` with the elements beginning at ``start``.

        Args:
            files: verifies the bytes, if given.

        Raises:
            DamagedFile: the file is too short or altered.
        """
        if self.stride is not None:
            self._fill_strided(start, into, files)
            return
        stored = np.dtype("uint16" if self.dtype == _BRAIN_FLOAT else self.dtype)
        values = into if self.dtype == self.read_dtype else np.empty(into.size, stored)
        read = files.read if files is not None else read_bytes
        read(self.path, self.offset + start * stored.itemsize, values)
        if self.dtype == _BRAIN_FLOAT:
            np.left_shift(values, 16, out=into.view(np.uint32), dtype=np.uint32)
        elif values is not into:
            into[:] = values

    def _fill_strided(self, start: int, into: np.ndarray, files: VerifiedFiles | None) -> None:
        """Does the same for a non-contiguous tensor, such as a transposed matrix, by reading all of its elements."""
        assert self.stride is not None
        whole = np.empty(_span(self.shape, self.stride), self.read_dtype)
        self._replace(shape=(whole.size,), stride=None).fill(0, whole, files)
        strides = [step * whole.itemsize for step in self.stride]
        into[:] = np.lib.stride_tricks.as_strided(whole, self.shape, strides).ravel()[start : start + into.size]


def _span(shape: Shape, stride: Shape) -> int:
    """Returns the number of elements from a tensor's first element through its last in memory."""
    return 1 + sum((width - 1) * step for width, step in zip(shape, stride, strict=True)) if numel(shape) else 0


def _natural(*values: Any) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> StoredTensor | StandIn:
    if not isinstance(storage, _Storage):
        return StandIn(f"tensor in {described(storage)}")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or not len(size) == len(stride) <= _MOST_AXES:
        raise UnreadablePickle("a tensor has no shape")
    if not _natural(offset, *size, *stride):
        raise UnreadablePickle("a tensor's shape is not of whole numbers")
    contiguous = tuple(numel(size[axis + 1 :]) for axis in range(len(size)))
    ordered = all(width <= 1 or have == want for width, have, want in zip(size, stride, contiguous, strict=True))
    if numel(size) > storage.numel or offset + (numel(size) if ordered else _span(size, stride)) > storage.numel:
        raise UnreadablePickle("a tensor is larger than its storage")
    place = storage.offset + offset * storage.kind.itemsize
    return StoredTensor(storage.path, place, storage.kind.dtype, size, None if ordered else stride)


def _parameter(tensor: Any = None, *_: object) -> Any:
    return tensor if isinstance(tensor, StoredTensor) else StandIn("torch.nn.parameter.Parameter")


def _tensor_with_attributes(rebuild: Any, kind: Any, arguments: Any, *_: object) -> Any:
    return rebuild.call(*arguments) if isinstance(rebuild, Function) else StandIn(getattr(kind, "name", "tensor"))


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """Creates an OrderedDict, Counter or defaultdict; the first argument of a defaultdict is its factory."""
    last = arguments[-1] if arguments else {}
    return dict(last) if isinstance(last, dict) else {}


def _size(axes: Any = ()) -> Any:
    return axes if isinstance(axes, tuple) else StandIn("torch.Size")


_STAGE = "deepspeed.runtime.zero.config.ZeroStageEnum"
_ZERO_STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    _STAGE: lambda stage: stage,
}

KNOWN: dict[str, Any] = {
    **{name: Function(name, call) for name, call in _FUNCTIONS.items()},
    **{f"torch.{name}": StorageType(dtype) for name, dtype in DTYPES.items()},
    **{f"{_STAGE}.{name}": number for name, number in _ZERO_STAGES.items()},
}
"""The replacements of all names in a pickle whose objects are needed; all others become stand-ins."""


class _Storages:
    """Resolves the storages that a pickle mentions.

    Args:
        places: the offset and size in bytes of each storage; None while they are unknown.
    """

    def __init__(self, path: Path, places: Mapping[str, tuple[int, int]] | None) -> None:
        self._path, self._places = path, places
        self.itemsizes: dict[str, int] = {}

    def __call__(self, pid: Any) -> _Storage | StandIn:
        if not isinstance(pid, tuple) or len(pid) < 5 or not isinstance(pid[2], str) or not _natural(pid[4]):
            return StandIn("persistent object")
        _, kind, key, _, count = pid[:5]
        if not isinstance(kind, StorageType):
            return StandIn(getattr(kind, "name", "storage"))
        self.itemsizes[key] = kind.itemsize
        if self._places is None:
            return StandIn("storage")
        if key not in self._places:
            raise UnreadablePickle(f"storage {key} is missing")
        offset, size = self._places[key]
        if count * kind.itemsize > size:
            raise UnreadablePickle(f"storage {key} is shorter than its tensors")
        return _Storage(self._path, offset, count, kind)


def read_torch_file(path: Path) -> Any:
    """Reads the object in ``path``, with tensors as `StoredTensor` and unknown objects as `StandIn`.

    Raises:
        UserError: the file mentions something that runs code, or was not written by ``torch.save``.
        DamagedFile: the file is missing or truncated.
    """
    with _readable(path), open(path, "rb") as file:
        refuse_other_formats(path)
        return _read_archive(file, path) if zipfile.is_zipfile(file) else _read_legacy(file, path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise DamagedFile(path, "is not a file" if path.exists() else "is missing")
    try:
        yield
    except MaliciousPickle as name:
        raise UserError(path, f"mentions {name}, which no checkpoint needs", "do not trust this file") from None
    except UserError:
        raise
    except Exception as error:  # a truncated archive may raise anything
        raise DamagedFile(path, f"is torn ({error})") from None


def _read_archive(file: BinaryIO, path: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = _records(archive, path)
        order = archive.read(records["byteorder"]).decode() if "byteorder" in records else ""
        if order not in ("", "little"):
            raise UserError(path, f"was written on a {order}-endian machine", "convert it on such a machine")
        pickled = io.BytesIO(archive.read(records["data.pkl"]))
        places = _places(archive, records)
    storages = {name.removeprefix("data/"): place for name, place in places.items() if name.startswith("data/")}
    return read_pickle(pickled, KNOWN, _Storages(path, storages))


def _read_legacy(file: BinaryIO, path: Path) -> Any:
    """Reads a file from before torch 1.6: pickles of a magic number, version, machine, the object and storage keys.

    The storages follow in the order of the keys, each as its number of elements and the elements.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:  # never reads beyond the end
        content = cast(BinaryIO, mapped)
        unknown = _Storages(path, None)
        magic, _, machine = (read_pickle(content, {}, unknown) for _ in range(3))
        if magic != _LEGACY_MAGIC:
            raise UnreadablePickle("it does not begin as torch.save does")
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise UserError(path, "was written on a big-endian machine", "convert it on such a machine")
        start = content.tell()
        read_pickle(content, KNOWN, unknown)
        places: dict[str, tuple[int, int]] = {}
        keys, position = read_pickle(content, {}, unknown), content.tell()
        for key in keys:
            size = int.from_bytes(mapped[position : position + 8], "little") * unknown.itemsizes[key]
            places[key] = (position + 8, size)
            position += 8 + size
        if position > len(mapped):
            raise UnreadablePickle("it ends before its tensors do")
        content.seek(start)
        return read_pickle(content, KNOWN, _Storages(path, places))


def verify_torch_file(path: Path) -> None:
    """Verifies every record's CRC-32; files from before torch 1.6 have none.

    Raises:
        DamagedFile: a record does not match its CRC-32.
    """
    with _readable(path), open(path, "rb", buffering=0) as file:
        if not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as archive:
            places = [(info, _data_offset(archive, info)) for info in archive.infolist()]
        for info, offset in places:
            file.seek(offset)
            checksum, left = 0, info.file_size
            while left and (block := file.read(min(left, _BLOCK))):
                checksum, left = zlib.crc32(block, checksum), left - len(block)
            if left or checksum != info.CRC:
                raise DamagedFile(path, f"is altered: its record {info.filename} does not match its CRC-32")


def _records(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Returns the archive's records by name, without the top folder."""
    records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if len(records) < len(archive.infolist()):
        raise UnreadablePickle("two of its records have the same name")
    if "data.pkl" not in records or any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
        raise UserError(path, "is not a file of torch.save", "give a checkpoint that DeepSpeed wrote")
    return records


def _places(archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Returns each record's offset and size, after checking that records neither overlap nor exceed the archive."""
    places, end = {}, 0
    for name, info in sorted(records.items(), key=lambda item: item[1].header_offset):
        start = _data_offset(archive, info)
        if info.header_offset < end:
            raise UnreadablePickle(f"its record {info.filename} lies inside another one")
        places[name], end = (start, info.file_size), start + info.file_size
    if end > archive.start_dir:
        raise UnreadablePickle("it ends before its records do")
    return places


def _data_offset(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Returns the offset of a record's bytes after its local header, whose padding is not in the central directory."""
    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if header[0] != b"PK\x03\x04":
        raise zipfile.BadZipFile("a local header is missing")
    name, extra = map(int, header[-2:])
    return info.header_offset + _LOCAL_HEADER.size + name + extra
