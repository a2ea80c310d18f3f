"""Implements `stacking compare`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stacking.compare.arm import Arm, check_arms, model_differences, read_arm
from stacking.compare.chart import is_known, picture
from stacking.compare.folder import CompareFolder
from stacking.compare.lengths import length_overrides
from stacking.compare.page import write_page
from stacking.compare.plateau import plateau_warnings, token_entropy
from stacking.compare.rebuilt import curve_of
from stacking.compare.result import Result, Trained, compare_runs
from stacking.compare.step_times import StepTime, measure_step_times, read_step_times, step_seconds
from stacking.compare.tuning import FIRST_SEED, TunedBaseline, at_rate, candidates, search
from stacking.compare.work import Task, Tell, TrainingWork, check_recipes, progress_of, submit_run
from stacking.config.recipe import load_recipe
from stacking.data.corpus import Corpus
from stacking.errors import UserError
from stacking.launch.registry import open_launcher
from stacking.planning.plan import load_plan
from stacking.report.run import read_run
from stacking.run.folder import RunFolder
from stacking.run.rewind import divergence
from stacking.storage.files import write_atomically, write_json


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """Holds what the user asks `stacking compare` for."""

    sources: tuple[str, ...]
    """The recipes, the baseline's first."""
    data: Path
    out: Path
    seeds: int
    rates: tuple[float, ...]
    """Learning rates to search for the baseline; empty: the recipes' own."""
    overrides: tuple[str, ...]
    any_model: bool
    scale: float
    """Length of every arm's training, relative to its recipe."""
    reuse: tuple[Path, ...]
    launcher: str | None
    hostfile: Path | None
    submit: bool = False
    site: Path | None = None

    @property
    def command(self) -> str:
        """The shell command that makes this comparison."""
        options = ["--data", str(self.data), "--out", str(self.out), "--seeds", str(self.seeds)]
        options += ["--tune-baseline", ",".join(f"{rate:g}" for rate in self.rates)] if self.rates else []
        options += ["--scale", f"{self.scale:g}"] if self.scale != 1 else []
        options += ["--any-model"] if self.any_model else []
        options += [word for override in self.overrides for word in ("--set", override)]
        return shlex.join(["stacking", "compare", *self.sources, *options])


def check_request(request: CompareRequest) -> None:
    """Rejects options that contradict each other.

    Raises:
        UserError: two do, or a folder to reuse holds no comparison.
    """
    if request.submit and (request.launcher or request.hostfile):
        raise UserError("--submit", "runs under SLURM's launcher", "omit --launcher and --hostfile")
    if request.submit and request.reuse:
        raise UserError("--submit", "leaves every run to a chain of its own", "omit --reuse")
    for folder in request.reuse:
        if not (folder / "arms").is_dir():
            raise UserError(f"--reuse {folder}", "holds no comparison", "give what was --out of another one")


def compare(request: CompareRequest, tell: Tell) -> Result:
    """Trains or submits what is missing, arm after arm, and compares; writes the result after every seed.

    Args:
        tell: called with each line of progress.

    Raises:
        UserError: a recipe or the data is wrong, the arms do not compare, or a folder holds other runs.
        Preempted: a signal stopped it; the same call continues.
        StackingError: a run failed.
    """
    arms = [_read_arm(source, request) for source in request.sources]
    check_arms(arms, request.any_model)
    folder = CompareFolder(request.out)
    with folder.locked():
        tuned, losers = _search(folder, arms, request, tell)
        if request.rates and tuned is None:
            tell("the search for the learning rate is in SLURM's queue; run the same command again when it has ended")
            return _write(request, folder, arms, _tasks(folder, arms, request.seeds), None, {})
        arms = [at_rate(arm, tuned.winner) for arm in arms] if tuned else arms
        tasks = _tasks(folder, arms, request.seeds)
        check_recipes(tasks)
        do = _doing(request, [*losers, *tasks], tell)
        for task in tasks:
            is_new = not task.is_settled
            do(task)
            if is_new and task.arm is arms[-1]:
                _write(request, folder, arms, tasks, tuned, {})
        for line in progress_of(tasks):
            tell(line)
        return _write(request, folder, arms, tasks, tuned, _step_times(folder, tasks, request, tell))


def _read_arm(source: str, request: CompareRequest) -> Arm:
    overrides = list(request.overrides)
    if request.scale != 1:
        overrides += length_overrides(load_recipe(source, overrides, request.data), request.scale)
    return read_arm(source, request.data, overrides)


def _doing(request: CompareRequest, tasks: Sequence[Task], tell: Tell) -> Callable[[Task], None]:
    """Returns the function that trains or submits one of ``tasks``."""
    if request.submit:
        return lambda task: submit_run(task, request.site, tell)
    folders = [CompareFolder(path) for path in (request.out, *request.reuse)]
    return TrainingWork(tasks, folders, request.launcher, request.hostfile, tell).do


def _tasks(folder: CompareFolder, arms: Sequence[Arm], seeds: int) -> list[Task]:
    """Returns the runs of all arms, seed after seed, so that the first seed soon has a result."""
    return [
        Task(f"{arm.name}, seed {seed}", arm, seed, folder.run(arm.name, seed)) for seed in range(seeds) for arm in arms
    ]


def _search(
    folder: CompareFolder, arms: Sequence[Arm], request: CompareRequest, tell: Tell
) -> tuple[TunedBaseline | None, list[Task]]:
    """Searches the baseline's learning rate if asked to.

    Returns:
        The result, or None without a search or if it is still in SLURM's queue; and the runs of the other rates.
    """
    if not request.rates:
        return None, []
    tries = candidates(folder, arms[0], request.rates)
    later = _tasks(folder, arms, request.seeds)[1:]  # the winner becomes the first
    tuned = search(folder, arms[0], tries, _doing(request, [*tries.values(), *later], tell))
    return tuned, [task for rate, task in tries.items() if tuned and rate != tuned.winner]


def _step_times(
    folder: CompareFolder, tasks: Sequence[Task], request: CompareRequest, tell: Tell
) -> Mapping[str, StepTime]:
    """Measures the updates of all stages, unless runs are missing or ran on other machines than this command."""
    first = [task for task in tasks if task.seed == FIRST_SEED]
    launcher = request.launcher or first[0].arm.plan.launch.launcher
    if launcher == "local" and any(task.run.site.is_file() for task in first):
        if all(task.is_settled for task in tasks) and not folder.step_times.exists():
            tell("no step times yet: run this without --submit and with --launcher slurm in a job on the same nodes")
        return read_step_times(folder)
    plans = [load_plan(task.run.plan) for task in first]
    samples = first[0].run.samples("train")
    return measure_step_times(folder, plans, samples, open_launcher(launcher, request.hostfile), tell)


def _write(
    request: CompareRequest,
    folder: CompareFolder,
    arms: Sequence[Arm],
    tasks: Sequence[Task],
    tuned: TunedBaseline | None,
    measured: Mapping[str, StepTime],
) -> Result:
    """Compares the seeds that are settled in every arm, and writes the result."""
    pending = [task for task in tasks if not task.is_settled]
    seeds = sorted({task.seed for task in tasks} - {task.seed for task in pending})
    compared = compare_runs(
        [(arm, [_trained(folder.run(arm.name, seed), seed, measured) for seed in seeds]) for arm in arms]
    )
    corpus = Corpus(arms[0].data)
    warnings = [*plateau_warnings(compared, token_entropy(corpus)), *_model_warnings(arms)]
    if tuned and tuned.warning:
        warnings.append(tuned.warning)
    result = Result(
        arms=tuple(compared),
        seeds=tuple(seeds),
        pending=tuple(task.name for task in pending),
        commands=(request.command, *(task.command for task in tasks)),
        rates=tuned.losses if tuned else {},
        step_times=tuple(measured.values()),
        warnings=tuple(warnings),
    )
    write_json(folder.result, result.as_dict())
    write_page(result, folder.page)
    if is_known(result, "tokens"):
        write_atomically(folder.picture, picture(result))
    return result


def _model_warnings(arms: Sequence[Arm]) -> list[str]:
    found = []
    for arm in arms[1:]:
        if different := model_differences(arms[0], arm):
            keys = ", ".join(f"{key} {mine} instead of {theirs}" for key, theirs, mine in different)
            found.append(f"{arm.name} ends with another model than the baseline: {keys}")
    return found


def _trained(run: RunFolder, seed: int, measured: Mapping[str, StepTime]) -> Trained:
    if diverged := divergence(run.journal.events()):
        return Trained(seed=seed, curve=(), diverged=diverged)
    read = read_run(run.path)
    return Trained(seed=seed, curve=curve_of(read, step_seconds(read.plan, measured)))
