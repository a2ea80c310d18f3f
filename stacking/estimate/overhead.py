"""Estimates the time of a run outside of updates: process start-up, evaluations, checkpoints and transitions.

    start-up       imports and engine of the ranks, plus the initial state / reading speed
    warm-up        excess of the first updates over the others: compilation, first allocations
    evaluations    forward passes over the held-out samples, as often as the recipe asks for
    checkpoints    their bytes / writing speed, as often as the recipe asks for
    transitions    consolidate reads a checkpoint and writes a state; grow reads a state and writes a larger one
    ending         of the last stage: export of the weights, and the report

What happens once per run counts for the last stage, so that the stages add up to the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from stacking.estimate.compute import Beginning, UpdateSeconds
from stacking.hardware.presets import VALUE_BYTES
from stacking.planning.plan import Plan, StagePlan
from stacking.storage.frozen import Frozen

_STATE_BYTES = 12
"""fp32 weights and two moments, per parameter."""


class Outside(Frozen):
    """Seconds of one stage outside of its updates."""

    start_up: float
    warm_up: float
    evaluations: float
    checkpoints: float
    transitions: float
    """Growing before the stage and consolidating after it."""
    ending: float
    """Export and report."""

    @property
    def seconds(self) -> float:
        """The sum of all parts."""
        return self.start_up + self.warm_up + self.evaluations + self.checkpoints + self.transitions + self.ending


@dataclass(frozen=True)
class HostCosts:
    """Costs on the host, independent of the devices."""

    disk: float
    """Bytes per second, reading or writing."""
    process: float
    """Seconds of a phase that starts, reads and writes, excluding its bytes."""
    report: float
    imports: float
    """Seconds from the start of the ranks until engine creation begins."""
    engine: float
    """Seconds until the engine is ready, unless measured."""
    checkpoint: float
    """Seconds of a checkpoint, excluding its bytes."""
    held_out: int | None
    """Samples of the held-out split; None if there is no data yet."""
    source: str

    @property
    def assumption(self) -> str:
        """These costs, and their source, as a sentence for the user."""
        return (
            f"outside the updates: {self.imports:g} s of imports and {self.engine:g} s for the engine per stage, "
            f"unless measured; {self.process:g} s per phase; {self.report:g} s for the report; files at "
            f"{self.disk / 1e6:,.0f} MB/s ({self.source})"
        )


def assumed_host(cuda: bool, held_out: int | None) -> HostCosts:
    """Returns costs to assume where nothing was measured.

    Args:
        cuda: whether the ranks use GPUs.
        held_out: number of held-out samples; None if there is no data yet.
    """
    # A GPU needs a CUDA context, and NCCL sets up its rings.
    imports, engine = (10.0, 10.0) if cuda else (2.0, 1.0)
    return HostCosts(5e8, 0.3, 1.5, imports, engine, 0.04, held_out, "assumed")


def outside(plan: Plan, stage: StagePlan, work: UpdateSeconds, host: HostCosts, beginning: Beginning | None) -> Outside:
    """Returns the overhead of ``stage``; ``beginning`` is used where it was measured."""
    state = _STATE_BYTES * stage.parameters
    checkpoint = _checkpoint_bytes(stage)
    loaded = state if stage.index or plan.start else 0
    last = stage.index == plan.stages[-1].index
    exported = plan.model.has_hugging_face_class
    return Outside(
        start_up=host.imports + (beginning.engine if beginning else host.engine) + loaded / host.disk,
        warm_up=beginning.warm_up if beginning else 0.0,
        evaluations=_times(stage, plan.evaluation.every_steps) * _evaluation(plan, stage, work, host),
        checkpoints=_times(stage, plan.checkpoint.every_steps) * (host.checkpoint + checkpoint / host.disk),
        transitions=host.process + (checkpoint + state) / host.disk + _growing(plan, stage, work, host),
        ending=(host.report + exported * (host.process + 8 * stage.parameters / host.disk)) if last else 0.0,
    )


def _times(stage: StagePlan, every: int) -> int:
    """Counts the occurrences of something due every so many updates and at the end."""
    return ceil(stage.steps / every)


def _checkpoint_bytes(stage: StagePlan) -> int:
    """Returns the bytes of the module's weights and the fp32 optimizer state; ZeRO 0 in fp32 shares the weights."""
    alone = stage.zero_stage == 0 and stage.precision == "fp32"
    return stage.parameters * (VALUE_BYTES[stage.precision] + (8 if alone else _STATE_BYTES))


def _evaluation(plan: Plan, stage: StagePlan, work: UpdateSeconds, host: HostCosts) -> float:
    """Returns the seconds of an evaluation: the ranks share the held-out samples, in the stage's micro-batches."""
    samples = min(plan.evaluation.samples, host.held_out or plan.evaluation.samples)
    passes = ceil(max(samples // stage.ranks, 1) / stage.micro_batch)
    return passes * work.forward / stage.accumulation


def _growing(plan: Plan, stage: StagePlan, work: UpdateSeconds, host: HostCosts) -> float:
    """Returns the seconds of growing and, before it, of a trial of operators, which counts as computing alone."""
    if stage.growth is None:
        return 0.0
    before = plan.stages[stage.index - 1].parameters if stage.index else 0
    return host.process + _STATE_BYTES * (before + stage.parameters) / host.disk + stage.trial_updates * work.seconds
