"""Defines the kinds of values, and converts text to them."""

from __future__ import annotations

from typing import Any

from stacking.deepspeed_config.facts import COUNT, FLAG, NUMBER, OTHER, TEXT

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

_LARGEST = 10**20
"""No number in a configuration is as large; Python's own integers have no limit."""


def is_a(kind: str, value: Any) -> bool:
    """Whether a JSON value has the kind of a key."""
    if kind == FLAG:
        return isinstance(value, bool)
    if kind == TEXT:
        return isinstance(value, str)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _LARGEST
    return kind == OTHER or (number and (kind == NUMBER or value == int(value)))


def coerced(kind: str, value: Any) -> Any:
    """Converts text, 0 and 1 for a flag, or a list of one such value; None if the meaning is unclear.

    HJSON reads the comma after a word without quotes, such as Python's ``True``, as a part of it.
    """
    if isinstance(value, list) and len(value) == 1 and kind in (FLAG, COUNT, NUMBER):
        return value[0] if is_a(kind, value[0]) else None
    if kind == FLAG:
        return _WORDS.get(str(value).strip(" ,").lower()) if isinstance(value, (str, int)) else None
    if kind not in (COUNT, NUMBER) or not isinstance(value, str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if not is_a(kind, number):
        return None
    return int(number) if number == int(number) else number
