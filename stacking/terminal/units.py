"""Formats numbers for people."""

from __future__ import annotations

import math

UNKNOWN = "—"
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float | None) -> str:
    """Formats seconds: ``4.2 s``, ``42 s``, ``5 min 10 s``, ``3 h 12 min``, ``2 d 4 h``; a dash if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    for size, unit, below, below_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit} {rest} {below_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def count(number: float | None) -> str:
    """Formats three significant digits: ``950``, ``96.4 k``, ``12.3 M``, ``4.10 B`` (10⁹); a dash if unknown."""
    if number is None or not math.isfinite(number):
        return UNKNOWN
    for size, prefix in _PREFIXES:
        if abs(number) >= 0.9995 * size:
            scaled = number / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:,.{digits}f} {prefix}"
    return f"{number:.0f}"


def counted(number: int, noun: str) -> str:
    """Formats a number of things: ``1 layer``, ``1,200 layers``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def loss(value: float | None) -> str:
    """Formats four decimals; a dash if there is no value."""
    if value is None:
        return UNKNOWN
    return f"{value:.4f}" if math.isfinite(value) else "not a number"
