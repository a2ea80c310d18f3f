"""Seals JSON objects with a checksum of their own content, so that any change is detected.

The seal is the XXH3-128 of the content in canonical form (sorted keys, no spaces, ASCII), in hex, under the key
``seal``. It detects damage and careless edits; it is not a signature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stacking.storage.blocks import digest

SEAL = "seal"
_COMMENT = "# seal: "


class BrokenSeal(ValueError):
    """Raised if the content has no seal or does not match it; the message says which."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``content`` with its seal as the last key, replacing an existing seal."""
    bare = {key: value for key, value in content.items() if key != SEAL}
    return {**bare, SEAL: _seal_of(bare)}


def unsealed(value: Any) -> dict[str, Any]:
    """Checks a sealed object and returns its content without the seal.

    Raises:
        BrokenSeal: ``value`` is not an object, has no seal, or was changed since it was sealed.
    """
    if not isinstance(value, dict):
        raise BrokenSeal("is not a JSON object")
    if SEAL not in value:
        raise BrokenSeal("has no seal: it is damaged, or an earlier version wrote it")
    bare = {key: part for key, part in value.items() if key != SEAL}
    if value[SEAL] != _seal_of(bare):
        raise BrokenSeal("does not match its seal: it was changed after it was written")
    return bare


def sealed_text(text: str) -> str:
    """Returns ``text`` with its seal in a comment on the last line: YAML that anyone can read."""
    return f"{text}{_COMMENT}{digest(text.encode())}\n"


def unsealed_text(text: str) -> str:
    """Checks a sealed text and returns it without the seal.

    Raises:
        BrokenSeal: ``text`` has no seal, or was changed since it was sealed.
    """
    bare, comment, seal = text.rpartition(_COMMENT)
    if not comment:
        raise BrokenSeal("has no seal: it is damaged, or an earlier version wrote it")
    if seal != f"{digest(bare.encode())}\n":
        raise BrokenSeal("does not match its seal: it was changed after it was written")
    return bare


def _seal_of(content: Mapping[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
