"""Writes files and folders atomically (temporary name, fsync, rename) and verifies their sizes and checksums."""

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
from stacking.storage.os_errors import disk_errors as disk_errors
from stacking.storage.os_errors import patiently
from stacking.storage.seal import BrokenSeal, sealed, sealed_text, unsealed, unsealed_text
from stacking.storage.threads import each

MANIFEST = "manifest.json"
_LARGEST_JSON = 256 << 20
"""Maximum size of a JSON file in bytes. The manifest of a 1 TB checkpoint has 32 MiB."""


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replaces the content of ``path`` with ``data``; readers see either the old or the new content.

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
        fsync(path.parent)

    with disk_errors(path):
        patiently(write)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically.

    Raises:
        NoSpace: the disk is full; the old content stays.
    """
    try:
        data = json.dumps(value, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can only hold escaped
        data = json.dumps(value, indent=2).encode()
    write_atomically(path, data + b"\n")


def read_json(path: Path) -> Any:
    """Reads the JSON value in ``path``.

    Raises:
        UserError: the file is missing.
        StorageFailure: the file cannot be read at the moment.
        DamagedFile: the file is not JSON, or is nested too deeply or too large.
    """
    data = _read(path)
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise DamagedFile(path, "is not JSON (it is nested too deeply)") from None
    except ValueError as error:  # syntax, encoding, or a number with thousands of digits
        raise DamagedFile(path, f"is not JSON ({str(error).partition(';')[0]})") from None


def _read(path: Path) -> bytes:
    def read() -> bytes:
        with os.fdopen(open_file(path), "rb") as file:
            if os.fstat(file.fileno()).st_size > _LARGEST_JSON:
                raise DamagedFile(path, f"is larger than {_LARGEST_JSON >> 20} MiB")
            return file.read()

    if not path.exists():
        raise UserError(path, "does not exist", "check the path")
    with disk_errors(path):
        return patiently(read)


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` and its seal as indented JSON, atomically."""
    write_json(path, sealed(content))


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads a file written by `write_sealed`.

    Raises:
        UserError: there is no such file.
        DamagedFile: the file was changed since, or has no seal.
    """
    value = read_json(path)
    try:
        return unsealed(value)
    except (BrokenSeal, RecursionError) as error:
        raise DamagedFile(path, str(error), "restore it, or recreate what it belongs to") from None


def write_sealed_text(path: Path, text: str) -> None:
    """Writes ``text`` with its seal in a comment on the last line, atomically."""
    write_atomically(path, sealed_text(text))


def read_sealed_text(path: Path) -> str:
    """Reads a file written by `write_sealed_text`.

    Raises:
        UserError: there is no such file.
        DamagedFile: the file was changed since, or has no seal.
    """
    data = _read(path)
    try:
        return unsealed_text(data.decode(errors="replace"))
    except BrokenSeal as error:
        raise DamagedFile(path, str(error), "restore it from a copy") from None


def fsync(path: Path) -> None:
    """Makes the content of a file, or the names inside a folder, durable."""

    def sync() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    patiently(sync)


def checksum(path: Path) -> str:
    """Returns the XXH3-128 of the file's bytes in hex; it detects damage at disk speed, but not forgery."""

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
    """Creates a folder that gets its name only when it is complete.

    Yields a temporary sibling. When the block ends, every file is fsynced and listed with its size and checksums in
    ``manifest.json`` (key ``files``, next to the entries of ``manifest``), then the folder is renamed. If the block
    raises, nothing is left behind; a killed process leaves a ``.partial`` sibling that the next attempt removes.

    Args:
        entries: the manifest entries, by name, of files that were hashed as they were written, so that they are not
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
    """Writes ``folder/manifest.json``: ``manifest`` and, under ``files``, each file's size and checksums.

    Raises:
        DamagedFile: a file's size differs from its entry in ``entries``, which are as in `new_folder`.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    each(fsync, [folder / name for name in names])
    files = {name: entry for name, entry in (entries or {}).items() if name in names}
    for name, entry in files.items():
        _check_size(folder / name, entry)
    unknown = [name for name in names if name not in files]
    files |= zip(unknown, hash_files([folder / name for name in unknown]), strict=True)
    write_sealed(folder / MANIFEST, {**manifest, "files": {name: files[name] for name in names}})


def move_folder(source: Path, target: Path) -> None:
    """Renames ``source`` to ``target`` durably; an existing ``target`` is removed first."""
    if target.exists():
        shutil.rmtree(target)
    patiently(lambda: os.rename(source, target))
    fsync(target.parent)


def require_empty(path: Path, option: str) -> None:
    """Rejects a folder that is not empty.

    Raises:
        UserError: ``path`` is a file, or a folder that is not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{option} {path}", "is not an empty folder", "name a new one")


def require_absent(path: Path) -> None:
    """Rejects an existing target.

    Raises:
        UserError: ``path`` exists and is not an empty folder.
    """
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    elif path.exists():
        raise UserError(path, "already exists", "remove it or choose another name")


def require_outside(out: Path, source: Path) -> None:
    """Rejects a target inside the folder that is read.

    Raises:
        UserError: ``out`` is ``source`` or inside it.
    """
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out {out}", f"is inside its source {source}", "choose a folder elsewhere")


def set_aside(path: Path, why: str = "damaged") -> Path:
    """Renames a file or folder to ``*.damaged``, or another suffix ``why``, so that nothing uses it or loses it."""
    number = 0
    while (aside := path.with_name(f"{path.name}.{why}{number or ''}")).exists():
        number += 1
    path.rename(aside)
    fsync(path.parent)
    return aside


def set_aside_unless_file(path: Path) -> Path | None:
    """Sets aside a folder or a named pipe found where a file belongs; returns its new path, if there was one."""
    return set_aside(path) if path.exists() and not path.is_file() else None


def verify_folder(folder: Path, checksums: bool = True) -> dict[str, Any]:
    """Verifies the size and checksum of every file in the manifest of ``folder``; returns the manifest.

    Raises:
        UserError: there is no such folder.
        DamagedFile: the manifest is missing, or a file is missing, truncated or altered; the message names the file.
    """
    if not folder.is_dir():
        raise UserError(folder, "is not a folder", "check the path")
    if not (folder / MANIFEST).is_file():
        what = "is not a file" if (folder / MANIFEST).exists() else "is missing"
        raise DamagedFile(folder / MANIFEST, f"{what}, so the folder is incomplete")
    manifest = read_sealed(folder / MANIFEST)
    if not _lists_files(manifest):
        raise DamagedFile(folder / MANIFEST, "does not list the files of the folder with their sizes and checksums")
    for name, entry in manifest["files"].items():
        if not _is_inside(name):
            raise DamagedFile(folder / MANIFEST, f"lists {name!r}, which is not a file of the folder")
        _check_size(folder / name, entry)
    if checksums:
        verify_blocks(block_digests(folder, manifest["files"]))
    return manifest


def _check_size(path: Path, entry: Entry) -> None:
    if not path.is_file():
        raise DamagedFile(path, "is missing")
    if path.stat().st_size != entry["bytes"]:
        raise DamagedFile(path, f"has {path.stat().st_size:,} bytes where the manifest says {entry['bytes']:,}")


def block_digests(folder: Path, files: Mapping[str, Entry]) -> dict[Path, list[str]]:
    """Returns the block digests of every file in a manifest.

    Raises:
        DamagedFile: the manifest is inconsistent.
    """
    try:
        return {folder / name: digests_of(entry) for name, entry in files.items()}
    except ValueError as error:
        raise DamagedFile(folder / MANIFEST, f"is inconsistent: {error}") from None


def _is_inside(name: str) -> bool:
    """Returns whether a manifest's file name stays inside the folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and path.as_posix() == name and not path.is_absolute() and ".." not in path.parts


def _lists_files(manifest: Any) -> bool:
    files = manifest.get("files") if isinstance(manifest, dict) else None
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {"bytes", "checksum"} <= entry.keys() and type(entry["bytes"]) is int
        for entry in files.values()
    )
