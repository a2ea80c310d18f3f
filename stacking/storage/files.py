"""Files that are complete or absent: written beside, fsynced, renamed; verified by size and checksum when read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from stacking.errors import DamagedFile, UserError
from stacking.storage.blocks import BLOCK, Entry, digests_of, hash_files, open_file, verify_blocks
from stacking.storage.os_errors import disk_errors, patiently
from stacking.storage.seal import BrokenSeal, sealed, unsealed
from stacking.storage.threads import each

MANIFEST = "manifest.json"
_LARGEST_JSON = 256 << 20
"""Bytes. The manifest of a checkpoint of a terabyte has 32 MiB."""


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace ``path`` by ``data``; a reader sees the old content or the new, never a part.

    Raises:
        NoSpace: the disk is full; the old content stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")

    def write() -> None:
        try:
            with open(partial, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        fsync_folder(path.parent)

    with disk_errors(path):
        patiently(write)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    try:
        data = json.dumps(value, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only hold escaped
        data = json.dumps(value, indent=2).encode()
    write_atomically(path, data + b"\n")


def read_json(path: Path) -> Any:
    """The JSON value in ``path``.

    Raises:
        UserError: the file is missing.
        StorageFailure: it cannot be read at the moment.
        DamagedFile: it is not JSON, or is nested too deeply or too large for a file of this project.
    """
    if not path.exists():
        raise UserError(path, "does not exist", "check the path")
    with disk_errors(path):
        data = patiently(lambda: _read_small(path))
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise DamagedFile(path, "is not JSON (it is nested too deeply)") from None
    except ValueError as error:  # syntax, encoding, or a number of thousands of digits
        raise DamagedFile(path, f"is not JSON ({str(error).partition(';')[0]})") from None


def _read_small(path: Path) -> bytes:
    with os.fdopen(open_file(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > _LARGEST_JSON:
            raise DamagedFile(path, f"is larger than {_LARGEST_JSON >> 20} MiB")
        return file.read()


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` and the seal of it as indented JSON, atomically."""
    write_json(path, sealed(content))


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        UserError: there is no such file.
        DamagedFile: it was changed since, or was never sealed.
    """
    value = read_json(path)
    try:
        return unsealed(value)
    except (BrokenSeal, RecursionError) as error:
        raise DamagedFile(path, str(error), "restore it, or make again what it belongs to") from None


def fsync_folder(folder: Path) -> None:
    """Make the renames inside ``folder`` durable."""
    patiently(lambda: _fsync(folder))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """XXH3-128 of the file's bytes, in hex: made to detect damage at disk speed, not against forgery."""

    def read() -> str:
        digest = xxhash.xxh3_128()
        with open(path, "rb", buffering=0) as file:
            while block := file.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    with disk_errors(path):
        return patiently(read)


@contextmanager
def new_folder(
    path: Path, manifest: Mapping[str, Any] | None = None, entries: Mapping[str, Entry] | None = None
) -> Iterator[Path]:
    """Fill a folder that appears under its name only when it is complete.

    Yields a temporary sibling. When the block ends, every file is fsynced and listed with its size and checksums in
    ``manifest.json`` (key ``files``, beside the entries of ``manifest``), then the folder takes its name.
    A block that raises leaves nothing behind; a process that is killed leaves a ``.partial`` sibling that the next
    try removes.

    Args:
        entries: by name in the folder, those of files whose bytes were hashed as they were written: they are not
            read again. May be filled until the block ends.
    """
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            seal_folder(partial, manifest if manifest is not None else {}, entries)
            move_folder(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def seal_folder(folder: Path, manifest: Mapping[str, Any], entries: Mapping[str, Entry] | None = None) -> None:
    """Write ``folder/manifest.json``: ``manifest`` and, under ``files``, each file's size and checksums.

    Args:
        entries: those that are known already, by name.

    Raises:
        DamagedFile: a file has another size than the entry that is known.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    each(fsync_file, [folder / name for name in names])
    known = {name: entry for name, entry in (entries or {}).items() if name in names}
    for name, entry in known.items():
        _check_size(folder / name, entry)
    unknown = [name for name in names if name not in known]
    found = dict(zip(unknown, hash_files([folder / name for name in unknown]), strict=True))
    write_sealed(folder / MANIFEST, {**manifest, "files": {name: {**known, **found}[name] for name in names}})


def fsync_file(path: Path) -> None:
    """Make the bytes of ``path`` durable."""
    patiently(lambda: _fsync(path))


def move_folder(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``; a folder that stands there is replaced."""
    if target.exists():
        shutil.rmtree(target)
    patiently(lambda: os.rename(source, target))
    fsync_folder(target.parent)


def require_empty(path: Path, option: str) -> None:
    """Refuse a folder in which something lies already.

    Raises:
        UserError: ``path`` is a file, or a folder that is not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{option} {path}", "is not an empty folder", "name a new one")


def require_absent(path: Path) -> None:
    """Refuse to write over something that stands there already.

    Raises:
        UserError: ``path`` exists and is not an empty folder.
    """
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    elif path.exists():
        raise UserError(path, "exists already", "remove it or choose another name")


def require_outside(out: Path, source: Path) -> None:
    """Refuse to write into the folder that is read.

    Raises:
        UserError: ``out`` is ``source`` or lies in it.
    """
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out {out}", f"lies in {source}, which it is made from", "name a folder elsewhere")


def set_aside(path: Path, why: str = "damaged") -> Path:
    """Rename a file or folder to ``*.damaged``, or another ``why``, so that nothing uses it and nothing is lost."""
    number = 0
    while (aside := path.with_name(f"{path.name}.{why}{number or ''}")).exists():
        number += 1
    path.rename(aside)
    fsync_folder(path.parent)
    return aside


def verify_folder(folder: Path, checksums: bool = True) -> dict[str, Any]:
    """The manifest of ``folder``, after every file that it lists was found with its size and checksum.

    Raises:
        UserError: there is no such folder.
        DamagedFile: the manifest is missing, or a file is missing, cut or altered; names the file.
    """
    if not folder.is_dir():
        raise UserError(folder, "is not a folder", "check the path")
    if not (folder / MANIFEST).is_file():
        raise DamagedFile(folder / MANIFEST, "is missing, so the folder is incomplete")
    manifest = read_sealed(folder / MANIFEST)
    if not _lists_files(manifest):
        raise DamagedFile(folder / MANIFEST, "does not list the files of the folder with their sizes and checksums")
    for name, entry in manifest["files"].items():
        if not _is_inside(name):
            raise DamagedFile(folder / MANIFEST, f"lists {name!r}, which is no file of the folder")
        _check_size(folder / name, entry)
    if checksums:
        _verify_checksums(folder, manifest["files"])
    return manifest


def _check_size(path: Path, entry: Entry) -> None:
    if not path.is_file():
        raise DamagedFile(path, "is missing")
    if path.stat().st_size != entry["bytes"]:
        raise DamagedFile(path, f"has {path.stat().st_size:,} bytes where the manifest says {entry['bytes']:,}")


def _verify_checksums(folder: Path, files: Mapping[str, Entry]) -> None:
    blocks = block_digests(folder, files)
    verify_blocks({path: digests for path, digests in blocks.items() if digests is not None})
    for name, entry in files.items():
        if blocks[folder / name] is None and checksum(folder / name) != entry["checksum"]:
            raise DamagedFile(folder / name, "does not match its checksum")


def block_digests(folder: Path, files: Mapping[str, Entry]) -> dict[Path, list[str] | None]:
    """Of every file that a manifest lists its blocks' digests, or None where there is one checksum for all of them.

    Raises:
        DamagedFile: the manifest contradicts itself.
    """
    try:
        return {folder / name: digests_of(entry) for name, entry in files.items()}
    except ValueError as error:
        raise DamagedFile(folder / MANIFEST, f"contradicts itself: {error}") from None


def _is_inside(name: str) -> bool:
    """Whether a manifest's name is that of a file below its folder, whatever the folder is called."""
    path = PurePosixPath(name)
    return bool(path.parts) and path.as_posix() == name and not path.is_absolute() and ".." not in path.parts


def _lists_files(manifest: Any) -> bool:
    """Whether a manifest lists files with their sizes and checksums."""
    files = manifest.get("files") if isinstance(manifest, dict) else None
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {"bytes", "checksum"} <= entry.keys() and type(entry["bytes"]) is int
        for entry in files.values()
    )
