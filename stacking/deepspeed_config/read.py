"""Reads a configuration as DeepSpeed does: HJSON, a superset of JSON, without duplicate keys."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stacking.config.reading import keys_once, parse_json, read_text, shown
from stacking.errors import UserError

_DEEPEST = 64
_TEMPLATE = re.compile(r"\{\{ *\w+ *\}\}|\$\{[A-Za-z_]\w*\}|\$[A-Za-z_]\w*|<[A-Za-z_]\w*>")
"""Placeholders of template engines and shell scripts."""
_WORD = re.compile(r'"[ \t]*:[ \t]*([A-Z][A-Z0-9_]+)[ \t]*,?[ \t]*$', re.MULTILINE)
"""A bare word in capitals where JSON has a value: a script was to replace it."""


def read_config(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON or HJSON file.

    Raises:
        UserError: the file is missing, too large, neither JSON nor HJSON (names the line), not an object, nested too
            deeply, or gives a key twice.
    """
    text = read_text(path)
    try:
        value = parse_json(path, text)
    except json.JSONDecodeError as error:
        value = _hjson(path, text, error)
    if not isinstance(value, dict):
        raise UserError(path, f"is {shown(value)}, not an object", "start it with '{'")
    _check_depth(path, value)
    return value


def _hjson(path: Path, text: str, strict: json.JSONDecodeError) -> Any:
    import hjson  # DeepSpeed's own dependency; only files that are not plain JSON need it

    try:
        value = hjson.loads(text, object_pairs_hook=keys_once(path))
    except hjson.HjsonDecodeError as error:
        template = _TEMPLATE.search(text) or _WORD.search(text)
        if template:
            raise _unfilled(path, text[: template.end()].count("\n") + 1, template[template.lastindex or 0]) from None
        plain = not re.search(r"//|#|/\*", text)
        line, message = (strict.lineno, strict.msg) if plain else (error.lineno or strict.lineno, error.msg)
        place, problem = f"{path}: line {line}", f"is neither JSON nor HJSON ({message})"
        raise UserError(place, problem, "check commas, quotes and brackets") from None
    except RecursionError:
        raise UserError(path, "is nested too deeply", "check its brackets") from None
    placeholder = _placeholder(value, frozenset(_WORD.findall(text)))
    if placeholder:
        raise _unfilled(path, text[: text.find(placeholder)].count("\n") + 1, placeholder)
    return value


def _unfilled(path: Path, line: int, placeholder: str) -> UserError:
    problem = f"holds the placeholder {placeholder!r}: it is a template, not a configuration"
    return UserError(f"{path}: line {line}", problem, "fill it in")


def _placeholder(value: Any, words: frozenset[str]) -> str:
    """Finds the first placeholder that a template engine, or a script that knows ``words``, should have replaced."""
    if isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, list):
        parts = value
    elif not isinstance(value, str):
        return ""
    elif value.rstrip(", ") in words:
        return value.rstrip(", ")
    else:
        match = _TEMPLATE.match(value)
        return match[0] if match else ""
    return next((found for part in parts if (found := _placeholder(part, words))), "")


def _check_depth(path: Path, value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise UserError(path, "is nested too deeply", "check its brackets")
        holders = (item for item in level if isinstance(item, (dict, list)))
        level = [inner for holder in holders for inner in (holder.values() if isinstance(holder, dict) else holder)]
