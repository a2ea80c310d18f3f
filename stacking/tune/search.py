"""Which candidates to measure, and in what order: few, and the likeliest first.

One dimension at a time. The micro-batch climbs from the recipe's own for as long as that is faster; then ZeRO stages
and compilation are switched at the best micro-batch; what only saves memory is tried where memory stopped the climb,
cheapest first; then the best setting's own neighbours. A candidate that cannot fit, or that needs no less than one that
ran out of memory, is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from stacking.tune.candidate import DIMENSIONS, Candidate, Setting
from stacking.tune.record import Tried
from stacking.tune.space import Space

_WORSE = 0.95
"""A rung this much below the fastest ends a climb at once."""
_PATIENCE = 2
"""So many rungs in a row, or ways to save memory, may bring nothing."""
_FULL = 3
"""So many ways to save memory in a row may not save enough."""
_PRICE = {"zero_stage": 1.0, "activation_checkpointing": 4.0, "offload": 6.0}
"""What saves memory, by what a step of it costs: some traffic; a third more arithmetic; the link to the host."""


class Trials(Protocol):
    """Who measures."""

    def known(self, candidate: Candidate) -> Tried | None:
        """What an earlier call measured."""

    def measure(self, candidate: Candidate) -> Tried:
        """Measure now.

        Raises:
            Spent: time ran out first.
        """

    def spent(self, measured: int) -> str:
        """Why no further trial may be started after so many; nothing while one may."""


class Spent(Exception):
    """No trial may be started any more; says why."""


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    space: Space
    tried: tuple[Tried, ...]
    """In the order in which they were considered."""
    stopped: str
    """Why the search ended before its end; nothing where it did not."""
    checked_memory: bool
    """Whether what only saves memory was tried, as memory was short."""

    @property
    def measured(self) -> list[Tried]:
        """Fastest first."""
        return sorted((t for t in self.tried if t.result == "measured"), key=lambda t: -t.tokens_per_second)

    def of(self, candidate: Candidate) -> Tried | None:
        return next((tried for tried in self.tried if tried.candidate == candidate), None)


class Search:
    """The search of one stage.

    Args:
        needed: bytes per rank of a candidate.
        limit: bytes that a rank may use; None: not known.
    """

    def __init__(self, space: Space, trials: Trials, needed: Callable[[Candidate], int], limit: int | None) -> None:
        self._space, self._trials, self._needed, self._limit = space, trials, needed, limit
        self._tried: dict[Candidate, Tried] = {}
        self._checked_memory = False

    def run(self) -> Found:
        """Search to the end, or until nothing more may be started."""
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
        return Found(self._space, tuple(self._tried.values()), stopped, self._checked_memory)

    def _best(self) -> Tried | None:
        measured = [tried for tried in self._tried.values() if tried.result == "measured"]
        return max(measured, key=lambda tried: tried.tokens_per_second, default=None)

    def _here(self) -> Candidate:
        """The fastest so far, or the recipe's own."""
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
        """The record of a candidate that is not worth a trial."""
        needed = self._needed(candidate)
        if self._limit is not None and needed > self._limit:
            message = f"needs about {needed / 2**30:.1f} GiB per rank, and {self._limit / 2**30:.1f} can be used"
            return Tried(candidate=candidate, result="pruned", message=message)
        for tried in self._tried.values():
            if tried.result == "out-of-memory" and self._needs_no_less(candidate, tried.candidate):
                message = f"needs no less than {tried.candidate.label}, which ran out of memory"
                return Tried(candidate=candidate, result="pruned", message=message)
        return None

    def _needs_no_less(self, candidate: Candidate, other: Candidate) -> bool:
        """Certain of micro-batches and checkpointing; the memory model says it of ZeRO stages and offload."""
        return (
            candidate.micro_batch >= other.micro_batch
            and candidate.setting.compile == other.setting.compile
            and candidate.setting.activation_checkpointing <= other.setting.activation_checkpointing
            and self._needed(candidate) >= self._needed(other)
        )

    def _climb(self, start: Candidate) -> None:
        """Go through micro-batches from ``start``: upwards while that is faster, else downwards."""
        if self._attempt(start).result == "failed":
            return
        rungs = self._space.micro_batches
        if not self._walk(start, [rung for rung in rungs if rung > start.micro_batch]):
            self._walk(start, [rung for rung in reversed(rungs) if rung < start.micro_batch])

    def _walk(self, start: Candidate, rungs: Iterable[int]) -> bool:
        """Whether a rung was faster than ``start``."""
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
        """Try every value of one dimension where the search stands."""
        here = self._here()
        for value in self._space.values[dimension]:
            if (changed := here.changed(**{dimension: value})) != here:
                self._attempt(changed)

    def _save_memory(self) -> None:
        """Where memory kept the micro-batch from growing: what it takes to get further, cheapest first."""
        best = self._best()
        if best is None:
            if self._attempt(self._space.base).does_not_fit:  # else it fails for another reason
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
                full += result != "pruned"  # which costs nothing
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
        """Look for a setting that fits at any micro-batch, cheapest first."""
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
        """Settings that need less memory than ``setting`` and are otherwise alike, cheapest first."""
        now = self._needed(Candidate(micro_batch=self._space.base.micro_batch, setting=setting))
        values = [self._space.values[name] for name in _PRICE]
        settings = [setting.model_copy(update=dict(zip(_PRICE, chosen, strict=True))) for chosen in product(*values)]
        for saver in sorted(filter(lambda s: s.possible, settings), key=_price):
            if self._needed(Candidate(micro_batch=self._space.base.micro_batch, setting=saver)) < now:
                yield saver


def _price(setting: Setting) -> float:
    return sum(price * DIMENSIONS[name].index(getattr(setting, name)) for name, price in _PRICE.items())
