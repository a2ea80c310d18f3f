"""Reads what ``torch.save`` wrote without running any of it and without loading its tensors.

Such a file is a zip archive with a pickle (``data.pkl``) and one uncompressed record a storage. The pickle is read
with its globals restricted to `GLOBALS`, as the standard library's pickle documentation recommends: every name in it
becomes a harmless stand-in of this module, nothing is imported and nothing of the file's choice is called. Tensors
become `StoredTensor`: a place in the file, read slice by slice. No torch here, so it starts at once anywhere.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stacking.errors import DamagedFile, UserError
from stacking.storage.partition import Shape, numel
from stacking.storage.verified_files import VerifiedFiles, read_bytes

_BLOCK = 1 << 22
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_BRAIN_FLOAT = "bfloat16"

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
"""Torch's storage classes and the dtype of their elements."""


class _Storage(NamedTuple):
    """A record of the archive."""

    path: Path
    offset: int
    numel: int
    dtype: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that stays in its file."""

    path: Path
    offset: int
    """Of its first element in the file, in bytes."""
    dtype: str
    shape: Shape

    @property
    def numel(self) -> int:
        return numel(self.shape)

    @property
    def read_dtype(self) -> str:
        """The dtype of what is read: half-precision floats come as float32, exactly."""
        return "float32" if self.dtype in (_BRAIN_FLOAT, "float16") else self.dtype

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Elements ``start … stop`` of the flattened tensor, unverified.

        Raises:
            DamagedFile: the file ends before them.
        """
        values = np.empty((self.numel if stop is None else stop) - start, self.read_dtype)
        self.fill(start, values)
        return values

    def fill(self, start: int, into: np.ndarray, files: VerifiedFiles | None = None) -> None:
        """Fill ``into`` with the elements from ``start`` on.

        Args:
            files: what verifies the bytes, if anything does.

        Raises:
            DamagedFile: the file ends before them, or is not as it was written.
        """
        stored = np.dtype("uint16" if self.dtype == _BRAIN_FLOAT else self.dtype)
        values = into if self.dtype == self.read_dtype else np.empty(into.size, stored)
        read = files.read if files is not None else read_bytes
        read(self.path, self.offset + start * stored.itemsize, values)
        if self.dtype == _BRAIN_FLOAT:
            np.left_shift(values, 16, out=into.view(np.uint32), dtype=np.uint32)
        elif values is not into:
            into[:] = values


class Inert:
    """Stands for an object that a checkpoint mentions and that reading it does not need; ignores what it is told."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _tensor(storage: _Storage, offset: int, size: Shape, stride: Shape, *_: object) -> StoredTensor | Inert:
    contiguous = [numel(size[axis + 1 :]) for axis in range(len(size))]
    if any(width > 1 and have != want for width, have, want in zip(size, stride, contiguous, strict=True)):
        return Inert()  # no part of a training state is strided; client state may be
    if offset + numel(size) > storage.numel:
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    itemsize = np.dtype("uint16" if storage.dtype == _BRAIN_FLOAT else storage.dtype).itemsize
    return StoredTensor(storage.path, storage.offset + offset * itemsize, storage.dtype, tuple(size))


def _parameter(tensor: StoredTensor, *_: object) -> StoredTensor:
    return tensor


def _tensor_with_attributes(rebuild: Any, _: object, arguments: tuple[Any, ...], *__: object) -> Any:
    return rebuild(*arguments)  # itself one of the stand-ins


_ZERO_STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3}


def _member(holder: Any, name: str) -> int | Inert:
    """Python 3.11.0 to 3.11.3 pickle a member of an enum as ``getattr(ZeroStageEnum, "gradients")``."""
    return _ZERO_STAGES[name] if holder is int else Inert()


GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_with_attributes,
    ("torch", "Tensor"): Inert,
    ("torch.nn.parameter", "Parameter"): Inert,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
    **{("torch", name): name for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32")},
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): int,
    ("builtins", "getattr"): _member,
    ("__builtin__", "getattr"): _member,
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"): Inert,
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"): Inert,
    ("deepspeed.utils.tensor_fragment", "fragment_address"): Inert,
    ("deepspeed.runtime.bf16_optimizer", "fragment_address"): Inert,
    ("argparse", "Namespace"): Inert,
    ("numpy.core.multiarray", "_reconstruct"): Inert,
    ("numpy.core.multiarray", "scalar"): Inert,
    ("numpy._core.multiarray", "_reconstruct"): Inert,
    ("numpy._core.multiarray", "scalar"): Inert,
    ("numpy", "ndarray"): Inert,
    ("numpy", "dtype"): Inert,
    ("_codecs", "encode"): Inert,
    ("pathlib", "PosixPath"): Inert,
}
"""Every name that a checkpoint may mention, and what stands for it here: DeepSpeed's own and common client state."""


class _ForbiddenName(Exception):
    """The pickle names something that is not in `GLOBALS`."""


class _Reader(pickle.Unpickler):
    def __init__(self, pickled: bytes, storages: dict[str, tuple[int, int]], path: Path) -> None:
        super().__init__(io.BytesIO(pickled))
        self._storages, self._path = storages, path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in GLOBALS:
            raise _ForbiddenName(f"{module}.{name}")
        return GLOBALS[module, name]

    def persistent_load(self, pid: tuple[str, str, str, str, int]) -> _Storage:
        _, dtype, key, _, count = pid
        offset, size = self._storages[key]
        storage = _Storage(self._path, offset, count, dtype)
        if count * np.dtype("uint16" if dtype == _BRAIN_FLOAT else dtype).itemsize > size:
            raise pickle.UnpicklingError(f"storage {key} is shorter than its tensors")
        return storage


def read_torch_file(path: Path) -> Any:
    """The object in ``path``, its tensors as `StoredTensor`, everything outside `GLOBALS` refused.

    Raises:
        UserError: the file mentions a class that is not allowed, or is not from ``torch.save`` of torch 1.6 or later.
        DamagedFile: it is missing or torn.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(archive, path)
            order = _text(archive, records, "byteorder")
            if order not in ("", "little"):
                raise UserError(path, f"was written on a {order}-endian machine", "convert it on such a machine")
            pickled = archive.read(records["data.pkl"])
            storages = {
                name.removeprefix("data/"): (_data_offset(archive, info), info.file_size)
                for name, info in records.items()
                if name.startswith("data/")
            }
        return _Reader(pickled, storages, path).load()
    except FileNotFoundError:
        raise DamagedFile(path, "is missing") from None
    except _ForbiddenName as name:
        raise UserError(path, f"mentions {name}, which no checkpoint needs", "do not trust this file") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a torn pickle or archive may raise anything
        raise DamagedFile(path, f"is torn ({error})") from error


def verify_torch_file(path: Path) -> None:
    """Compare every record with its CRC-32.

    Raises:
        DamagedFile: one differs.
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb", buffering=0) as file:
        for info in archive.infolist():
            file.seek(_data_offset(archive, info))
            checksum, left = 0, info.file_size
            while left and (block := file.read(min(left, _BLOCK))):
                checksum, left = zlib.crc32(block, checksum), left - len(block)
            if left or checksum != info.CRC:
                raise DamagedFile(path, f"is altered: its record {info.filename} does not match its CRC-32")


def _records(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's records without the name of its top folder."""
    records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "data.pkl" not in records or any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
        raise UserError(path, "is not a file of torch.save", "give a checkpoint that DeepSpeed wrote")
    return records


def _text(archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo], name: str) -> str:
    return archive.read(records[name]).decode() if name in records else ""


def _data_offset(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Where a record's bytes start: behind its local header, whose padding the central directory does not tell."""
    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if header[0] != b"PK\x03\x04":
        raise zipfile.BadZipFile("a local header is missing")
    return info.header_offset + _LOCAL_HEADER.size + header[-2] + header[-1]
