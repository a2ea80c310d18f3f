"""Defines the results of an examination: one row per key, and one error for all contradictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

from stacking.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

Verdict = Literal["kept", "moved to the recipe", "translated", "without meaning here", "impossible"]
_LISTED = 40
"""Maximum number of contradictions to list; a file with more is not a DeepSpeed configuration."""


@dataclass(frozen=True)
class KeyRow:
    """The treatment of one key."""

    key: str
    """Dotted, as in the user's file."""
    said: str
    """The value in the user's file."""
    verdict: Verdict
    problem: str = ""
    """Why it cannot stay as it is."""
    remedy: str = ""
    """What replaces it, or what to do."""
    refused: bool = False
    """Whether a plan stops at it; `stacking adopt` does as ``remedy`` says."""
    done: str = ""
    """What `stacking adopt` did, where ``remedy`` is a question."""


class FinalConfig(NamedTuple):
    """The final configuration of one stage."""

    where: str
    """Its source file or key, for errors."""
    stage: str
    config: dict[str, Any]
    ranks: int


class ConfigConflict(UserError):
    """All contradictions between configurations and recipe, in one error.

    Args:
        errors: one per contradiction; at least one.
        command: a command that resolves all of them; empty: there is none.
        finals: what the stages would give to DeepSpeed without the keys at fault, where that is decided.
    """

    def __init__(self, errors: Sequence[UserError], command: str, finals: Sequence[FinalConfig] = ()) -> None:
        first = errors[0]
        super().__init__(first.where, first.problem, first.remedy)
        self.errors, self.command, self.finals = tuple(errors), command, tuple(finals)
        self.args = (self._text(),)

    def _text(self) -> str:
        settle = f"settle it with: {self.command}" if self.command else ""
        if len(self.errors) == 1:
            return f"{self.errors[0]}" + (f" ({settle})" if settle else "")
        listed = self.errors[:_LISTED]
        rows = [(error.where.split(": ", 1)[-1], error.problem, error.remedy) for error in listed]
        widths = [min(60, max(len(row[i]) for row in rows)) for i in (0, 1)]
        lines = [f"  {key:<{widths[0]}}  {problem:<{widths[1]}}  {remedy}" for key, problem, remedy in rows]
        if len(self.errors) > len(listed):
            lines.append(f"  ... and {len(self.errors) - len(listed):,} more")
        files = ", ".join(dict.fromkeys(error.where.split(": ", 1)[0] for error in self.errors))
        head = f"{files}: {len(self.errors):,} things do not fit"
        return "\n".join([head, *lines, *([f"  {settle}"] if settle else [])])


class Findings:
    """Collects errors, so that a user sees all of them at once."""

    def __init__(self) -> None:
        self.errors: list[UserError] = []
        self._told: set[str] = set()

    def add(self, error: UserError) -> None:
        """Adds an error, unless another stage already reported the same one."""
        if str(error) not in self._told:
            self._told.add(str(error))
            self.errors.append(error)

    def extend(self, errors: Iterable[UserError]) -> None:
        """Adds several errors."""
        for error in errors:
            self.add(error)

    def attempt(self, decide: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Returns what ``decide`` returns; None if it raises an error, which is added."""
        try:
            return decide(*args, **kwargs)
        except UserError as error:
            self.add(error)
            return None

    def raise_if_any(self, command: str = "", finals: Callable[[], Sequence[FinalConfig]] = tuple) -> None:
        """Raises the collected errors.

        Args:
            finals: called if there are any; see `ConfigConflict`.

        Raises:
            ConfigConflict: there is at least one.
        """
        if self.errors:
            raise ConfigConflict(self.errors, command, finals())
