"""Measures the seconds of an update of every stage in a comparison, all stages in turns in one process.

Stages that train alike (same model, batch, ranks, precision and DeepSpeed configuration) share one measurement, so that
an arm's last stage and the baseline cannot differ by noise.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from stacking.bench.trial import Trial, wait_for
from stacking.compare.folder import CompareFolder
from stacking.errors import DamagedFile, StackingError
from stacking.launch.job import Job, Launcher
from stacking.launch.outcome import describe
from stacking.planning.plan import Plan, StagePlan
from stacking.storage.files import disk_errors, read_sealed, write_atomically, write_sealed
from stacking.storage.frozen import Frozen

ROUNDS = 7
"""Turns of every stage; in every other round they run in reverse order."""
_WARMUP = 3
"""Untimed updates, which absorb compilation and first allocations."""
_LEAST_SECONDS = 1.0
"""A turn lasts at least this long."""
_IRRELEVANT = {
    "index", "name", "steps", "first_step", "first_sample", "last_sample", "tokens", "epochs", "learning_rate",
    "growth", "ds_config", "ds_config_digest", "flops", "resources", "until",
}  # fmt: skip
"""What a stage may differ in while its updates take equally long; of ``ds_config``, the learning rate alone."""


class Turns(Frozen):
    """Defines the file that the worker reads: one trial per stage, all with the same number of ranks."""

    trials: tuple[Trial, ...]
    rounds: int
    least_seconds: float


class StepTime(Frozen):
    """The measurement of one kind of stage."""

    variant: str
    layers: int
    ranks: int
    rounds: tuple[float, ...]
    """Median seconds of an update, per round."""

    @property
    def seconds(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)


def kind_of(plan: Plan, stage: StagePlan) -> str:
    """Returns a key that stages share if their updates take equally long."""
    facts = stage.model_dump(mode="json", exclude=_IRRELEVANT)
    model = plan.model.with_layers(stage.layers).model_dump(mode="json")
    config = {key: value for key, value in stage.ds_config.items() if key != "scheduler"}
    optimizer = config.get("optimizer", {})
    parameters = {key: value for key, value in optimizer.get("params", {}).items() if key != "lr"}
    config["optimizer"] = {**optimizer, "params": parameters}
    return json.dumps({**facts, "model": model, "ds_config": config}, sort_keys=True)


def read_step_times(folder: CompareFolder) -> dict[str, StepTime]:
    """Returns what was measured, by kind of stage; empty before the first measurement.

    Raises:
        DamagedFile: the file was changed.
    """
    if not folder.step_times.exists():
        return {}
    try:
        return {item["kind"]: StepTime(**item["time"]) for item in read_sealed(folder.step_times)["measured"]}
    except (ValidationError, KeyError, TypeError):
        raise DamagedFile(folder.step_times, "does not hold step times", "remove it to measure again") from None


def measure_step_times(
    folder: CompareFolder, plans: Sequence[Plan], samples: Path, launcher: Launcher, tell: Callable[[str], None]
) -> dict[str, StepTime]:
    """Returns the step times of all stages of ``plans``, measuring all of them again if one is missing.

    Args:
        samples: the sample index of the train split, which all plans share.
    """
    stages = {kind_of(plan, stage): (plan, stage.index) for plan in plans for stage in plan.stages}
    known = read_step_times(folder)
    if stages.keys() <= known.keys():
        return known
    measured: dict[str, StepTime] = {}
    for ranks in sorted({plan.stages[index].ranks for plan, index in stages.values()}):
        kinds = {kind: at for kind, at in stages.items() if at[0].stages[at[1]].ranks == ranks}
        depths = sorted({plan.stages[index].layers for plan, index in kinds.values()})
        tell(f"measuring the updates of {', '.join(map(str, depths))} layers in turns")
        trials = [
            Trial(plan=plan, stage=index, warmup=_WARMUP, steps=2, samples=str(samples))
            for plan, index in kinds.values()
        ]
        turns = Turns(trials=tuple(trials), rounds=ROUNDS, least_seconds=_LEAST_SECONDS)
        rounds = _measure(turns, folder.path / "step-times" / f"{ranks}-ranks", launcher)
        for kind, trial, seconds in zip(kinds, trials, rounds, strict=True):
            measured[kind] = StepTime(
                variant=trial.plan.model.variant, layers=trial.planned.layers, ranks=ranks, rounds=tuple(seconds)
            )
    content = [{"kind": kind, "time": time.model_dump(mode="json")} for kind, time in measured.items()]
    write_sealed(folder.step_times, {"measured": content})
    return measured


def step_seconds(plan: Plan, measured: Mapping[str, StepTime]) -> list[float] | None:
    """Returns the seconds of an update of each stage; None if one was not measured."""
    kinds = [kind_of(plan, stage) for stage in plan.stages]
    return [measured[kind].seconds for kind in kinds] if set(kinds) <= measured.keys() else None


TURNS, ROUND_TIMES = "turns.json", "rounds.json"


def _measure(turns: Turns, place: Path, launcher: Launcher) -> list[list[float]]:
    """Starts the worker and returns the median seconds of each trial and round.

    Raises:
        StackingError: a rank failed.
    """
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(place / TURNS, turns.model_dump_json(indent=2) + "\n")
    first = turns.trials[0]
    job = Job(
        name="step-times",
        argv=[sys.executable, "-m", "stacking.compare.step_worker", str(place)],
        ranks=first.planned.ranks,
        logs=place / "logs",
        accelerator=first.plan.launch.accelerator,
    )
    outcome = wait_for(launcher, job, limit_seconds=None)
    assert outcome is not None  # there is no limit
    if outcome.exit_code:
        raise StackingError(f"the step times could not be measured: {describe(outcome)}")
    rounds: list[list[float]] = json.loads((place / ROUND_TIMES).read_text())
    return rounds
