"""The two kinds of records in the files that one part of the program writes and another reads."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A record that cannot be changed; unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FrozenPart(BaseModel):
    """The part of a record that its reader needs; other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")
