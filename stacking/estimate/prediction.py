"""Predicts the time and cost of a run: every stage and their sum.

An update takes the computation of a rank plus the communication that is not hidden. A collective that DeepSpeed
overlaps runs concurrently with the computation that the ZeRO stage allows (`stacking.estimate.communication`); a stated
share of that time can hide it, except its last bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stacking.estimate.communication import Transfer, bytes_per_update, transfers
from stacking.estimate.compute import Tabled, UpdateSeconds
from stacking.estimate.measured import Benchmark
from stacking.estimate.network import Network
from stacking.estimate.overhead import HostCosts, Outside, outside
from stacking.model.size import count_parameters
from stacking.planning.cost import stage_flops
from stacking.planning.plan import Plan, StagePlan
from stacking.storage.frozen import Frozen

OVERLAP = 0.8
"""Assumed share of the computation that can hide communication."""


class StagePrediction(Frozen):
    """One stage: its training and its overhead."""

    name: str
    layers: int
    ranks: int
    nodes: int
    micro_batch: int
    accumulation: int
    update: UpdateSeconds
    bytes_per_update: float
    """Bytes that one rank sends."""
    training_seconds: float
    """All updates."""
    outside: Outside
    seconds: float
    """Training and overhead."""
    gpu_hours: float
    """Ranks x hours."""
    cost: float | None
    source: Literal["tabled", "measured"]


class Prediction(Frozen):
    """The whole run: the sums of its stages."""

    device: str
    price: float | None
    """Price per GPU hour."""
    stages: tuple[StagePrediction, ...]
    seconds: float
    training_seconds: float
    baseline_seconds: float
    """Seconds to train the deepest model for the same steps with the same batches."""
    gpu_hours: float
    cost: float | None
    communication_share: float
    """Share of the training seconds."""
    assumptions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What a prediction is based on, in addition to the plan."""

    pace: Tabled | Benchmark
    network: Network
    host: HostCosts
    price: float | None = None


def predict(plan: Plan, setting: Basis) -> Prediction:
    """Predicts every stage of ``plan``, and the baseline that trains the deepest model for all of them."""
    deep = from_the_start(plan)
    stages = tuple(_stage(plan, stage, setting) for stage in plan.stages)
    training = sum(stage.training_seconds for stage in stages)
    communication = sum(p.update.communication * s.steps for p, s in zip(stages, plan.stages, strict=True))
    costs = [stage.cost for stage in stages if stage.cost is not None]
    return Prediction(
        device=plan.launch.device,
        price=setting.price,
        stages=stages,
        seconds=sum(stage.seconds for stage in stages),
        training_seconds=training,
        baseline_seconds=sum(_stage(deep, stage, setting).training_seconds for stage in deep.stages),
        gpu_hours=sum(stage.gpu_hours for stage in stages),
        cost=sum(costs) if costs else None,
        communication_share=communication / training,
        assumptions=(*setting.pace.assumptions, *_assumptions(plan, setting)),
    )


def from_the_start(plan: Plan) -> Plan:
    """Returns a plan with all steps at full depth and the same batches: the baseline for stacking."""
    deepest = plan.model.with_layers(max(stage.layers for stage in plan.stages))
    length, masked = plan.data.sequence_length, plan.data.mask_probability
    changed = {"layers": deepest.layers, "parameters": count_parameters(deepest), "growth": None}
    stages = [
        stage.model_copy(
            update={**changed, "flops": stage_flops(deepest, stage.steps * stage.global_batch, length, masked)}
        )
        for stage in plan.stages
    ]
    return plan.model_copy(update={"stages": tuple(stages)})


def _stage(plan: Plan, stage: StagePlan, setting: Basis) -> StagePrediction:
    work = setting.pace.work(stage)
    measured = setting.pace if isinstance(setting.pace, Benchmark) else None
    communication = measured.communication(stage) if measured else None
    if communication is None:
        exposed = (_exposed(stage, work, setting.network, transfer) for transfer in transfers(stage))
        communication = sum(exposed)
    update = work.model_copy(update={"communication": communication})
    training = update.seconds * stage.steps
    rest = outside(plan, stage, work, setting.host, measured.beginning(stage) if measured else None)
    seconds = training + rest.seconds
    hours = stage.ranks * seconds / 3600
    return StagePrediction(
        name=stage.name,
        layers=stage.layers,
        ranks=stage.ranks,
        nodes=setting.network.nodes(stage.ranks),
        micro_batch=stage.micro_batch,
        accumulation=stage.accumulation,
        update=update,
        bytes_per_update=bytes_per_update(stage),
        training_seconds=training,
        outside=rest,
        seconds=seconds,
        gpu_hours=hours,
        cost=None if setting.price is None else hours * setting.price,
        source="measured" if measured else "tabled",
    )


def _exposed(stage: StagePlan, work: UpdateSeconds, network: Network, transfer: Transfer) -> float:
    """Returns the seconds of a transfer per update that no computation hides."""
    whole = network.transfer_seconds(transfer, stage.ranks)
    behind = {"nothing": 0.0, "backward": work.backward, "forward and backward": work.forward + work.backward}
    window = OVERLAP * behind[transfer.behind] / max(stage.accumulation, transfer.times)
    return transfer.times * max(whole - window, whole / transfer.calls)


def _assumptions(plan: Plan, setting: Basis) -> list[str]:
    found = []
    if max(stage.ranks for stage in plan.stages) > 1:
        found.append(setting.network.assumption(max(stage.ranks for stage in plan.stages)))
    if any(t.behind != "nothing" for stage in plan.stages for t in transfers(stage)):
        found.append(f"{OVERLAP:.0%} of the computation that DeepSpeed overlaps with communication hides it")
    return [*found, setting.host.assumption]
