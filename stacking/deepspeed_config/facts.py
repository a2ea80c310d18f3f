"""Reads ``facts.json``, which lists what DeepSpeed accepts, so that checks need not import it.

`tools/deepspeed_facts.py` writes the file from the installed version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLAG, COUNT, NUMBER, TEXT, OTHER = "true or false", "a whole number", "a number", "text", ""
FACTS_FILE = Path(__file__).parent / "facts.json"
_FACTS: Mapping[str, Any] = json.loads(FACTS_FILE.read_text(encoding="utf-8"))

VERSION: str = _FACTS["deepspeed"]
TOP: Mapping[str, Mapping[str, Any]] = _FACTS["top"]
"""Every top-level key: its ``kind``, and ``null`` if DeepSpeed accepts null."""
SECTIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = _FACTS["sections"]
"""By dotted section: its keys, described as in `TOP`."""
TITLES: Mapping[str, str] = _FACTS["titles"]
"""By class name of DeepSpeed's model of a section: the dotted section."""
REMOVED_ZERO: frozenset[str] = frozenset(_FACTS["removed_zero"])
OPTIMIZER_PARAMETERS: Mapping[str, frozenset[str]] = {
    name: frozenset(keys) for name, keys in _FACTS["optimizers"].items()
}
"""By class that DeepSpeed builds for Adam: the parameters that it accepts."""
SCHEDULER_PARAMETERS: Mapping[str, frozenset[str]] = {
    name: frozenset(keys) for name, keys in _FACTS["schedulers"].items()
}
"""By class of learning-rate schedule: its parameters."""
