"""A FAKE machine for the search: speeds and memory are formulas, nothing is started and no time passes."""

from __future__ import annotations

from collections.abc import Callable
from math import log2

from stacking.tune.candidate import DIMENSIONS, Candidate, Setting, Tried
from stacking.tune.search import Search, SearchResult, Spent
from stacking.tune.space import Space

BASE = Candidate(micro_batch=4, setting=Setting(zero_stage=2))
SPACE = Space(BASE, (1, 2, 4, 8, 16, 32, 64), DIMENSIONS, {})
Speed = Callable[[Candidate], float]


def peaked(best: int, **gains: float) -> Speed:
    """Tokens/s that fall by a tenth per doubling from ``best``, and rise with each option that a setting enables.

    Args:
        gains: ``zero_1=0.1``, ``compile=0.2``, ``checkpointing=-0.3``, ``offload=-0.5``: a share of the speed.
    """

    def speed(candidate: Candidate) -> float:
        setting = candidate.setting
        gain = gains.get(f"zero_{setting.zero_stage}", 0.0) + setting.compile * gains.get("compile", -0.2)
        gain += setting.activation_checkpointing * gains.get("checkpointing", -0.3)
        gain += DIMENSIONS["offload"].index(setting.offload) * gains.get("offload", -0.4)
        return max(1.0, 1000.0 * (1 - 0.1 * abs(log2(candidate.micro_batch / best))) * (1 + gain))

    return speed


def needed(candidate: Candidate) -> int:
    """Bytes: grow with the micro-batch, less with checkpointing, and fall with the ZeRO stage and offload."""
    setting = candidate.setting
    state = (400, 300, 250, 150)[setting.zero_stage] // (1 + DIMENSIONS["offload"].index(setting.offload))
    return state + candidate.micro_batch * (20 if setting.activation_checkpointing else 100)


class FakeTrials:
    """Measures by formula and counts its trials.

    Args:
        real_limit: bytes above which a trial runs out of memory; the search is not told.
        broken: candidates whose trials fail.
        most: trials after which the search must end.
    """

    def __init__(
        self,
        speed: Speed,
        real_limit: int | None = None,
        broken: Callable[[Candidate], bool] = lambda candidate: False,
        most: int | None = None,
    ) -> None:
        self.speed, self.real_limit, self.broken, self.most = speed, real_limit, broken, most
        self.measured: list[Candidate] = []
        self.remembered: dict[Candidate, Tried] = {}

    def known(self, candidate: Candidate) -> Tried | None:
        return self.remembered.get(candidate)

    def measure(self, candidate: Candidate) -> Tried:
        assert candidate not in self.measured, f"{candidate.label} is measured twice"
        self.measured.append(candidate)
        if self.broken(candidate):
            return Tried(candidate=candidate, result="failed", message="broken")
        if self.real_limit is not None and needed(candidate) > self.real_limit:
            return Tried(candidate=candidate, result="out-of-memory", message="no memory left")
        return measured(candidate, self.speed(candidate))

    def spent(self, measured: int) -> str:
        return "enough" if self.most is not None and measured >= self.most else ""


def measured(candidate: Candidate, speed: float) -> Tried:
    """The record of a trial."""
    return Tried(
        candidate=candidate,
        result="measured",
        tokens_per_second=speed,
        update_seconds=1000 / speed,
        spread=0.02,
        memory_bytes=needed(candidate) << 20,
    )


def search(trials: FakeTrials, space: Space = SPACE, limit: int | None = None) -> SearchResult:
    return Search(space, trials, needed, limit).run()


class FakeRounds:
    """Speeds that the rounds of a final find, candidate by candidate; 0: the trial fails. Ends with the last one."""

    def __init__(self, speeds: dict[Candidate, list[float]]) -> None:
        self.speeds = {candidate: list(values) for candidate, values in speeds.items()}
        self.order: list[tuple[int, Candidate]] = []

    def __call__(self, candidate: Candidate, number: int) -> Tried:
        if not self.speeds[candidate]:
            raise Spent("the time is over")
        self.order.append((number, candidate))
        speed = self.speeds[candidate].pop(0)
        return measured(candidate, speed) if speed else Tried(candidate=candidate, result="failed", message="broken")
