"""Defines the result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Level = Literal["error", "warning", "note", "ok"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    level: Level
    """``error``: training fails or ends badly. ``warning``: it works but costs more than it should.
    ``note``: worth knowing. ``ok``: as it should be."""
    what: str
    found: str
    advice: str = ""
    """What to do, in one line; empty if nothing."""


def worst(findings: list[Finding]) -> Level:
    """Returns the worst level among ``findings``; ``ok`` if there are none."""
    return min((finding.level for finding in findings), key=LEVELS.index, default="ok")
