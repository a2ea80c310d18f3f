"""Defines the two kinds of records in the files that one part of the program writes and another reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from stacking.errors import DamagedFile


class Frozen(BaseModel):
    """A record that cannot be changed; unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FrozenPart(BaseModel):
    """The part of a record that its reader needs; other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Record = TypeVar("Record", bound=BaseModel)


def record_of(kind: type[Record], content: Any, path: Path, what: str, remedy: str) -> Record:
    """Returns ``content``, which was read from ``path``, as a record.

    Args:
        what: the record, for the message: ``the JSON of a benchmark``.

    Raises:
        DamagedFile: it is not such a record; the message names the first key that is wrong.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"is not {what} ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        raise DamagedFile(path, problem, remedy) from None
