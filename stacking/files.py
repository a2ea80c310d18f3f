"""Files that are complete or absent: written beside, fsynced, renamed; verified by size and checksum when read."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from stacking.errors import DamagedFile, NoSpace, UserError

MANIFEST = "manifest.json"
_BLOCK = 1 << 22


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals under ``path`` into errors that a user can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(path) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(path, "cannot be written", "choose a folder that you may write to") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise UserError(path, "is a file, or lies below one", "choose a folder") from error
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
            raise UserError(path, f"cannot be made ({error.strerror})", "choose another name") from error
        raise


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace ``path`` by ``data``; a reader sees the old content or the new, never a part.

    Raises:
        NoSpace: the disk is full; the old content stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        try:
            with open(partial, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in ``path``.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(path, "does not exist", "check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedFile(path, f"is not JSON ({error})") from None


def fsync_folder(folder: Path) -> None:
    """Make the renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """XXH3-128 of the file's bytes, in hex: made to detect damage at disk speed, not against forgery."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def new_folder(path: Path, manifest: dict[str, Any] | None = None) -> Iterator[Path]:
    """Fill a folder that appears under its name only when it is complete.

    Yields a temporary sibling. When the block ends, every file is fsynced and listed with its size and checksum in
    ``manifest.json`` (key ``files``, beside the entries of ``manifest``), then the folder takes its name.
    A block that raises leaves nothing behind; a process that is killed leaves a ``.partial`` sibling that the next
    try removes.
    """
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            seal_folder(partial, manifest if manifest is not None else {})
            move_folder(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def seal_folder(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``folder/manifest.json``: ``manifest`` and, under ``files``, each file's size and checksum."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    files = {}
    for name in names:
        with open(folder / name, "rb+", buffering=0) as file:
            os.fsync(file.fileno())
        files[name] = {"bytes": (folder / name).stat().st_size, "checksum": checksum(folder / name)}
    write_json(folder / MANIFEST, {**manifest, "files": files})


def move_folder(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``; a folder that stands there is replaced."""
    if target.exists():
        shutil.rmtree(target)
    os.rename(source, target)
    fsync_folder(target.parent)


def require_absent(path: Path) -> None:
    """Refuse to write over something that stands there already.

    Raises:
        UserError: ``path`` exists and is not an empty folder.
    """
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    elif path.exists():
        raise UserError(path, "exists already", "remove it or choose another name")


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to ``*.damaged``, so that nothing uses it and nothing is lost."""
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged{number or ''}")).exists():
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
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    if not _lists_files(manifest):
        raise DamagedFile(folder / MANIFEST, "does not list the files of the folder with their sizes and checksums")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedFile(path, "is missing")
        if path.stat().st_size != expected["bytes"]:
            raise DamagedFile(path, f"has {path.stat().st_size:,} bytes where the manifest says {expected['bytes']:,}")
        if checksums and checksum(path) != expected["checksum"]:
            raise DamagedFile(path, "does not match its checksum")
    return manifest


def _lists_files(manifest: Any) -> bool:
    files = manifest.get("files") if isinstance(manifest, dict) else None
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {"bytes", "checksum"} <= entry.keys() and isinstance(entry["bytes"], int)
        for entry in files.values()
    )
