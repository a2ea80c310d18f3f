"""Compares what a disturbed run produced with the undisturbed run of the same setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_OF_THE_CLOCK = {"seconds", "time", "tokens_per_second", "check"}
"""Times, speeds, and the checksum of a line that holds them."""
_FOLLOWS_FROM_THEM = {"files", "checksum", "digest", "seal"}
"""Checksums of files that hold a time; the files themselves are compared."""
PRODUCTS = ("0-L1/state", "1-L2/start", "1-L2/state", "export")
"""Folders whose files must be the same: weights, moments, steps, progress; the exported model."""
METRICS = ("0-L1/metrics.jsonl", "1-L2/metrics.jsonl")
"""A record an update: its loss and the number of its last sample, so that each sample is seen once and in order."""
_LEFTOVERS = ("*.partial", "*.saving", ".saving")


def different_files(run: Path, reference: Path) -> list[str]:
    """Output and metrics files, by their names in the run, that differ from ``reference``."""
    names = [
        path.relative_to(base).as_posix()
        for base in (reference, run)
        for product in PRODUCTS
        for path in (base / product).rglob("*")
        if path.is_file()
    ]
    return [name for name in sorted({*names, *METRICS}) if not same(run / name, reference / name)]


def same(one: Path, other: Path) -> bool:
    """Whether two files are equal: byte by byte, or as JSON apart from its times."""
    try:
        first, second = one.read_bytes(), other.read_bytes()
    except OSError:
        return False
    if first == second:
        return True
    if one.suffix not in (".json", ".jsonl"):
        return False
    try:
        return _content(one, first) == _content(other, second)
    except ValueError:
        return False


def leftovers(run: Path) -> list[str]:
    """Unfinished files and folders that a finished run must not have."""
    return sorted({path.relative_to(run).as_posix() for pattern in _LEFTOVERS for path in run.rglob(pattern)})


def set_aside(run: Path) -> list[str]:
    """Files and folders that were set aside as damaged."""
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*.damaged*"))


def _content(path: Path, data: bytes) -> list[Any]:
    texts = data.splitlines() if path.suffix == ".jsonl" else [data]
    return [_timeless(json.loads(text), path.name == "manifest.json") for text in texts]


def _timeless(value: Any, sealed: bool) -> Any:
    dropped = _OF_THE_CLOCK | (_FOLLOWS_FROM_THEM if sealed else set())
    if isinstance(value, dict):
        return {key: _timeless(item, sealed) for key, item in value.items() if key not in dropped}
    if isinstance(value, list):
        return [_timeless(item, sealed) for item in value]
    return value
