"""Computes what each arm of a comparison needed to reach a loss, relative to the baseline of the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stacking.compare.arm import Arm
from stacking.compare.curve import MEASURES, Measure, Point, Spread, cost_at, crossing, loss_at, round_levels
from stacking.compare.step_times import StepTime


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One settled run: one seed of one arm."""

    seed: int
    curve: tuple[Point, ...]
    """Empty for a run that diverged: whatever it reached before, the schedule does not work with this seed."""
    diverged: str | None = None
    """What training said when it diverged."""

    @property
    def final(self) -> Point | None:
        """The last held-out evaluation, at the end of training."""
        return self.curve[-1] if self.curve else None


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What one run had cost when it first fell to a loss."""

    loss: float
    layers: int
    """The depth that reached it."""
    cost: dict[Measure, float | None]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One loss, and how an arm reached it; lists have one entry per seed."""

    loss: tuple[float, ...]
    """Equal for all seeds, except at the baseline's final loss."""
    reached: tuple[Reached | None, ...]
    speedup: dict[Measure, Spread]
    """The baseline's cost over the arm's."""


@dataclass(frozen=True, kw_only=True)
class EqualTime:
    """The losses of an arm and the baseline after the same charged wall-clock: where the first of the two ends."""

    seconds: float
    loss: float
    baseline_loss: float


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """Holds the numbers of one arm, relative to the baseline."""

    arm: Arm
    runs: tuple[Trained, ...]
    levels: tuple[Level, ...]
    """At the comparison's round losses, highest first."""
    final: Level
    """At the baseline's final loss."""
    equal_time: tuple[EqualTime | None, ...]
    """Per seed; None where one of the two diverged."""

    @property
    def final_loss(self) -> Spread:
        """The held-out loss at the end of training."""
        return Spread(tuple(run.final.loss if run.final else None for run in self.runs))

    def total(self, measure: Measure) -> Spread:
        """Returns the cost of the whole training."""
        return Spread(tuple(getattr(run.final, measure) if run.final else None for run in self.runs))

    def as_dict(self) -> dict[str, Any]:
        """Returns the arm's part of ``compare.json``."""
        return {
            "name": self.arm.name,
            "recipe": self.arm.source,
            "layers": [stage.layers for stage in self.arm.plan.stages],
            "steps": [stage.steps for stage in self.arm.plan.stages],
            "peak_learning_rate": self.arm.peak,
            **{f"speedup_{measure}": self.final.speedup[measure].as_dict() for measure in MEASURES},
            "final_loss": self.final_loss.as_dict(),
            "total": {measure: self.total(measure).as_dict() for measure in MEASURES},
            "at_the_baselines_final_loss": _level_as_dict(self.final),
            "levels": [_level_as_dict(level) for level in self.levels],
            "equal_time": [asdict(equal) if equal else None for equal in self.equal_time],
            "runs": [
                {"seed": run.seed, "diverged": run.diverged, "curve": [asdict(point) for point in run.curve]}
                for run in self.runs
            ],
        }


def _level_as_dict(level: Level) -> dict[str, Any]:
    return {
        "loss": list(level.loss),
        "reached": [asdict(reached) if reached else None for reached in level.reached],
        **{f"speedup_{measure}": level.speedup[measure].as_dict() for measure in MEASURES},
    }


def compare_runs(arms: Sequence[tuple[Arm, Sequence[Trained]]]) -> list[ArmResult]:
    """Compares every arm with the first, the baseline, seed by seed. All arms have the same seeds, at least one."""
    baseline = arms[0][1]
    levels = comparable_levels([runs for _, runs in arms])
    return [_arm_result(arm, runs, baseline, levels) for arm, runs in arms]


def comparable_levels(arms: Sequence[Sequence[Trained]]) -> list[float]:
    """Returns round losses that all runs begin above and all baselines fall to, highest first."""
    begins = [run.curve[0].loss for runs in arms for run in runs if run.curve]
    ends = [run.final.loss for run in arms[0] if run.final]
    return round_levels(min(begins), max(ends)) if ends else []


def _arm_result(arm: Arm, runs: Sequence[Trained], baseline: Sequence[Trained], levels: Sequence[float]) -> ArmResult:
    # A baseline that diverged has no final loss: nothing is at or below minus infinity.
    finals = [run.final.loss if run.final else float("-inf") for run in baseline]
    return ArmResult(
        arm=arm,
        runs=tuple(runs),
        levels=tuple(_level(runs, baseline, [loss] * len(runs)) for loss in levels),
        final=_level(runs, baseline, finals),
        equal_time=tuple(_equal_time(run, base) for run, base in zip(runs, baseline, strict=True)),
    )


def _level(runs: Sequence[Trained], baseline: Sequence[Trained], losses: Sequence[float]) -> Level:
    mine = [_reached(run, loss) for run, loss in zip(runs, losses, strict=True)]
    theirs = [_reached(run, loss) for run, loss in zip(baseline, losses, strict=True)]
    ratios = {
        measure: Spread(tuple(_ratio(b, m, measure) for b, m in zip(theirs, mine, strict=True))) for measure in MEASURES
    }
    return Level(loss=tuple(losses), reached=tuple(mine), speedup=ratios)


def _reached(run: Trained, loss: float) -> Reached | None:
    place = crossing([point.loss for point in run.curve], loss)
    if place is None:
        return None
    cost = {measure: cost_at(run.curve, place, measure) for measure in MEASURES}
    return Reached(loss=loss, layers=run.curve[place.index].layers, cost=cost)


def _ratio(baseline: Reached | None, arm: Reached | None, measure: Measure) -> float | None:
    if baseline is None or arm is None:
        return None
    theirs, mine = baseline.cost[measure], arm.cost[measure]
    return theirs / mine if theirs is not None and mine else None


def _equal_time(run: Trained, baseline: Trained) -> EqualTime | None:
    if run.final is None or baseline.final is None:
        return None
    seconds = min(run.final.wall, baseline.final.wall)
    mine, theirs = loss_at(run.curve, seconds), loss_at(baseline.curve, seconds)
    if mine is None or theirs is None:  # one of them ended before the other was first evaluated
        return None
    return EqualTime(seconds=seconds, loss=mine, baseline_loss=theirs)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole comparison, finished or not."""

    arms: tuple[ArmResult, ...]
    """The baseline first."""
    seeds: tuple[int, ...]
    """The seeds that every arm has finished; all numbers are about these."""
    pending: tuple[str, ...]
    """Runs that are not finished: ``late-2-12, seed 1``."""
    commands: tuple[str, ...]
    """The command of the comparison, then one for every run by itself."""
    rates: Mapping[float, float | None]
    """The baseline's final loss at every learning rate of the search, None where it diverged; empty: no search."""
    step_times: tuple[StepTime, ...]
    """Empty: not measured yet."""
    warnings: tuple[str, ...]
    """What limits the comparison."""

    @property
    def baseline(self) -> ArmResult:
        """The result of the first arm."""
        return self.arms[0]

    @property
    def levels(self) -> list[float]:
        """The round losses at which the arms are compared, highest first."""
        return [level.loss[0] for level in self.baseline.levels]

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of ``compare.json``."""
        return {
            "format": 1,
            "kind": "compare",
            "baseline": self.baseline.arm.name,
            "seeds": list(self.seeds),
            "pending": list(self.pending),
            "levels": self.levels,
            "arms": [arm.as_dict() for arm in self.arms],
            "tuning": [{"rate": rate, "loss": loss} for rate, loss in self.rates.items()],
            "step_times": [{**time.model_dump(mode="json"), "seconds": time.seconds} for time in self.step_times],
            "warnings": list(self.warnings),
            "commands": list(self.commands),
        }
