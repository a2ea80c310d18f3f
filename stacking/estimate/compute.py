"""Estimates the computation time of one rank per update from the device class's table, without communication.

    micro-batch   FLOPs / (peak x utilisation) + layers x seconds per layer; a third is forward, the rest backward
    optimizer     bytes that Adam reads and writes / memory bandwidth, for the rank's shard of the parameters

Ranks on a CPU share its cores.
"""

from __future__ import annotations

from dataclasses import dataclass

from stacking.deepspeed_config.ds_config import offloads
from stacking.hardware.presets import DeviceClass
from stacking.planning.plan import Plan, StagePlan
from stacking.storage.frozen import Frozen

_ADAM_BYTES = {"fp32": 32, "fp16": 40, "bf16": 40}
"""Per parameter: weight, moment and second moment read and written in fp32 (24), the gradient read by the norm and by
the update (8); in 16 bits also its conversion (6) and the new weight (2)."""
_HOST_SECONDS = 2e-4
"""Assumed seconds per update for Python and the agreement between ranks."""
_HOST_LINK, _HOST_MEMORY = 12e9, 50e9
"""Assumed bytes per second between a GPU and its host, and of host memory for Adam, for one rank's share."""


class UpdateSeconds(Frozen):
    """Seconds of one update of one rank."""

    forward: float
    backward: float
    """For all micro-batches of the update."""
    optimizer: float
    data: float
    """Waiting for samples."""
    other: float
    """Python, and whatever is not listed."""
    communication: float = 0.0
    """Communication that is not hidden."""

    @property
    def seconds(self) -> float:
        """The sum of all parts."""
        return self.forward + self.backward + self.optimizer + self.data + self.other + self.communication


@dataclass(frozen=True)
class Beginning:
    """Seconds at the start of a stage, excluding imports."""

    engine: float
    """Until the engine is ready."""
    warm_up: float
    """Excess of the first updates over the others."""


class Tabled:
    """Computation speed by device class; see `stacking.hardware.presets`.

    Args:
        cores: cores of this computer, which the planned CPU ranks share.
    """

    def __init__(self, plan: Plan, device: DeviceClass, cores: int) -> None:
        self._device = device
        planned = max(stage.ranks for stage in plan.stages)
        self._units = max(cores, 1) / planned if device.name == "cpu" else 1.0
        self.assumptions = tuple(self._assumptions(plan, planned, cores))

    def work(self, stage: StagePlan) -> UpdateSeconds:
        """Returns the time of one update of ``stage``, without communication.

        Its ranks, micro-batch and depth may differ from the plan's.
        """
        computed, optimizer = self._micro_batch(stage) * stage.accumulation, self._optimizer(stage)
        return UpdateSeconds(
            forward=computed / 3, backward=computed * 2 / 3, optimizer=optimizer, data=0.0, other=_HOST_SECONDS
        )

    def _micro_batch(self, stage: StagePlan) -> float:
        flops = stage.flops / (stage.steps * stage.global_batch) * stage.micro_batch
        reached = self._device.peak[stage.precision] * 1e12 * self._device.utilisation * self._units
        return flops / reached + stage.layers * self._device.layer_seconds

    def _optimizer(self, stage: StagePlan) -> float:
        mine = stage.parameters / (stage.ranks if stage.zero_stage else 1)
        touched = mine * _ADAM_BYTES[stage.precision]
        if "optimizer" in offloads(stage.ds_config) and self._device.name != "cpu":
            return touched / _HOST_MEMORY + 2 * mine * (4 if stage.precision == "fp32" else 2) / _HOST_LINK
        return touched / (self._device.memory_bandwidth * self._units)

    def _assumptions(self, plan: Plan, planned: int, cores: int) -> list[str]:
        device, precision = self._device, plan.stages[-1].precision
        each = f"{device.utilisation:.0%} of {device.peak[precision]:g} TFLOPS ({precision})"
        full = f"every sample is {plan.data.sequence_length} tokens long; skipping padding makes it faster"
        source = f"{device.source}; utilisation: {device.utilisation_source}"
        if device.name == "cpu":
            return [f"each of {cores} cores reaches {each}, {source}; {cores / planned:.3g} of them per rank", full]
        fixed = f"plus {device.layer_seconds * 1e3:g} ms per layer and micro-batch"
        memory = f"memory {device.memory_bandwidth / 1e9:,.0f} GB/s ({device.memory_source})"
        return [f"each {device.name} reaches {each}, {source}; {fixed}; {memory}", full]
