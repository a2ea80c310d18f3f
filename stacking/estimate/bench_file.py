"""Reads the output of `stacking bench --json` for a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stacking.config.reading import read_json_mapping
from stacking.errors import UserError
from stacking.storage.frozen import FrozenPart, record_of

_OURS = "stacking"
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_REMEDY = "give the output of `stacking bench RECIPE --json`"


class Split(FrozenPart):
    """Seconds of an update's parts, each timed with a synchronisation after it."""

    data: Seconds
    forward: Seconds
    backward: Seconds
    communication: Seconds
    optimizer: Seconds


class Measured(FrozenPart):
    """One contender's result for one stage."""

    split: Split
    startup_seconds: Seconds
    warmup_seconds: Seconds
    seconds_per_step: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Of one update: the mean, because a run adds up means; the median of these over the repeats drops outliers."""


class MeasuredStage(FrozenPart):
    """The measurements of one stage."""

    layers: int = Field(gt=0)
    hidden: int
    sequence_length: int
    precision: str
    micro_batch: int = Field(gt=0)
    accumulation: int = Field(gt=0)
    ranks: int = Field(gt=0)
    zero_stage: int
    vocabulary: int
    data: str
    """The kind of samples, or ``synthetic``."""
    warmup_steps: int
    """Number of updates in ``warmup_seconds``."""
    measurements: dict[str, Measured]

    @property
    def ours(self) -> Measured:
        """The measurement of this program's own step."""
        return self.measurements[_OURS]

    @property
    def warm_up(self) -> float:
        """Seconds that the first updates took in excess of the others."""
        return max(self.ours.warmup_seconds - self.warmup_steps * self.ours.seconds_per_step, 0.0)


class BenchFile(FrozenPart):
    """A file that `stacking bench --json` wrote."""

    path: Path
    hardware: dict[str, Any]
    stages: tuple[MeasuredStage, ...]


def read_bench(path: Path) -> BenchFile:
    """Returns the stages that were measured with this program's own step.

    Raises:
        UserError: it is not a benchmark file, or holds no such stage.
    """
    content = read_json_mapping(path)
    if (content.get("format"), content.get("kind")) != (1, "bench"):
        raise UserError(path, "is not the JSON of a benchmark", _REMEDY)
    fields = {"path": path, **content, "stages": _with_ours(content.get("stages"))}
    found = record_of(BenchFile, fields, path, "the JSON of a benchmark", _REMEDY)
    if not found.stages:
        raise UserError(path, f"holds no stage that was measured with {_OURS!r}", _REMEDY)
    return found


def _with_ours(stages: Any) -> Any:
    """Drops stages that ran out of memory and contenders other than this program's step."""
    if not isinstance(stages, list):
        return stages
    kept = []
    for stage in stages:
        measurements = stage.get("measurements") if isinstance(stage, dict) else None
        if isinstance(measurements, dict) and not measurements.get(_OURS):
            continue
        kept.append({**stage, "measurements": {_OURS: measurements[_OURS]}} if measurements else stage)
    return kept
