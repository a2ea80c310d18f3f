"""Decides which candidates to measure and in what order: few, the most promising first.

It varies one dimension at a time. The micro-batch grows from the recipe's own while that is faster; then ZeRO stages
and compilation vary at the best micro-batch; if memory stopped the growth, memory savers are tried, cheapest first;
then the best setting's neighbours. A candidate is not measured if it cannot fit, or if it needs at least as much memory
as one that ran out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from stacking.tune.candidate import DIMENSIONS, Candidate, Setting, Tried
from stacking.tune.space import Space

_WORSE = 0.95
"""A rung slower than the fastest by this ratio ends a climb at once."""
_PATIENCE = 2
"""This many rungs or memory savers in a row may bring no gain."""
_FULL = 3
"""This many memory savers in a row may not save enough."""
_PRICE = {"zero_stage": 1.0, "activation_checkpointing": 4.0, "offload": 6.0}
"""Memory savers by the cost of a step: some traffic; a third more arithmetic; traffic to the host."""


class Trials(Protocol):
    """Measures candidates for the search, within a budget."""

    def known(self, candidate: Candidate) -> Tried | None:
        """Returns an earlier measurement, if there is one."""

    def measure(self, candidate: Candidate) -> Tried:
        """Measures now.

        Raises:
            Spent: the budget ran out first.
        """

    def spent(self, measured: int) -> str:
        """Returns why no further trial may start after this many; empty while one may."""


class Spent(Exception):
    """Raised if no further trial may start; says why."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    space: Space
    tried: tuple[Tried, ...]
    """Candidates in the order in which they were considered."""
    stopped: str
    """Why the search ended early; empty if it did not."""
    checked_memory: bool
    """Whether memory was short, so that memory savers were tried."""

    @property
    def measured(self) -> list[Tried]:
        """Fastest first."""
        return sorted((t for t in self.tried if t.result == "measured"), key=lambda t: -t.tokens_per_second)

    def of(self, candidate: Candidate) -> Tried | None:
        """Returns the record of ``candidate``, if it was considered."""
        return next((tried for tried in self.tried if tried.candidate == candidate), None)


class Search:
    """The search of one stage.

    Args:
        needed: bytes per rank of a candidate.
        limit: bytes that a rank may use; None: unknown.
    """

    def __init__(self, space: Space, trials: Trials, needed: Callable[[Candidate], int], limit: int | None) -> None:
        self._space, self._trials, self._needed, self._limit = space, trials, needed, limit
        self._tried: dict[Candidate, Tried] = {}
        self._checked_memory = False

    def run(self) -> SearchResult:
        """Searches to the end, or until the budget is spent."""
        stopped = ""
        try:
            self._climb(self._space.base)
            for dimension in ("zero_stage", "compile"):
                self._switch(dimension)
            before = self._here()
            self._save_memory()
            if self._here().setting != before.setting:
                self._switch("zero_stage")
            self._climb(self._here())
        except Spent as spent:
            stopped = str(spent)
        return SearchResult(self._space, tuple(self._tried.values()), stopped, self._checked_memory)

    def _best(self) -> Tried | None:
        measured = [tried for tried in self._tried.values() if tried.result == "measured"]
        return max(measured, key=lambda tried: tried.tokens_per_second, default=None)

    def _here(self) -> Candidate:
        """Returns the fastest candidate so far, or the recipe's own."""
        best = self._best()
        return best.candidate if best else self._space.base

    def _attempt(self, candidate: Candidate) -> Tried:
        if candidate not in self._tried:
            self._tried[candidate] = (
                self._pruned(candidate) or self._trials.known(candidate) or self._measure(candidate)
            )
        return self._tried[candidate]

    def _measure(self, candidate: Candidate) -> Tried:
        if reason := self._trials.spent(sum(tried.result != "pruned" for tried in self._tried.values())):
            raise Spent(reason)
        return self._trials.measure(candidate)

    def _pruned(self, candidate: Candidate) -> Tried | None:
        """Returns the record of a candidate that is not worth a trial, else None."""
        needed = self._needed(candidate)
        if self._limit is not None and needed > self._limit:
            message = f"needs about {needed / 2**30:.1f} GiB per rank, but only {self._limit / 2**30:.1f} can be used"
            return Tried(candidate=candidate, result="pruned", message=message)
        for tried in self._tried.values():
            if tried.result == "out-of-memory" and self._needs_no_less(candidate, tried.candidate):
                message = f"needs at least as much memory as {tried.candidate.label}, which ran out"
                return Tried(candidate=candidate, result="pruned", message=message)
        return None

    def _needs_no_less(self, candidate: Candidate, other: Candidate) -> bool:
        """Whether it needs at least as much memory: certain for micro-batches and checkpointing, else estimated."""
        return (
            candidate.micro_batch >= other.micro_batch
            and candidate.setting.compile == other.setting.compile
            and candidate.setting.activation_checkpointing <= other.setting.activation_checkpointing
            and self._needed(candidate) >= self._needed(other)
        )

    def _climb(self, start: Candidate) -> None:
        """Tries micro-batches from ``start``: upwards while that is faster, else downwards."""
        if self._attempt(start).result == "failed":
            return
        rungs = self._space.micro_batches
        if not self._walk(start, [rung for rung in rungs if rung > start.micro_batch]):
            self._walk(start, [rung for rung in reversed(rungs) if rung < start.micro_batch])

    def _walk(self, start: Candidate, rungs: Iterable[int]) -> bool:
        """Tries the rungs in order; returns whether one was faster than ``start``."""
        fastest, found, misses = self._tried[start].tokens_per_second, False, 0
        for rung in rungs:
            tried = self._attempt(start.at(rung))
            if tried.does_not_fit:
                if rung > start.micro_batch:
                    break
                continue
            if tried.tokens_per_second > fastest:
                fastest, found, misses = tried.tokens_per_second, True, 0
                continue
            misses += 1
            if misses == _PATIENCE or tried.tokens_per_second < _WORSE * fastest:
                break
        return found

    def _switch(self, dimension: str) -> None:
        """Tries every value of one dimension at the current best candidate."""
        here = self._here()
        for value in self._space.values[dimension]:
            if (changed := here.changed(**{dimension: value})) != here:
                self._attempt(changed)

    def _save_memory(self) -> None:
        """Tries memory savers, cheapest first, if memory kept the micro-batch from growing."""
        best = self._best()
        if best is None:
            if self._attempt(self._space.base).does_not_fit:  # otherwise it fails for another reason
                self._fit_at_all()
            return
        if not self._stopped_by_memory(best.candidate):
            return
        self._checked_memory, misses, full = True, 0, 0
        for setting in self._savers(best.candidate.setting):
            above = self._above(best.candidate.micro_batch)
            first = Candidate(micro_batch=above[0], setting=setting)
            result = self._attempt(first).result
            if result != "measured":
                full += result != "pruned"  # a pruned candidate costs no time
                if full == _FULL:
                    return
                continue
            self._walk(first, above[1:])
            now = self._best()
            assert now is not None
            misses, full = (misses + 1, full) if now == best else (0, 0)
            best = now
            if misses == _PATIENCE or (misses == 0 and not self._stopped_by_memory(best.candidate)):
                return

    def _fit_at_all(self) -> None:
        """Looks for a setting that fits at any micro-batch, cheapest first."""
        self._checked_memory = True
        for setting in self._savers(self._space.base.setting):
            self._climb(Candidate(micro_batch=self._space.base.micro_batch, setting=setting))
            if self._best():
                return

    def _above(self, micro_batch: int) -> list[int]:
        return [rung for rung in self._space.micro_batches if rung > micro_batch]

    def _stopped_by_memory(self, candidate: Candidate) -> bool:
        above = self._above(candidate.micro_batch)
        return bool(above) and self._attempt(candidate.at(above[0])).does_not_fit

    def _savers(self, setting: Setting) -> Iterator[Setting]:
        """Yields settings that differ from ``setting`` only in needing less memory, cheapest first."""
        now = self._needed(Candidate(micro_batch=self._space.base.micro_batch, setting=setting))
        values = [self._space.values[name] for name in _PRICE]
        settings = [setting.model_copy(update=dict(zip(_PRICE, chosen, strict=True))) for chosen in product(*values)]
        for saver in sorted(filter(lambda s: s.possible, settings), key=_price):
            if self._needed(Candidate(micro_batch=self._space.base.micro_batch, setting=saver)) < now:
                yield saver


def _price(setting: Setting) -> float:
    return sum(price * DIMENSIONS[name].index(getattr(setting, name)) for name, price in _PRICE.items())
