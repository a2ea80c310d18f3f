"""Ends a search: the two best candidates alternate, so that a drift of the machine affects both alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from stacking.terminal.units import counted
from stacking.tune.candidate import Candidate, Tried
from stacking.tune.search import SearchResult, Spent

ROUNDS = 3
_NEAR = 0.95
"""Candidates within this ratio of the fastest may be as fast."""
_CLEAR = 1.01
"""A candidate that leads by this ratio in every round is faster."""

Again = Callable[[Candidate, int], Tried]
"""Measures a candidate once more, in a given round."""


@dataclass(frozen=True)
class RunoffResult:
    """The winner and the reason."""

    winner: Tried
    runner_up: Tried | None
    ratios: tuple[float, ...]
    """Tokens/s of the search's fastest over those of its challenger, per round."""
    reason: str
    lead: float | None = None
    """Median of the winner's tokens/s over those of the runner-up."""


def decide(found: SearchResult, again: Again) -> RunoffResult:
    """Returns the winner of a search that measured something, after an alternating runoff of the two best.

    A difference that does not appear in every round is noise, and the simpler of the two wins.
    """
    fastest, challenger = found.measured[0], _challenger(found)
    if challenger is None:
        return RunoffResult(fastest, None, (), "nothing else was measured")
    rounds: list[tuple[float, float]] = []
    far_ahead = challenger.tokens_per_second < _NEAR * fastest.tokens_per_second
    try:
        for number in range(1, ROUNDS + 1):
            pair = (fastest, challenger) if number % 2 else (challenger, fastest)
            results = {tried.candidate: again(tried.candidate, number) for tried in pair}
            mine, other = results[fastest.candidate], results[challenger.candidate]
            if mine.result != "measured" or other.result != "measured":
                return _broken(fastest, challenger, mine, other)
            rounds.append((mine.tokens_per_second, other.tokens_per_second))
            if number == 1 and far_ahead and mine.tokens_per_second > _CLEAR * other.tokens_per_second:
                break  # one round is enough for a difference far beyond noise
    except Spent as spent:
        if not rounds:
            return RunoffResult(fastest, challenger, (), f"fastest in the search; no runoff: {spent}")
    return _judge(found, fastest, challenger, [mine / other for mine, other in rounds])


def _challenger(found: SearchResult) -> Tried | None:
    """Returns the simplest candidate that may be as fast as the fastest, else the second fastest."""
    fastest, *others = found.measured
    near = [tried for tried in others if tried.tokens_per_second >= _NEAR * fastest.tokens_per_second]
    simplest = min(near, key=lambda tried: _complexity(found, tried), default=None)
    if simplest and _complexity(found, simplest) < _complexity(found, fastest):
        return simplest
    return others[0] if others else None


def _complexity(found: SearchResult, tried: Tried) -> tuple[int, ...]:
    """Returns a sort key, simplest first: fewest features, fewest changes from the recipe, lowest ZeRO stage."""
    base, own = found.space.base, tried.candidate
    changes = (base.micro_batch != own.micro_batch) + (base.setting.zero_stage != own.setting.zero_stage)
    return own.setting.switches, changes, own.setting.zero_stage, own.micro_batch


def _broken(fastest: Tried, challenger: Tried, mine: Tried, other: Tried) -> RunoffResult:
    """Rejects a candidate that ran once and then failed: it is unreliable."""
    winner, loser = (fastest, challenger) if mine.result == "measured" else (challenger, fastest)
    message = other.message if mine.result == "measured" else mine.message
    return RunoffResult(winner, loser, (), f"{loser.candidate.words} failed in the runoff: {message}")


def _judge(found: SearchResult, fastest: Tried, challenger: Tried, ratios: list[float]) -> RunoffResult:
    words, lead = f"{_words(ratios)} in {counted(len(ratios), 'alternating round')}", median(ratios)
    if min(ratios) > _CLEAR:
        reason = f"faster than {challenger.candidate.words} by {words}"
        return RunoffResult(fastest, challenger, tuple(ratios), reason, lead)
    if max(ratios) < 1 / _CLEAR:
        reason = f"{fastest.candidate.words} was ahead in the search but behind in the runoff: {words}"
        return RunoffResult(challenger, fastest, tuple(ratios), reason, 1 / lead)
    simpler, other = sorted((fastest, challenger), key=lambda tried: _complexity(found, tried))
    ahead = "it led" if simpler is fastest else "that one led"
    reason = f"simpler than {other.candidate.words} and as fast within noise ({ahead} by {words})"
    return RunoffResult(simpler, other, tuple(ratios), reason, lead if simpler is fastest else 1 / lead)


def _words(ratios: list[float]) -> str:
    """Returns a range such as ``+3.1 to +4.0 %``."""
    low, high = (100 * (ratio - 1) for ratio in (min(ratios), max(ratios)))
    return f"{low:+.1f} %" if f"{low:.1f}" == f"{high:.1f}" else f"{low:+.1f} to {high:+.1f} %"
