"""Reads the output of `stacking bench --json` for a prediction."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Any

from pydantic import Field, ValidationError

from stacking.config.reading import read_json_mapping
from stacking.errors import UserError
from stacking.storage.frozen import FrozenPart

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

    step_seconds: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(min_length=1)
    split: Split
    startup_seconds: Seconds
    warmup_seconds: Seconds = 0.0
    seconds_per_step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Median over repeats of the mean per repeat."""

    @property
    def seconds(self) -> float:
        """Seconds of one update: the mean, because a run adds up means; the median over repeats drops outliers."""
        return self.seconds_per_step or median(self.step_seconds)


class MeasuredStage(FrozenPart):
    """One measured stage."""

    layers: int = Field(gt=0)
    hidden: int
    sequence_length: int
    precision: str
    micro_batch: int = Field(gt=0)
    accumulation: int = Field(gt=0)
    ranks: int = Field(gt=0)
    zero_stage: int
    vocabulary: int | None = None
    data: str = ""
    """The kind of samples, or ``synthetic``."""
    warmup_steps: int = 0
    """Number of updates in ``warmup_seconds``."""
    measurements: dict[str, Measured]

    @property
    def ours(self) -> Measured:
        return self.measurements[_OURS]

    @property
    def warm_up(self) -> float:
        """Seconds that the first updates took in excess of the others."""
        usual = self.warmup_steps * self.ours.seconds
        return max(self.ours.warmup_seconds - usual, 0.0) if self.warmup_steps else 0.0


class BenchFile(FrozenPart):
    """A whole file."""

    path: Path
    hardware: dict[str, Any]
    stages: tuple[MeasuredStage, ...]


def read_bench(path: Path) -> BenchFile:
    """Return the stages that were measured with this program's own step.

    Raises:
        UserError: it is not a benchmark file, or holds no such stage.
    """
    content = read_json_mapping(path)
    if (content.get("format"), content.get("kind")) != (1, "bench"):
        raise UserError(path, "is not the JSON of a benchmark", _REMEDY)
    try:
        found = BenchFile.model_validate({"path": path, **content, "stages": _with_ours(content.get("stages"))})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(path, f"is not the JSON of a benchmark ({place}: {first['msg']})", _REMEDY) from None
    if not found.stages:
        raise UserError(path, f"holds no stage that was measured with {_OURS!r}", _REMEDY)
    return found


def _with_ours(stages: Any) -> Any:
    """Drop stages that ran out of memory and contenders other than this program's step."""
    if not isinstance(stages, list):
        return stages
    kept = []
    for stage in stages:
        measurements = stage.get("measurements") if isinstance(stage, dict) else None
        if isinstance(measurements, dict) and not measurements.get(_OURS):
            continue
        kept.append({**stage, "measurements": {_OURS: measurements[_OURS]}} if measurements else stage)
    return kept
