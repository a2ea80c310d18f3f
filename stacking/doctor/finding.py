"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Level = Literal["error", "warning", "note", "ok"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    """``error``: training cannot work, or will end badly. ``warning``: it works, and costs more than it should.
    ``note``: worth knowing. ``ok``: as it should be."""
    what: str
    found: str
    advice: str = ""
    """What to do, in one line; empty where nothing is to be done."""


def worst(findings: list[Finding]) -> Level:
    return min((finding.level for finding in findings), key=LEVELS.index, default="ok")
