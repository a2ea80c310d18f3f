"""Lays out the jobs of a run in order.

one-allocation   one job, in which the controller starts every phase
per-stage        [begin] → 0-L3 → 0-L3-to-1-L6 → 1-L6 → … → finish: training jobs alternate with transitions

The last job, ``watch``, starts only if a job before it does not succeed; `stacking.slurm.watcher` says what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

from stacking.config.resources import Resources
from stacking.errors import UserError
from stacking.planning.plan import Plan, StagePlan
from stacking.run.folder import RunFolder
from stacking.run.phases import Phase, phases
from stacking.slurm.site import Site
from stacking.terminal.units import counted

Mode = Literal["one-allocation", "per-stage"]
MODES: tuple[Mode, ...] = get_args(Mode)

WATCHER = "watch"
"""The name of the job that mends the chain."""
_OF_THE_LARGEST = ("nodes", "ranks_per_node")
"""Resources for which a single allocation requests as much as the stage that needs the most."""


@dataclass(frozen=True)
class JobShape:
    """How a job's ranks are distributed over nodes."""

    nodes: int
    ranks_per_node: int


@dataclass(frozen=True, kw_only=True)
class ChainJob:
    """One job of the chain; it depends on the job before it."""

    name: str
    phases: tuple[Phase, ...]
    """The phases that it runs; for the watcher, those that it watches over."""
    template: Literal["training", "transition", "watch"]
    shape: JobShape
    resources: Resources

    def after(self, job: int | str) -> str:
        """Returns the dependency on ``job``, the id of the job before it, for ``sbatch --dependency``."""
        return f"{'afternotok' if self.name == WATCHER else 'afterok'}:{job}"

    @property
    def nodes(self) -> str:
        """The value of ``sbatch --nodes``: ``4``, or ``2-4`` if the job may run on fewer."""
        return f"{self._least}-{self.shape.nodes}" if self.is_elastic else str(self.shape.nodes)

    @property
    def is_elastic(self) -> bool:
        """Whether the job may start on fewer nodes than its shape has."""
        return self._least < self.shape.nodes

    @property
    def _least(self) -> int:
        return self.resources.min_nodes or self.shape.nodes

    @property
    def only(self) -> str:
        """The job's phases in the format of ``stacking resume --only``."""
        return ",".join(phase.label for phase in self.phases)


def chain(plan: Plan, run: RunFolder, site: Site, mode: Mode) -> list[ChainJob]:
    """Returns all jobs of a run, first to last.

    Raises:
        UserError: a stage needs more ranks per node than the site allows.
    """
    working = _working_jobs(plan, run, site, mode)
    if site.mends == 0:
        return working
    everything = tuple(phase for job in working for phase in job.phases)
    watcher = ChainJob(name=WATCHER, phases=everything, template="watch", shape=JobShape(1, 1), resources=Resources())
    return [*working, watcher]


def _working_jobs(plan: Plan, run: RunFolder, site: Site, mode: Mode) -> list[ChainJob]:
    shapes = [_shape(plan, stage, site) for stage in plan.stages]
    steps = phases(plan, run)
    if mode == "one-allocation":
        nodes = plan.launch.resources.nodes or max(shape.nodes for shape in shapes)
        shape = JobShape(nodes, max(shape.ranks_per_node for shape in shapes))
        return [
            ChainJob(name="run", phases=tuple(steps), template="training", shape=shape, resources=plan.launch.resources)
        ]
    jobs = []
    for trained, group in groupby(steps, key=lambda phase: _stage_trained_in_the_job_of(phase, plan)):
        part = tuple(group)
        if trained is None:
            name = _transition_name(plan, part)
            shape, resources = JobShape(1, 1), Resources()
            jobs.append(ChainJob(name=name, phases=part, template="transition", shape=shape, resources=resources))
        else:
            stage, shape = plan.stages[trained], shapes[trained]
            jobs.append(
                ChainJob(name=stage.name, phases=part, template="training", shape=shape, resources=stage.resources)
            )
    return jobs


def _stage_trained_in_the_job_of(phase: Phase, plan: Plan) -> int | None:
    """Returns the stage to whose training job a phase belongs; None: it belongs to a transition.

    What follows a trial of operators, which needs the stage's devices, stays in the job.
    """
    after_trial = phase.name == "attention-grown" and plan.stages[phase.stage].trial_updates > 0
    return phase.stage if phase.trains or after_trial else None


def ignored(plan: Plan, mode: Mode) -> list[str]:
    """Returns the keys of stages that a single allocation, which requests ``launch.resources``, cannot follow."""
    if mode != "one-allocation":
        return []
    common = plan.launch.resources.model_dump()
    return [
        f"stages[{stage.index}].resources.{key}"
        for stage in plan.stages
        for key, value in stage.resources.model_dump().items()
        if key not in _OF_THE_LARGEST and value != common.get(key)
    ]


def _transition_name(plan: Plan, group: Sequence[Phase]) -> str:
    if group[-1].name == "report":
        return "finish"
    if group[0].name != "consolidate":
        return "begin"
    before = plan.stages[group[0].stage]
    return f"{before.name}-to-{plan.stages[before.index + 1].name}"


def _shape(plan: Plan, stage: StagePlan, site: Site) -> JobShape:
    """Uses as few nodes as the ranks need, with the same number of ranks on each."""
    nodes = stage.resources.nodes
    allowed = stage.resources.ranks_per_node or site.ranks_per_node
    if nodes is None:
        least = -(-stage.ranks // allowed)
        nodes = next(n for n in range(least, stage.ranks + 1) if stage.ranks % n == 0)
    shape = JobShape(nodes, stage.ranks // nodes)
    if shape.ranks_per_node > allowed:
        problem = f"is {nodes}: {counted(shape.ranks_per_node, 'rank')} per node, but the site allows {allowed}"
        where = f"{plan.recipe}: stages[{stage.index}].resources.nodes"
        raise UserError(where, problem, "use more nodes, or correct ranks_per_node in the site file")
    return shape
