"""Implements `stacking compare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stacking.compare.arm import Arm, check_arms, read_arm
from stacking.compare.folder import CompareFolder
from stacking.compare.rebuilt import curve_of
from stacking.compare.result import Result, Trained, compare_runs
from stacking.compare.training import check_recipe_of, is_settled, train
from stacking.errors import Diverged, Preempted
from stacking.launch.registry import open_launcher
from stacking.report.comparison import charged_seconds
from stacking.report.run import read_run
from stacking.run.folder import RunFolder
from stacking.run.rewind import divergence
from stacking.storage.files import write_json
from stacking.terminal.units import duration

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for."""

    sources: tuple[str, ...]
    """The recipes, the baseline's first."""
    data: Path
    out: Path
    seeds: int
    overrides: tuple[str, ...]
    launcher: str | None
    """None: the recipes'."""
    hostfile: Path | None


def compare(request: Request, tell: Tell) -> Result:
    """Trains what is missing, arm after arm, and compares; writes the result after every run.

    Args:
        tell: called with each line of progress.

    Raises:
        UserError: a recipe or the data is wrong, the arms do not compare, or a folder holds other runs.
        Preempted: a signal stopped it; the same call continues.
        StackingError: a run failed.
    """
    arms = [read_arm(source, request.data, request.overrides) for source in request.sources]
    check_arms(arms)
    folder = CompareFolder(request.out)
    runs = [(arm, seed) for seed in range(request.seeds) for arm in arms]
    for arm, seed in runs:
        check_recipe_of(folder.run(arm.name, seed), arm.recipe(seed))
    with folder.locked():
        for number, (arm, seed) in enumerate(runs, start=1):
            if not is_settled(folder.run(arm.name, seed)):
                tell(f"[{number}/{len(runs)}] {arm.name}, seed {seed}{_left(folder, runs)}")
                _train(request, folder, arm, seed, tell)
                _write(folder, arms, request.seeds)
        return _write(folder, arms, request.seeds)


def _train(request: Request, folder: CompareFolder, arm: Arm, seed: int, tell: Tell) -> None:
    name = request.launcher or arm.plan.launch.launcher
    launcher = open_launcher(name, request.hostfile)
    try:
        train(folder.run(arm.name, seed), arm.recipe(seed), launcher, name != "local", tell)
    except Preempted:
        where = f"{arm.name}, seed {seed}"
        raise Preempted(f"{where}: stopped with a checkpoint; run the same command again to continue") from None
    except Diverged as diverged:
        tell(f"{arm.name}, seed {seed}: {diverged}")


def _left(folder: CompareFolder, runs: Sequence[tuple[Arm, int]]) -> str:
    """Returns the expected remaining time at the FLOPs per second of the runs so far; empty before the first."""
    settled = [(arm, seed) for arm, seed in runs if is_settled(folder.run(arm.name, seed))]
    seconds = sum(charged_seconds(read_run(folder.run(arm.name, seed).path)) for arm, seed in settled)
    done, total = (sum(arm.plan.cost.flops for arm, _ in some) for some in (settled, runs))
    return f", about {duration(seconds / done * (total - done))} left in all" if done else ""


def _write(folder: CompareFolder, arms: Sequence[Arm], seeds: int) -> Result:
    """Compares the seeds that are settled in every arm, and writes the result."""
    settled = [seed for seed in range(seeds) if all(is_settled(folder.run(arm.name, seed)) for arm in arms)]
    pending = [
        f"{arm.name}, seed {seed}"
        for seed in range(seeds)
        for arm in arms
        if not is_settled(folder.run(arm.name, seed))
    ]
    compared = compare_runs([(arm, [_trained(folder.run(arm.name, seed), seed) for seed in settled]) for arm in arms])
    commands = [arm.command(seed, folder.run(arm.name, seed).path) for arm in arms for seed in settled]
    result = Result(arms=tuple(compared), seeds=tuple(settled), pending=tuple(pending), commands=tuple(commands))
    write_json(folder.result, result.as_dict())
    return result


def _trained(folder: RunFolder, seed: int) -> Trained:
    if diverged := divergence(folder.journal.events()):
        return Trained(seed=seed, curve=(), diverged=diverged)
    return Trained(seed=seed, curve=curve_of(read_run(folder.path)))
