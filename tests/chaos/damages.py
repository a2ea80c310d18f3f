"""Ways to damage a file, and the kinds of files in a run, its data and its checkpoints."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

Damage = Callable[[Path, random.Random], None]


def _flip(path: Path, draw: random.Random) -> None:
    """Flip one bit, as failing disks and memory do."""
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    _overwrite(path, bytes(content) or b"\x01")


def _digit(path: Path, draw: random.Random) -> None:
    """Change one digit of a text, so that it is still well formed; flip a bit in a file without digits."""
    content = bytearray(path.read_bytes())
    digits = [place for place, byte in enumerate(content) if chr(byte).isascii() and chr(byte).isdigit()]
    if not digits or path.suffix in (".npy", ".pt", ".safetensors", ".png"):
        return _flip(path, draw)
    place = draw.choice(digits)
    content[place] = draw.choice([digit for digit in b"123456789" if digit != content[place]])
    return _overwrite(path, bytes(content))


def _truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    _overwrite(path, content[: draw.randrange(max(1, len(content)))])


def _zero(path: Path, draw: random.Random) -> None:
    """A block of zeros, as file systems leave after a crash."""
    content = bytearray(path.read_bytes())
    start = draw.randrange(max(1, len(content))) // 512 * 512
    stop = min(len(content), start + 4096)
    content[start:stop] = bytes(stop - start)
    _overwrite(path, bytes(content))


def _garbage(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = draw.randrange(max(1, len(content)))
    stop = min(len(content), start + 64)
    content[start:stop] = draw.randbytes(stop - start)
    _overwrite(path, bytes(content) or b"\xff\xfe")


def _empty(path: Path, draw: random.Random) -> None:
    _overwrite(path, b"")


def _append(path: Path, draw: random.Random) -> None:
    _overwrite(path, path.read_bytes() + draw.choice([b"\x00" * 16, b"\n", b"{", draw.randbytes(40)]))


def _delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def _folder(path: Path, draw: random.Random) -> None:
    """Replace the file by a folder."""
    path.unlink()
    path.mkdir()


def _overwrite(path: Path, content: bytes) -> None:
    """Works in place: files that are linked to this one are damaged with it."""
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(content)


DAMAGES: Mapping[str, Damage] = {
    "bit flipped": _flip,
    "digit changed": _digit,
    "truncated": _truncate,
    "zeroed": _zero,
    "garbage": _garbage,
    "emptied": _empty,
    "appended": _append,
    "deleted": _delete,
    "folder in its place": _folder,
}

FILES: Mapping[str, tuple[str, ...]] = {
    "data: manifest": ("data/manifest.json",),
    "data: shards": ("data/*/*.npy",),
    "data: tokenizer": ("data/tokenizer*.json", "data/vocab.txt"),
    "run: plan": ("run/plan.json",),
    "run: recipe": ("run/recipe.yaml",),
    "run: journal": ("run/journal.jsonl",),
    "run: lock": ("run/lock",),
    "run: sample indices": ("run/samples.*.npy",),
    "run: metrics": ("run/*/metrics.jsonl",),
    "run: logs": ("run/*/logs/*",),
    "checkpoint: manifest": ("run/*/checkpoints/*/manifest.json",),
    "checkpoint: shards": ("run/*/checkpoints/*/*.pt",),
    "checkpoint: progress": ("run/*/checkpoints/*/progress.json",),
    "checkpoint: latest": ("run/*/checkpoints/latest",),
    "state: manifest": ("run/*/state/manifest.json",),
    "state: tensors": ("run/*/state/*.safetensors",),
    "grown: manifest": ("run/*/start/manifest.json",),
    "grown: tensors": ("run/*/start/*.safetensors",),
    "export: manifest": ("run/export/manifest.json",),
    "export: model": ("run/export/*.safetensors", "run/export/config.json"),
    "export: the rest": ("run/export/README.md", "run/export/vocab.txt", "run/export/tokenizer*.json"),
}
"""Kinds of files by where they lie in the workshop."""
REDUNDANT = {"run: lock", "run: sample indices", "run: metrics", "run: logs", "checkpoint: latest"}
"""Kinds that can be made again, or that training does without: no damage of theirs may stop a run."""


def harm(path: Path, damage: str, draw: random.Random) -> None:
    """Damage the file; if that changes nothing because the file is already empty, append bytes to it."""
    before = path.read_bytes()
    DAMAGES[damage](path, draw)
    if path.is_file() and path.read_bytes() == before:
        _append(path, draw)


def files_of(kind: str, workshop: Path) -> list[Path]:
    """The files of ``kind``, the newest last."""
    found = [path for pattern in FILES[kind] for path in workshop.glob(pattern) if path.is_file()]
    return sorted(found, key=lambda path: (path.parent.as_posix(), path.name))


def aliases(path: Path, workshop: Path) -> list[Path]:
    """All names of the file at ``path``: growth links files instead of copying them."""
    inode = path.stat().st_ino
    folders = (workshop / "run", workshop / "data")
    return [
        other for folder in folders for other in folder.rglob("*") if other.is_file() and other.stat().st_ino == inode
    ]


def restore(path: Path, pristine: Path) -> None:
    """Put the undamaged file back."""
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(pristine, path)
