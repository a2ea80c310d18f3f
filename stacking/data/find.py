"""Finds the files of an input and lists what is skipped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stacking.data.compression import first_bytes, plain_suffix
from stacking.data.formats import HEAD_BYTES, READABLE, SUFFIXES, NotText, recognise, suffix_class
from stacking.data.readers import TextFile
from stacking.errors import UserError

PassOver = Callable[[Path, str], None]


@dataclass(frozen=True)
class FoundFiles:
    """The files of an input, and what was skipped."""

    files: tuple[TextFile, ...]
    passed_over: tuple[tuple[Path, str], ...] = ()
    """Skipped files and folders, each with the reason."""
    folders: frozenset[Path] = frozenset()
    """All searched folders, with links resolved."""


def find_files(name: str, format: str | None = None, text_key: str = "text") -> FoundFiles:
    """Finds the text files of ``name``, a file or a folder, in an order determined by the names.

    Folders are searched recursively. Links are followed; a target with several links is read once.

    Args:
        format: read all files in this format, a key of ``readers.READERS``, instead of detecting it.
        text_key: the key or column of the text in rows.

    Raises:
        UserError: there is no such path, no reader for a file, or no readable file in a folder.
        DamagedFile: a compressed file is truncated.
    """
    path = Path(name)
    if not path.is_dir():
        return FoundFiles((TextFile(path, format or _format_of_named(path), text_key),))
    passed_over: list[tuple[Path, str]] = []
    folders: set[Path] = set()
    files: list[TextFile] = []
    seen: set[str] = set()
    for file in _walk(path, folders, lambda *passed: passed_over.append(passed)):
        try:
            found = _format_in_folder(file, format)
            real = os.path.realpath(file)
            if real in seen:
                raise NotText("already read under another name")
        except NotText as reason:
            passed_over.append((file, str(reason)))
            continue
        seen.add(real)
        files.append(TextFile(file, found, text_key))
    if not files:
        reasons = "; it has " + ", ".join(sorted({reason for _, reason in passed_over})[:4]) if passed_over else ""
        raise UserError(name, f"has no readable file in it{reasons}", f"give a folder with {_known()}")
    return FoundFiles(tuple(files), tuple(passed_over), frozenset(folders))


def _walk(folder: Path, folders: set[Path], pass_over: PassOver) -> Iterator[Path]:
    """Yields the files below ``folder``, ordered by name; each real folder once, so that cycles end."""
    folders.add(folder.resolve())
    pending = _entries(folder)
    while pending:
        path = pending.pop()
        if path.name.startswith("."):
            pass_over(path, "hidden")
        elif path.is_dir():
            real = path.resolve()
            if real in folders:
                pass_over(path, "link to a folder that is already read")
                continue
            folders.add(real)
            pending.extend(_entries(path))
        elif path.is_file():
            yield path
        else:
            pass_over(path, "broken link" if path.is_symlink() else "not a regular file")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), reverse=True)
    except OSError as error:
        raise UserError(folder, f"cannot be read ({error.strerror or error})", "check its permissions") from None


def _format_of_named(path: Path) -> str:
    _require_file(path)
    try:
        return recognise(plain_suffix(path), first_bytes(path, HEAD_BYTES))
    except NotText as reason:
        suffix = plain_suffix(path)
        problem = f"has the suffix {suffix!r} that no reader knows" if str(reason).startswith("suffix") else ""
        remedy = f"give one of {_known()}, or set --format"
        raise UserError(path, problem or f"is {reason}", remedy) from None


def _require_file(path: Path) -> None:
    if not path.exists():
        raise UserError(path, "does not exist", "check the path; a dataset is named OWNER/NAME or NAME:CONFIGURATION")
    if not path.is_file():
        raise UserError(path, "is neither a file nor a folder", "give regular files: pipes cannot be read twice")


def _format_in_folder(file: Path, format: str | None) -> str:
    """Returns the format of a file found in a folder.

    Raises:
        NotText: it is not a text file.
    """
    suffix = plain_suffix(file)
    if format is None:
        if suffix_class(suffix) not in ("", *READABLE):  # decided without opening the file
            raise NotText(f"suffix {suffix}")
        return recognise(suffix, first_bytes(file, HEAD_BYTES))
    if suffix_class(suffix) not in SUFFIXES[format]:
        raise NotText(f"suffix {suffix}, not --format {format}")
    return format


def _known() -> str:
    return f"{', '.join(READABLE)} (also .gz .bz2 .xz .zst)"
