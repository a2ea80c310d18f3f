"""Defines the phases of a run in order, with the command of each and the output that proves it done.

    [import] → [grow] → train → consolidate → grow → train → consolidate → … → [export] → report

A recipe with ``attention`` adds a measurement after every consolidate (``attention-trained``) and every grow
(``attention-grown``). If one fails, the run continues without it.

Each phase is a separate process that can safely be repeated: its output gets its name only when it is complete.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from stacking.config.reading import nearest
from stacking.errors import DamagedFile, UserError
from stacking.growth.operators import LISTED
from stacking.planning.plan import Plan, StagePlan
from stacking.run import checkpoints
from stacking.run.folder import RunFolder
from stacking.storage.files import set_aside, verify_folder

PhaseName = Literal[
    "import", "grow", "attention-grown", "train", "consolidate", "attention-trained", "export", "report"
]
Moment = Literal["grown", "trained"]
MOMENTS: tuple[Moment, ...] = get_args(Moment)
"""When attention is measured: right after a growth, and at the end of a stage, which is right before the next one."""
OnDamage = Callable[[DamagedFile], None]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Describes one phase: its command, and the output that proves it done."""

    name: PhaseName
    stage: int
    arguments: Sequence[str]
    """The module to run with ``python -m``."""
    output: Path
    ranks: int = 1
    last_step: int = 0
    """Training only: the update whose checkpoint completes the phase."""
    trains: bool = False
    """Whether it runs on the stage's devices and stops with a checkpoint, or may be repeated, after a signal."""
    optional: bool = False
    """Whether the run goes on without the phase if it fails."""

    @property
    def label(self) -> str:
        """The phase and its stage in the format of `--only`: ``train:1``."""
        return f"{self.name}:{self.stage}"

    @property
    def argv(self) -> list[str]:
        """The command that runs the phase in a process."""
        return [sys.executable, "-m", *self.arguments]

    def is_done(self, on_damage: OnDamage) -> bool:
        """Returns whether the output exists and is undamaged.

        A damaged output is reported through ``on_damage`` and set aside.
        """
        if self.name == "train":
            newest = checkpoints.newest_good(self.output, on_damage)
            return newest is not None and checkpoints.step_of(newest) == self.last_step
        if not self.output.exists():
            return False
        try:
            if not self.output.is_dir():
                raise DamagedFile(self.output, "is not a folder")
            verify_folder(self.output)
        except DamagedFile as damage:
            on_damage(damage)
            set_aside(self.output)
            return False
        return True

    def forget_damage(self) -> None:
        """Removes outputs set aside as damaged, once the output was recreated and the journal describes the damage."""
        inside = self.output.glob("*.damaged*") if self.name == "train" else ()
        for aside in [*inside, *self.output.parent.glob(f"{self.output.name}.damaged*")]:
            if aside.is_dir() and not aside.is_symlink():
                shutil.rmtree(aside)
            else:
                aside.unlink(missing_ok=True)


def phases(plan: Plan, run: RunFolder) -> list[Phase]:
    """Returns all phases of a run in order."""
    chain = _beginning(plan, run)
    for stage in plan.stages:
        folder = run.stage(stage.name)
        if stage.index > 0 and stage.growth is not None:
            chain += _grow(plan, run, stage)
        chain.append(
            Phase(
                name="train",
                stage=stage.index,
                arguments=["stacking.train.worker", str(run.path), str(stage.index)],
                output=folder.checkpoints,
                ranks=stage.ranks,
                last_step=stage.steps,
                trains=True,
            )
        )
        chain.append(_command("consolidate", stage, folder.state, [str(last_checkpoint(run, stage))]))
        chain += _measure(plan, run, stage, "trained")
    final = plan.stages[-1]
    if plan.model.has_hugging_face_class:
        source = [str(run.stage(final.name).state), "--data", str(plan.data.path)]
        chain.append(_command("export", final, run.export, source))
    chain.append(
        Phase(
            name="report",
            stage=final.index,
            arguments=["stacking", "report", str(run.path)],
            output=run.report,
        )
    )
    return chain


def parse_labels(text: str, chain: Sequence[Phase]) -> list[str]:
    """Parses a list of phases such as ``train:0,consolidate:0``.

    Raises:
        UserError: the run has no such phase.
    """
    known = [phase.label for phase in chain]
    for label in (labels := text.split(",")):
        if label not in known:
            raise UserError("--only", f"{label!r} is not a phase of this run", nearest(label, known))
    return labels


def unfinished(chain: Sequence[Phase], on_damage: OnDamage) -> Sequence[Phase]:
    """Returns the phases after the last one with an undamaged output.

    A report can be written at any time, so it proves nothing and is always written again at the end. An optional phase
    proves nothing about those before it; if it is done, it is left out.
    """
    left: list[Phase] = []
    for phase in reversed(chain):
        if phase.name == "report" or not phase.is_done(on_damage):
            left.insert(0, phase)
        elif not phase.optional:
            break
    return left


def is_over(run: RunFolder) -> bool:
    """Returns whether the last phase is finished, its output exists and no damage was found since."""
    last = next((e for e in reversed(run.journal.events()) if e["event"] in ("finished", "damaged", "started")), None)
    return last is not None and (last["event"], last["phase"]) == ("finished", "report") and run.report.is_file()


def last_checkpoint(run: RunFolder, stage: StagePlan) -> Path:
    """Returns the checkpoint that completes ``stage``, whose length is decided."""
    return run.stage(stage.name).checkpoints / checkpoints.tag(stage.steps)


def starting_state(plan: Plan, run: RunFolder, stage: StagePlan) -> Path | None:
    """Returns the state that ``stage`` starts from; None: random weights."""
    if stage.growth is not None:
        return run.stage(stage.name).start
    return previous_state(plan, run, stage)


def previous_state(plan: Plan, run: RunFolder, stage: StagePlan) -> Path | None:
    """Returns the state that ``stage`` grows out of or, without a growth, starts from; None: random weights."""
    if stage.index > 0:
        return run.stage(plan.stages[stage.index - 1].name).state
    if plan.start is None:
        return None
    return run.start if plan.start_format == "huggingface" else Path(plan.start)


def _beginning(plan: Plan, run: RunFolder) -> list[Phase]:
    """Returns the phases that turn the recipe's initial model into the first stage's initial state."""
    first, chain = plan.stages[0], []
    if plan.start_format == "huggingface":
        chain.append(_command("import", first, run.start, [str(plan.start)]))
    if first.growth is not None:
        chain += _grow(plan, run, first)
    return chain


def _grow(plan: Plan, run: RunFolder, stage: StagePlan) -> list[Phase]:
    growth, out = stage.growth, run.stage(stage.name).start
    assert growth is not None
    if growth.trial is not None:
        arguments = ["stacking.train.trial", str(run.path), str(stage.index)]
        grow = Phase(name="grow", stage=stage.index, arguments=arguments, output=out, ranks=stage.ranks, trains=True)
        return [grow, *_measure(plan, run, stage, "grown")]
    if growth.operator == LISTED:
        mapping = ["--layers-from", ",".join(growth.sources)]
    else:
        mapping = ["--layers", str(stage.layers), "--operator", growth.operator]
    how = ["--optimizer-state", growth.optimizer_state, "--share"]
    grow = _command("grow", stage, out, [str(previous_state(plan, run, stage)), *mapping, *how])
    return [grow, *_measure(plan, run, stage, "grown")]


def _measure(plan: Plan, run: RunFolder, stage: StagePlan, moment: Moment) -> list[Phase]:
    if plan.attention is None:
        return []
    names: dict[Moment, PhaseName] = {"grown": "attention-grown", "trained": "attention-trained"}
    return [
        Phase(
            name=names[moment],
            stage=stage.index,
            arguments=["stacking.attention.snapshot", str(run.path), str(stage.index), moment],
            output=run.stage(stage.name).attention(moment),
            optional=True,
        )
    ]


def _command(name: PhaseName, stage: StagePlan, output: Path, arguments: Sequence[str]) -> Phase:
    return Phase(
        name=name, stage=stage.index, arguments=["stacking", name, *arguments, "--out", str(output)], output=output
    )
