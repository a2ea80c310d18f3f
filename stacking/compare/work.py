"""Trains the runs of a comparison one after the other, or submits each to SLURM as a chain of jobs of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacking.compare.arm import Arm
from stacking.compare.folder import CompareFolder
from stacking.config.recipe import Recipe
from stacking.errors import DamagedFile, Diverged, Preempted, UserError
from stacking.launch.job import Launcher
from stacking.launch.registry import open_launcher
from stacking.planning.plan import Plan, load_plan
from stacking.report.comparison import charged_seconds
from stacking.report.run import read_run
from stacking.run.branch import BranchPoint, branch_point
from stacking.run.controller import Controller
from stacking.run.create import design_of, holding_new, open_run, require_idle, write_run
from stacking.run.folder import RunFolder
from stacking.run.kept import kept_recipe
from stacking.run.lease import Lease
from stacking.run.phases import is_over
from stacking.run.progress import Progress
from stacking.run.rewind import divergence, refuse_repetition
from stacking.slurm.command import SubmitRequest, submit
from stacking.terminal.units import duration

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """One run to train: one seed of an arm."""

    name: str
    """Its name in messages: ``late-2-12, seed 1``."""
    arm: Arm
    seed: int
    run: RunFolder

    @property
    def recipe(self) -> Recipe:
        """The arm's recipe with this task's seed."""
        return self.arm.recipe(self.seed)

    @property
    def is_settled(self) -> bool:
        """Whether it needs no more training: it is finished, or has diverged and would diverge again."""
        return is_over(self.run) or divergence(self.run.journal.events()) is not None

    @property
    def command(self) -> str:
        """The command that trains this run by itself."""
        return self.arm.command(self.seed, self.run.path)


def check_recipes(tasks: Sequence[Task]) -> None:
    """Checks that existing runs were created from the recipes of their tasks, on the same data.

    Raises:
        UserError: one was created from another recipe or other data.
    """
    for task in tasks:
        if not task.run.journal.events():
            continue
        if _content(kept_recipe(task.run.recipe)) != _content(task.recipe):
            problem = f"was trained with other settings than {task.arm.where} has now"
            raise UserError(task.run.recipe, problem, "rename the recipe's file, or choose another --out")
        if load_plan(task.run.plan).data.digest != task.arm.plan.data.digest:
            problem = f"was trained on other data than {task.arm.data} holds now"
            raise UserError(task.run.plan, problem, "restore the data, or choose another --out")


def _content(recipe: Recipe) -> dict[str, Any]:
    """Returns everything in a recipe but the path of its data, which may be written in several ways."""
    return recipe.model_dump(mode="json", exclude={"data": {"path"}})


class TrainingWork:
    """Trains runs through the ordinary chain, each from where it stopped, and reports the progress of all of them.

    A new run begins with the last checkpoint that another run of its seed has in common with it. It is charged for
    all the training before that.

    Args:
        tasks: all runs of the comparison, in the order of training.
        folders: where to look for runs that begin like these: the comparison's folder, and others.
        launcher: None: that of the recipes.
        tell: called with each line of progress.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        folders: Sequence[CompareFolder],
        launcher: str | None,
        hostfile: Path | None,
        tell: Tell,
    ) -> None:
        self._tasks, self._folders, self._launcher, self._hostfile = tasks, folders, launcher, hostfile
        self._tell = tell

    def do(self, task: Task) -> None:
        """Trains one run, unless it is settled.

        Raises:
            Preempted: a signal stopped it after a checkpoint.
            StackingError: a phase failed.
        """
        if task.is_settled:
            return
        self._tell(f"[{self._tasks.index(task) + 1}/{len(self._tasks)}] {task.name}{self._left()}")
        name = self._launcher or task.arm.plan.launch.launcher
        try:
            self._train(task, open_launcher(name, self._hostfile), elsewhere=name != "local")
        except Preempted:
            problem = "stopped with a checkpoint; run the same command again to continue"
            raise Preempted(f"{task.name}: {problem}") from None
        except Diverged as diverged:
            self._tell(f"{task.name}: {diverged}")

    def _train(self, task: Task, launcher: Launcher, elsewhere: bool) -> None:
        run = task.run
        require_idle(run)
        if not run.journal.events():
            design = design_of(task.recipe, run, elsewhere)
            begins = self._begins(task, design.plan)
            with holding_new(run) as lease:
                write_run(design, run, begins)
                _control(run, design.plan, launcher, lease)
            return
        with run.locked() as lease:
            plan = open_run(run, self._tell)
            refuse_repetition(run)
            run.journal.append("resumed")
            _control(run, plan, launcher, lease)

    def _begins(self, task: Task, plan: Plan) -> BranchPoint | None:
        """Returns the furthest checkpoint that a run of the same seed has in common with a new one."""
        others = [run for folder in self._folders for run in folder.runs(task.seed) if run.path != task.run.path]
        points = [point for other in others if (point := branch_point(other, plan, lambda damage: None))]
        furthest = max(points, key=lambda point: (point.stage, point.step), default=None)
        if furthest is not None:
            self._tell(f"{task.name}: begins with {furthest}, up to which both are the same")
        return furthest

    def _left(self) -> str:
        """Returns the remaining time at the FLOPs per second of the settled runs; empty before the first."""
        settled = [task for task in self._tasks if task.is_settled]
        seconds = sum(charged_seconds(read_run(task.run.path)) for task in settled)
        done, total = (sum(task.arm.plan.cost.flops for task in some) for some in (settled, self._tasks))
        return f", about {duration(seconds / done * (total - done))} left in all" if done else ""


def _control(run: RunFolder, plan: Plan, launcher: Launcher, lease: Lease) -> None:
    with Progress(plan) as progress:
        Controller(run, plan, launcher, progress, lease).run()


def submit_run(task: Task, site: Path | None, tell: Tell) -> None:
    """Submits the jobs that a run still needs; those in the queue stay as they are.

    Raises:
        UserError: the recipe or the site file is invalid, or SLURM rejects a job.
        StackingError: SLURM does not answer.
    """
    if task.is_settled:
        return
    arm = task.arm
    settings = tuple(arm.settings(task.seed))
    request = SubmitRequest(run=task.run, recipe=arm.source, mode=None, site=site, overrides=settings, data=arm.data)
    for line in submit(request):
        tell(f"{task.name}: {line}")


def progress_of(tasks: Sequence[Task]) -> list[str]:
    """Returns a line about each unsettled run: ``late-2-12, seed 1: 1,200 of 6,000 updates``."""
    return [f"{task.name}: {_updates(task)}" for task in tasks if not task.is_settled]


def _updates(task: Task) -> str:
    total = sum(stage.steps for stage in task.arm.plan.stages)
    try:
        trained = read_run(task.run.path).records("train") if task.run.plan.is_file() else []
    except DamagedFile as damage:
        return str(damage)
    return f"{trained[-1]['global_step'] if trained else 0:,} of {total:,} updates"
