"""Files that are complete or absent: written beside, fsynced, renamed; verified by size and checksum when read."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from stacking.errors import DamagedFile, NoSpace, UserError
from stacking.storage.blocks import BLOCK, Entry, digests_of, hash_files, verify_blocks
from stacking.storage.threads import each

MANIFEST = "manifest.json"


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
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def new_folder(
    path: Path, manifest: Mapping[str, Any] | None = None, sealed: Mapping[str, Entry] | None = None
) -> Iterator[Path]:
    """Fill a folder that appears under its name only when it is complete.

    Yields a temporary sibling. When the block ends, every file is fsynced and listed with its size and checksums in
    ``manifest.json`` (key ``files``, beside the entries of ``manifest``), then the folder takes its name.
    A block that raises leaves nothing behind; a process that is killed leaves a ``.partial`` sibling that the next
    try removes.

    Args:
        sealed: by name in the folder, the entries of files whose bytes were hashed as they were written: they are not
            read again. May be filled until the block ends.
    """
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            seal_folder(partial, manifest if manifest is not None else {}, sealed)
            move_folder(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def seal_folder(folder: Path, manifest: Mapping[str, Any], sealed: Mapping[str, Entry] | None = None) -> None:
    """Write ``folder/manifest.json``: ``manifest`` and, under ``files``, each file's size and checksums.

    Args:
        sealed: the entries that are known already, by name.

    Raises:
        DamagedFile: a file has another size than the entry that is known.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    each(fsync_file, [folder / name for name in names])
    known = {name: entry for name, entry in (sealed or {}).items() if name in names}
    for name, entry in known.items():
        _check_size(folder / name, entry)
    unknown = [name for name in names if name not in known]
    found = dict(zip(unknown, hash_files([folder / name for name in unknown]), strict=True))
    write_json(folder / MANIFEST, {**manifest, "files": {name: {**known, **found}[name] for name in names}})


def fsync_file(path: Path) -> None:
    """Make the bytes of ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_folder(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``; a folder that stands there is replaced."""
    if target.exists():
        shutil.rmtree(target)
    os.rename(source, target)
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
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    if not _lists_files(manifest):
        raise DamagedFile(folder / MANIFEST, "does not list the files of the folder with their sizes and checksums")
    for name, entry in manifest["files"].items():
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


def _lists_files(manifest: Any) -> bool:
    files = manifest.get("files") if isinstance(manifest, dict) else None
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {"bytes", "checksum"} <= entry.keys() and isinstance(entry["bytes"], int)
        for entry in files.values()
    )
