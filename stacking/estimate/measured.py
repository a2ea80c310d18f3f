"""Estimates the computation time of one rank per update from a benchmark.

A stage measured as planned takes the measured time. For other stages:

    micro-batch   linear through two measured ones; else proportional, plus a fixed time per layer
    depth         linear through two measured depths; else by the ratio of their FLOPs
    ranks         the computation of a micro-batch is unchanged; ZeRO divides Adam's work; the network model applies
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stacking.errors import UserError
from stacking.estimate.bench_file import BenchFile, MeasuredStage
from stacking.estimate.communication import bytes_per_update
from stacking.estimate.compute import Beginning, UpdateSeconds
from stacking.hardware.presets import DeviceClass
from stacking.model.size import count_parameters
from stacking.planning.cost import stage_flops
from stacking.planning.plan import Plan, StagePlan

_UNEXPLAINED = 0.2
"""If an update exceeds the sum of its parts, which are slower alone, by this share, the measurement was disturbed."""


class Benchmark:
    """Computation speed as measured by `stacking bench`.

    Args:
        device: the planned device class; its fixed time per layer applies if only one micro-batch was measured.

    Raises:
        UserError: nothing in the files fits the plan's model; names what differs.
    """

    def __init__(self, plan: Plan, files: Sequence[BenchFile], device: DeviceClass) -> None:
        self._plan, self._device = plan, device
        self._entries = [entry for file in files for entry in _fitting(plan, file)]
        self.assumptions = tuple(self._assumptions(files))

    def work(self, stage: StagePlan) -> UpdateSeconds:
        """Returns the time of one update of ``stage``, without communication."""
        entry = self._nearest(stage)
        parts, share = _Parts(entry), stage.micro_batch * stage.accumulation
        computed = stage.accumulation * self._micro_batch(stage)
        measured = parts.forward + parts.backward
        forward = parts.forward / measured if measured else 1 / 3
        return UpdateSeconds(
            forward=computed * forward,
            backward=computed * (1 - forward),
            optimizer=parts.optimizer * _shard(stage) / _shard(self._as_measured(stage, entry)),
            data=parts.data * share / (entry.micro_batch * entry.accumulation),
            other=parts.other * stage.accumulation / entry.accumulation,
        )

    def communication(self, stage: StagePlan) -> float | None:
        """Returns the measured communication seconds of an update of exactly this stage; None: unknown."""
        entry = self._nearest(stage)
        if (entry.ranks, entry.zero_stage) != (stage.ranks, stage.zero_stage):
            return None
        there = bytes_per_update(self._as_measured(stage, entry))
        return _Parts(entry).communication * (bytes_per_update(stage) / there if there else 1.0)

    def beginning(self, stage: StagePlan) -> Beginning:
        """Returns the measured start of the stage, or of the measured one most similar to it."""
        entry = self._nearest(stage)
        return Beginning(entry.ours.startup_seconds, entry.warm_up)

    def _nearest(self, stage: StagePlan) -> MeasuredStage:
        """Returns the measurement most similar to ``stage``; the later one of two equal ones."""

        def distance(entry: MeasuredStage) -> tuple[float, ...]:
            return (
                abs(entry.layers - stage.layers),
                entry.zero_stage != stage.zero_stage,
                abs(entry.ranks - stage.ranks),
                abs(entry.micro_batch - stage.micro_batch),
                abs(entry.accumulation - stage.accumulation),
            )

        return min(reversed(self._entries), key=distance)

    def _micro_batch(self, stage: StagePlan) -> float:
        """Returns the seconds of forward and backward for one micro-batch of ``stage``."""
        depths = sorted({entry.layers for entry in self._entries}, key=lambda layers: abs(layers - stage.layers))
        if depths[0] == stage.layers:
            return self._at_depth(stage.layers, stage.micro_batch)
        if len(depths) > 1:
            return _line(stage.layers, depths[:2], lambda layers: self._at_depth(layers, stage.micro_batch))
        return self._at_depth(depths[0], stage.micro_batch) * self._flops(stage.layers) / self._flops(depths[0])

    def _at_depth(self, layers: int, micro_batch: int) -> float:
        """Returns the same for a measured depth."""
        seconds = {}
        for entry in self._entries:
            if entry.layers == layers:
                parts = _Parts(entry)
                seconds[entry.micro_batch] = (parts.forward + parts.backward) / entry.accumulation
        near = sorted(seconds, key=lambda micro: abs(micro - micro_batch))
        if near[0] == micro_batch:
            return seconds[micro_batch]
        one = seconds[near[0]]
        if len(near) > 1:
            line = _line(micro_batch, near[:2], lambda micro: seconds[micro])
            return max(line, one * min(1.0, micro_batch / near[0]))
        fixed = min(layers * self._device.layer_seconds, one / 2)
        return fixed + (one - fixed) * micro_batch / near[0]

    def _flops(self, layers: int) -> float:
        data = self._plan.data
        return stage_flops(self._plan.model.with_layers(layers), 1, data.sequence_length, data.mask_probability)

    def _as_measured(self, stage: StagePlan, entry: MeasuredStage) -> StagePlan:
        """Returns ``stage`` with the depth and the batch of ``entry``."""
        changes = entry.model_dump(include={"layers", "micro_batch", "accumulation", "ranks", "zero_stage"})
        if entry.layers != stage.layers:
            changes["parameters"] = count_parameters(self._plan.model.with_layers(entry.layers))
        return stage.model_copy(update=changes)

    def _assumptions(self, files: Sequence[BenchFile]) -> list[str]:
        depths = ", ".join(str(layers) for layers in sorted({entry.layers for entry in self._entries}))
        ranks = ", ".join(str(ranks) for ranks in sorted({entry.ranks for entry in self._entries}))
        found = [f"measured: {', '.join(str(file.path) for file in files)} ({depths} layers, {ranks} ranks)"]
        if synthetic := {entry.data for entry in self._entries if entry.data.startswith("synthetic")}:
            found.append(f"the measured samples were {' and '.join(sorted(synthetic))}")
        if self._device.name == "cpu":
            found.append("each rank keeps the number of cores it was measured with, for any number of ranks")
        for stage in self._plan.stages:
            entry = self._nearest(stage)
            same = ("layers", "ranks", "micro_batch", "accumulation", "zero_stage")
            other = [name for name in same if getattr(entry, name) != getattr(stage, name)]
            if _Parts(entry).other > _UNEXPLAINED * entry.ours.seconds_per_step:
                found.append(f"{stage.name}: the parts explain too little of the measured update; measure again")
            if other:
                there = ", ".join(f"{name.replace('_', ' ')} {getattr(entry, name)}" for name in other)
                found.append(f"{stage.name} is derived from a measurement with {there}")
        return found


class _Parts:
    """Seconds of one measured update; the parts add up to the median of whole updates.

    The parts were timed one after the other. Their excess over an update without synchronisation is communication that
    was hidden by computation; if the computation alone exceeds the update, all parts are scaled down to it.
    """

    def __init__(self, entry: MeasuredStage) -> None:
        whole, split = entry.ours.seconds_per_step, entry.ours.split
        communication = split.communication if entry.ranks > 1 else 0.0
        own = split.forward + split.backward + split.optimizer + split.data
        scale = 1.0
        if own < whole:
            communication = min(communication, whole - own)
        else:
            scale = whole / (own + communication)
        self.forward, self.backward = split.forward * scale, split.backward * scale
        self.optimizer, self.data = split.optimizer * scale, split.data * scale
        self.communication = communication * scale
        self.other = max(whole - (own + communication) * scale, 0.0)


def _fitting(plan: Plan, file: BenchFile) -> list[MeasuredStage]:
    """Returns the stages of ``file`` with the plan's width, sequence length and precision.

    Raises:
        UserError: there is none.
    """
    precisions = {stage.precision for stage in plan.stages}
    wanted: dict[str, set[Any]] = {
        "hidden": {plan.model.hidden},
        "sequence_length": {plan.data.sequence_length},
        "precision": precisions,
        "vocabulary": {plan.model.vocabulary},
    }
    left = list(file.stages)
    for name, values in wanted.items():
        fitting = [entry for entry in left if getattr(entry, name) in values]
        if not fitting:
            found = " and ".join(sorted({str(getattr(entry, name)) for entry in left}))
            expected = " or ".join(sorted(map(str, values)))
            problem = f"was measured with {name.replace('_', ' ')} {found}, not {expected}"
            raise UserError(file.path, problem, f"measure this recipe: stacking bench {plan.recipe} --json")
        left = fitting
    return left


def _shard(stage: StagePlan) -> float:
    """Returns the number of parameters that one rank's optimizer updates."""
    return stage.parameters / (stage.ranks if stage.zero_stage else 1)


def _line(at: float, points: Sequence[int], value: Callable[[int], float]) -> float:
    """Returns the line through two points; when extrapolated, it never drops below half of the lower point."""
    (x0, x1), (y0, y1) = points, (value(points[0]), value(points[1]))
    return max(y0 + (y1 - y0) * (at - x0) / (x1 - x0), min(y0, y1) * min(1.0, at / min(x0, x1)) / 2)
