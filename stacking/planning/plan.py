"""Defines the plan of a run: a recipe with every default resolved, made once; workers get it and a stage number.

This is the file's schema; `stacking.planning.make_plan` decides its content.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import xxhash
from pydantic import Field, ValidationError

from stacking.config.recipe import (
    AttentionSnapshots,
    CheckpointRule,
    Evaluation,
    Optimizer,
    Until,
    WarmupStableDecay,
)
from stacking.config.resources import Resources
from stacking.deepspeed_config.ds_config import StageKernels
from stacking.errors import DamagedFile, UserError
from stacking.hardware.machine import Machine
from stacking.hardware.presets import Compiled, Precision
from stacking.model.config import ModelConfig
from stacking.planning.growth import PlannedGrowth, Rates
from stacking.planning.schedule import Points, learning_rate_at
from stacking.storage.files import read_sealed, write_sealed
from stacking.storage.frozen import Frozen, FrozenPart
from stacking.terminal.units import counted


class PlannedData(Frozen):
    """The prepared data and the kind of samples drawn from them."""

    path: str | None
    """Absolute; null: planned without data."""
    digest: str | None
    samples: str
    sequence_length: int
    mask_probability: float
    samples_per_epoch: int | None
    vocabulary: int


class PlannedLaunch(Frozen):
    """Where and how the ranks run."""

    launcher: str
    accelerator: Literal["cpu", "cuda"]
    device: str
    compiled: Compiled = "possible"
    elastic: bool = False
    retries: int | None = None
    retry_seconds: float = 10.0
    resources: Resources = Resources()


class Cost(FrozenPart):
    """The cost of the run relative to training the deepest model for all steps; times are `stacking.estimate`'s.

    Older plans also hold hours here, which are ignored.
    """

    flops: float
    baseline_flops: float


class StagePlan(Frozen):
    """One resolved stage."""

    index: int
    name: str
    layers: int
    steps: int
    global_batch: int
    """Sequences per update: micro_batch x accumulation x ranks."""
    micro_batch: int
    accumulation: int
    ranks: int
    first_step: int
    """Number of updates before this stage."""
    first_sample: int
    last_sample: int
    """Exclusive."""
    tokens: int
    epochs: float | None
    learning_rate: Points
    """See `stacking.planning.schedule`."""
    precision: Precision
    zero_stage: int
    ds_config: dict[str, Any]
    ds_config_digest: str
    kernels: StageKernels = StageKernels()
    until: Until | None = None
    """What may end the stage before ``steps``; see `stacking.planning.plateau`."""
    growth: PlannedGrowth | None
    """How the stage's initial weights derive from the previous model; null: random, or unchanged."""
    parameters: int
    flops: float
    memory_per_rank: int
    """Bytes, estimated."""
    resources: Resources = Resources()

    @property
    def trial_updates(self) -> int:
        """Returns the updates of the candidates that a trial of operators trains before the stage."""
        return self.growth.trial.updates if self.growth and self.growth.trial else 0

    @property
    def all_flops(self) -> float:
        """Returns the floating-point operations of the stage and of the trial before it."""
        return self.flops * (1 + self.trial_updates / self.steps)

    def grown_by(self, operator: str) -> StagePlan:
        """Returns the stage with the growth by one candidate of its trial."""
        assert self.growth is not None
        return self.model_copy(update={"growth": self.growth.by(operator)})

    def rates_at(self, step: int) -> Rates:
        """Returns the learning rates of update ``step``, from 0."""
        rate = learning_rate_at(self.learning_rate, step)
        return self.growth.rates(step, self.steps, rate) if self.growth else Rates(rate, rate)


Stage = StagePlan


class Plan(Frozen):
    """The whole resolved run."""

    format: Literal[1] = 1
    name: str
    seed: int
    recipe: str
    data: PlannedData
    model: ModelConfig
    """The model at the depth of the first stage."""
    start: str | None
    """Absolute path of the folder to start from."""
    start_format: Literal["state", "huggingface"] | None
    optimizer: Optimizer
    schedule: WarmupStableDecay | None = None
    """The learning rates over the run, if a stage may end early."""
    stages: Annotated[tuple[StagePlan, ...], Field(min_length=1)]
    checkpoint: CheckpointRule
    evaluation: Evaluation
    attention: AttentionSnapshots | None = None
    log_every: int
    launch: PlannedLaunch
    cost: Cost
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """Returns the plan as unsealed JSON; the same recipe, data and machine give the same bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    @property
    def digest(self) -> str:
        """Returns the XXH3-128 of ``to_json``, in hex."""
        return xxhash.xxh3_128_hexdigest(self.to_json().encode())

    def flops_done(self, index: int, step: int) -> float:
        """Returns the floating-point operations of the run up to update ``step`` of stage ``index``."""
        stage = self.stages[index]
        before = sum(earlier.all_flops for earlier in self.stages[:index])
        return before + stage.all_flops - stage.flops + stage.flops * step / stage.steps


def write_plan(path: Path, plan: Plan) -> None:
    """Writes ``plan.json``, sealed and atomically; the same plan gives the same bytes."""
    write_sealed(path, plan.model_dump(mode="json"))


def load_plan(path: Path) -> Plan:
    """Reads a plan.

    Raises:
        UserError: there is none.
        DamagedFile: it was changed since it was written, or is not a plan of this program.
    """
    try:
        return Plan.model_validate(read_sealed(path))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "no object"
        raise DamagedFile(path, f"is not a plan that this version can read ({place})", "plan again") from None


def check_machine(plan: Plan, machine: Machine | None) -> None:
    """Rejects a plan without data, or for devices this computer lacks; ``machine`` None: the computer is unknown.

    Raises:
        UserError: there are too few GPUs, or no data.
    """
    ranks = max(stage.ranks for stage in plan.stages)
    if machine and plan.launch.accelerator == "cuda" and machine.accelerators < ranks:
        problem = f"needs {counted(ranks, 'GPU')}, but this machine has {machine.accelerators}"
        raise UserError(plan.recipe, problem, "set launch.ranks or launch.accelerator=cpu, or run it elsewhere")
    if plan.data.path is None:
        raise UserError(f"{plan.recipe}: data.path", "is missing", "give the folder that 'stacking prepare' wrote")


def stage_name(index: int, layers: int) -> str:
    """Returns the name of a stage in folders and messages."""
    return f"{index}-L{layers}"
