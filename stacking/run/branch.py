"""Begins a run with the last checkpoint that it shares with another run, up to which both train the same updates.

The new run gets everything that it would have after training these updates itself: the checkpoint, the metrics and the
journal up to there. So it ends with the same bits, and reports and comparisons charge it with the whole training. It
has one extra record only if the other run ended a stage there: the record of the other's last update.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacking.errors import DamagedFile, UserError
from stacking.planning.overlap import overlap
from stacking.planning.plan import Plan
from stacking.run.checkpoints import checkpoints, step_of
from stacking.run.decisions import settled_plan
from stacking.run.folder import RunFolder, StageFolder
from stacking.run.metrics import read_metrics, truncate_after
from stacking.storage.files import disk_errors, move_folder, verify_folder

OnDamage = Callable[[DamagedFile], None]
_OF_PHASES = ("started", "finished", "failed", "skipped", "preempted", "decided", "resumed", "rewound")


@dataclass(frozen=True)
class BranchPoint:
    """Identifies a checkpoint of another run with which a new run can begin."""

    source: RunFolder
    names: tuple[str, ...]
    """The names of the stages, up to and including the checkpoint's."""
    checkpoint: Path

    @property
    def stage(self) -> int:
        """The index of the stage that the checkpoint belongs to."""
        return len(self.names) - 1

    @property
    def step(self) -> int:
        """The number of updates of that stage before the checkpoint."""
        return step_of(self.checkpoint)

    def __str__(self) -> str:
        return f"update {self.step:,} of stage {self.names[-1]} of {self.source.path}"


def branch_point(source: RunFolder, plan: Plan, on_damage: OnDamage) -> BranchPoint | None:
    """Returns the last undamaged checkpoint of ``source`` that a run of ``plan`` would write too; None: it has none.

    Args:
        on_damage: called for each later checkpoint that is damaged.

    Raises:
        UserError: ``source`` is not a run.
        DamagedFile: its plan or journal is damaged.
    """
    shared = overlap(plan, settled_plan(source)).updates
    names = tuple(stage.name for stage in plan.stages)
    for index in reversed(range(len(shared))):
        for checkpoint in reversed(checkpoints(source.stage(names[index]).checkpoints)):
            if step_of(checkpoint) > shared[index]:
                continue
            try:
                verify_folder(checkpoint)
            except DamagedFile as damage:
                on_damage(damage)
                continue
            return BranchPoint(source, names[: index + 1], checkpoint)
    return None


def require_branch_point(source: RunFolder, plan: Plan, on_damage: OnDamage) -> BranchPoint:
    """Returns the checkpoint that `branch_point` finds.

    Raises:
        UserError: ``source`` is not a run, or has no such checkpoint.
        DamagedFile: its plan or journal is damaged.
    """
    found = branch_point(source, plan, on_damage)
    if found is None:
        shared = overlap(plan, settled_plan(source))
        parted = f" before they part at {shared.parted_by}" if shared.parted_by else ""
        problem = f"keeps no checkpoint from the {sum(shared.updates):,} updates that both share{parted}"
        remedy = "name a run of the same recipe up to there, made with a larger checkpoint.keep"
        raise UserError(f"--branch-of {source.path}", problem, remedy)
    return found


def begin_as(point: BranchPoint, run: RunFolder) -> None:
    """Gives ``run`` everything that it has at ``point``; the caller must hold its lock and have written its plan.

    The other run is only read, and may be training meanwhile.

    Raises:
        DamagedFile: the checkpoint is damaged, or was removed meanwhile.
        NoSpace: the disk is full.
    """
    for name in point.names:
        _copy_records(point.source.stage(name), run.stage(name))
    last = run.stage(point.names[-1])
    truncate_after(last.metrics, point.step)
    _copy_checkpoint(point.checkpoint, last.checkpoints / point.checkpoint.name)
    run.journal.adopt(_history(point, last))
    run.journal.append("resumed", branch_of=str(point.source.path), stage=point.stage, step=point.step)


def _copy_records(source: StageFolder, target: StageFolder) -> None:
    """Copies the metrics of a stage and of the trial before it."""
    with disk_errors(target.path):
        target.path.mkdir(parents=True, exist_ok=True)
        for file in source.path.glob("*.jsonl"):
            if file.is_file():
                shutil.copyfile(file, target.path / file.name)


def _copy_checkpoint(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    with disk_errors(target):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(source, partial)
        except FileNotFoundError as error:
            raise DamagedFile(source, "was removed while it was copied", "run the command again") from error
        verify_folder(partial)
        move_folder(partial, target)


def _history(point: BranchPoint, last: StageFolder) -> Iterator[dict[str, Any]]:
    """Yields the events of phases up to the last update before the checkpoint."""
    records = read_metrics(last.metrics)
    until = records[-1]["time"] if records else 0.0
    for event in point.source.journal.events():
        if event["time"] <= until and event["event"] in _OF_PHASES:
            yield event
