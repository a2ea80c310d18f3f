"""Searches the baseline's learning rate: each candidate trains on the whole budget, and the lowest final loss wins.

A candidate's run lies in ``OUT/tuning/RATE/`` and the winner's becomes the baseline's first seed, so the search costs
one run per candidate that lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stacking.compare.arm import Arm, read_arm
from stacking.compare.folder import CompareFolder
from stacking.compare.rebuilt import curve_of
from stacking.compare.work import Task, check_recipes
from stacking.config.recipe import Recipe
from stacking.errors import DamagedFile, StackingError, UserError
from stacking.report.run import read_run
from stacking.run.folder import RunFolder
from stacking.run.rewind import divergence
from stacking.storage.files import disk_errors, fsync, read_sealed, write_sealed

FIRST_SEED = 0
"""The seed of the search."""
_RATES: dict[str, tuple[str, ...]] = {
    "stages": (),
    "warmup-stable-decay": ("peak", "final"),
    "WarmupLR": ("warmup_max_lr", "warmup_min_lr"),
    "WarmupDecayLR": ("warmup_max_lr", "warmup_min_lr"),
    "WarmupCosineLR": ("peak",),
    "OneCycle": ("cycle_max_lr", "cycle_min_lr"),
}
"""The keys of each kind of schedule that are learning rates."""
_RATES_OF_A_STAGE = ("start", "peak", "end")


@dataclass(frozen=True)
class TunedBaseline:
    """The result of a search."""

    losses: dict[float, float | None]
    """The baseline's final held-out loss by peak learning rate; None: it diverged."""
    winner: float

    @property
    def warning(self) -> str | None:
        """A warning if a rate outside the candidates may be better."""
        rates = sorted(self.losses)
        if self.winner not in (rates[0], rates[-1]) or len(rates) == 1:
            return None
        end, direction = ("lowest", "lower") if self.winner == rates[0] else ("highest", "higher")
        return f"the baseline's best learning rate, {self.winner:g}, is the {end} of the search; try {direction} ones"


def rate_overrides(recipe: Recipe, before: float, peak: float) -> list[str]:
    """Returns the ``KEY=VALUE`` that change the highest learning rate of ``recipe`` from ``before`` to ``peak``."""
    found = {f"schedule.{key}": getattr(recipe.schedule, key) for key in _RATES[recipe.schedule.kind]}
    for index, stage in enumerate(recipe.stages):
        if stage.learning_rate is not None:
            rates = {key: getattr(stage.learning_rate, key) for key in _RATES_OF_A_STAGE}
            found |= {f"stages[{index}].learning_rate.{key}": rate for key, rate in rates.items()}
    return [f"{key}={peak if rate == before else rate * peak / before!r}" for key, rate in found.items() if rate]


def at_rate(arm: Arm, rate: float) -> Arm:
    """Returns the arm with all its learning rates in proportion, so that the highest is ``rate``."""
    changes = rate_overrides(arm.recipe(FIRST_SEED), arm.peak, rate)
    return read_arm(arm.source, arm.data, (*arm.overrides, *changes))


def candidates(folder: CompareFolder, baseline: Arm, rates: Sequence[float]) -> dict[float, Task]:
    """Returns the run of the baseline at each learning rate, by the rate."""
    tasks = {}
    for rate in rates:
        run = RunFolder(folder.path / "tuning" / f"{rate:g}")
        tasks[rate] = Task(f"{baseline.name} at {rate:g}", at_rate(baseline, rate), FIRST_SEED, run)
    return tasks


def search(
    folder: CompareFolder, baseline: Arm, tasks: Mapping[float, Task], do: Callable[[Task], None]
) -> TunedBaseline | None:
    """Trains the baseline at every rate; reuses a finished search.

    Args:
        do: trains a run or submits it, or returns if that is done.

    Returns:
        The result; None while submitted runs are not finished.

    Raises:
        UserError: the folder holds a search over other rates, or the baseline was trained without one.
        StackingError: training diverged at every rate.
    """
    tuned, target = read_tuned(folder), folder.run(baseline.name, FIRST_SEED)
    if tuned is None:
        if target.path.exists():
            problem = "was trained without a search of its learning rate"
            raise UserError(target.path, problem, "omit --tune-baseline, or choose another --out")
        check_recipes(list(tasks.values()))
        for task in tasks.values():
            do(task)
        if not all(task.is_settled for task in tasks.values()):
            return None
        tuned = _judged(tasks)
        facts = [{"rate": rate, "loss": loss} for rate, loss in tuned.losses.items()]
        write_sealed(folder.tuning, {"baseline": baseline.name, "winner": tuned.winner, "candidates": facts})
    if set(tuned.losses) != set(tasks):
        problem = f"holds a search over {', '.join(f'{rate:g}' for rate in sorted(tuned.losses))}"
        raise UserError(folder.tuning, problem, "give --tune-baseline the same rates, or choose another --out")
    _adopt(tasks[tuned.winner].run, target)
    return tuned


def _judged(tasks: Mapping[float, Task]) -> TunedBaseline:
    losses = {rate: _final_loss(task.run) for rate, task in tasks.items()}
    sound = {rate: loss for rate, loss in losses.items() if loss is not None}
    if not sound:
        raise StackingError("the baseline diverged at every rate of --tune-baseline; give lower ones")
    return TunedBaseline(losses, min(sound, key=lambda rate: sound[rate]))


def read_tuned(folder: CompareFolder) -> TunedBaseline | None:
    """Returns the result of a finished search; None: there is none.

    Raises:
        DamagedFile: the file was changed.
    """
    if not folder.tuning.exists():
        return None
    content = read_sealed(folder.tuning)
    try:
        losses = {float(item["rate"]): item["loss"] for item in content["candidates"]}
        return TunedBaseline(losses, float(content["winner"]))
    except (KeyError, TypeError, ValueError):
        raise DamagedFile(folder.tuning, "does not hold a search", "restore it, or choose another --out") from None


def _adopt(candidate: RunFolder, target: RunFolder) -> None:
    """Makes the winner's run the baseline's first seed, unless it is already."""
    if not candidate.path.exists():
        return
    with disk_errors(target.path):
        target.path.parent.mkdir(parents=True, exist_ok=True)
        os.rename(candidate.path, target.path)
        fsync(target.path.parent)


def _final_loss(folder: RunFolder) -> float | None:
    if divergence(folder.journal.events()):
        return None
    curve = curve_of(read_run(folder.path))
    return curve[-1].loss if curve else None
