"""Holds a configuration under examination: its future content, and a row for every key that changes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from stacking.config.reading import shown
from stacking.deepspeed_config.facts import COUNT
from stacking.deepspeed_config.findings import KeyRow, Verdict
from stacking.deepspeed_config.names import named
from stacking.deepspeed_config.values import coerced, is_a

Json = dict[str, Any]
MISSING = object()


def get(content: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """Returns the value at a dotted path, or ``default``; a key may itself have dots."""
    if path in content:
        return content[path]
    head, dot, rest = path.partition(".")
    while dot:
        if isinstance(inner := content.get(head), Mapping) and (found := get(inner, rest, MISSING)) is not MISSING:
            return found
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return default


def put(content: Json, path: str, value: Any) -> None:
    """Sets a dotted path, creating missing sections."""
    *sections, name = path.split(".")
    for section in sections:
        if not isinstance(content.get(section), dict):
            content[section] = {}
        content = content[section]
    content[name] = value


def leaves(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every dotted key without keys of its own, with its value; an empty section counts as one."""
    for key, value in content.items():
        path = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from leaves(value, path)
        else:
            yield path, value


def is_off(value: Any) -> bool:
    """Whether a section or flag is off."""
    if isinstance(value, Mapping):
        return str(value.get("enabled", True)).lower() in ("false", "0") or not value
    return value in (False, None, "none") or str(value).lower() == "false"


class Examination:
    """Modifies a copy of a user's configuration and records each change.

    Args:
        content: the user's configuration; not modified.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.original: Json = copy.deepcopy(dict(content))
        self.content: Json = copy.deepcopy(dict(content))
        self.rows: list[KeyRow] = []
        self.names: dict[str, str] = {}
        """The user's name of each key that was renamed."""

    def get(self, path: str, default: Any = None) -> Any:
        """Returns the current value at a dotted path."""
        return get(self.content, path, default)

    def note(
        self, path: str, verdict: Verdict, problem: str, remedy: str, refused: bool = False, done: str = ""
    ) -> None:
        """Records a row for one key, under the name that the user gave it."""
        name = self.user_name(path)
        value = get(self.original, name, self.get(path, MISSING))
        self.rows.append(KeyRow(name, _said(value), verdict, problem, remedy, refused, done))

    def drop(self, path: str, problem: str, remedy: str = "remove it", *, refused: bool = False) -> None:
        """Removes a key that has no effect here or, with ``refused``, cannot be supported."""
        verdict: Verdict = "impossible" if refused else "without meaning here"
        self.note(path, verdict, problem, remedy, refused)
        self.remove(path)

    def replace(self, path: str, value: Any, problem: str, remedy: str, *, refused: bool = False) -> None:
        """Changes the value of a key."""
        self.note(path, "impossible" if refused else "translated", problem, remedy, refused)
        self.put(path, value)

    def correct(self, path: str, value: Any, problem: str, question: str, done: str) -> None:
        """Changes a value whose meaning is clear, but that a plan does not guess."""
        self.note(path, "translated", problem, question, refused=True, done=done)
        self.put(path, value)

    def convert(self, path: str, kind: str, *, positive: bool = False) -> None:
        """Converts a value given as text, or in a list of its own, to the kind of its key; rejects what cannot be."""
        value = self.get(path)
        read = value if is_a(kind, value) else coerced(kind, value)
        if read is None or (positive and not read):
            remedy = f"give {kind} greater than 0" if positive else f"give {kind}"
            self.drop(path, f"is {shown(value)}", remedy, refused=True)
        elif not is_a(kind, value):
            self.replace(path, read, f"is {shown(value)}", f"read as {shown(read)}")
        elif kind == COUNT:
            self.put(path, int(value))

    def rename(self, path: str, new: str, problem: str, *, refused: bool = False) -> None:
        """Moves a value to another key, unless that one is taken; ``auto`` there asks for the value."""
        value = self.get(path)
        if self.get(new, MISSING) not in (MISSING, "auto"):
            self.drop(path, f"{problem}, and {new} is given too", f"{new} is used", refused=False)
            return
        remedy = f"did you mean {named(path, new)!r}?" if refused else f"read as {new}"
        self.note(path, "translated", problem, remedy, refused, done=f"read as {new}")
        self.remove(path)
        self.put(new, value)
        self.names[new] = self.user_name(path)

    def put(self, path: str, value: Any) -> None:
        """Sets a dotted path, creating missing sections."""
        put(self.content, path, value)

    def remove(self, path: str) -> None:
        """Removes a dotted path."""
        *sections, name = path.split(".")
        holder = get(self.content, ".".join(sections)) if sections else self.content
        if isinstance(holder, dict):
            holder.pop(name, None)

    def has_problem(self, path: str) -> bool:
        """Whether a key was already reported as wrong."""
        name = self.user_name(path)
        return any(row.refused and row.key == name for row in self.rows)

    def user_name(self, path: str) -> str:
        """Returns the user's name for what is now at ``path``."""
        for new, old in self.names.items():
            if path == new or path.startswith(f"{new}."):
                return old + path[len(new) :]
        return path


def _said(value: Any) -> str:
    if value is MISSING:
        return ""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else shown(value)
