"""Derives the printed numbers from measurements: rates, shares of the peak, ratios."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from stacking.bench.trial import Measurement, Trial, TrialResult


@dataclass(frozen=True)
class Derived:
    """The numbers of one contender that are printed."""

    seconds_per_step: float
    """Median over repeats of the mean per repeat."""
    sequences_per_second: float
    tokens_per_second: float
    """Including padding; median over the repeats, like all rates."""
    real_tokens_per_second: float
    spread: tuple[float, float]
    """Lowest and highest ``real_tokens_per_second`` of a repeat."""
    pad_fraction: float
    tflops: float
    """Model FLOPs per second, in 10¹²."""
    mfu: float | None
    """Share of the peak of all devices; None if the peak is unknown."""
    executed_tflops: float | None
    """Executed FLOPs per second, in 10¹²; None if they are not counted."""
    executed_share: float | None
    """Their share of the peak."""


def derive(measurement: Measurement, peak_tflops: float | None) -> Derived:
    """Computes the rates of one contender.

    Each rate is steps per second times the average content of a step: repeats hold different samples, and sequence
    lengths that vary between them must not look like speed.
    """
    steps = len(measurement.step_seconds) // measurement.repeats
    rates = [steps / seconds for seconds in _by_repeat(measurement.step_seconds, measurement.repeats)]
    per_second, real = median(rates), measurement.real_tokens_per_step
    tflops = per_second * measurement.flops_per_step / 1e12
    counted = measurement.executed_flops_per_step
    executed = None if counted is None else per_second * counted / 1e12
    return Derived(
        seconds_per_step=1 / per_second,
        sequences_per_second=per_second * measurement.sequences_per_step,
        tokens_per_second=per_second * measurement.tokens_per_step,
        real_tokens_per_second=per_second * real,
        spread=(min(rates) * real, max(rates) * real),
        pad_fraction=1 - real / measurement.tokens_per_step,
        tflops=tflops,
        mfu=tflops / peak_tflops if peak_tflops else None,
        executed_tflops=executed,
        executed_share=executed / peak_tflops if peak_tflops and executed is not None else None,
    )


def ratios(derived: dict[str, Derived]) -> dict[str, float]:
    """Returns the first contender's real tokens/s relative to every other's: ratios of medians."""
    first, *others = derived
    return {other: derived[first].real_tokens_per_second / derived[other].real_tokens_per_second for other in others}


@dataclass(frozen=True)
class StageResult:
    """A trial and its result."""

    trial: Trial
    result: TrialResult

    @property
    def derived(self) -> dict[str, Derived]:
        """Returns the derived numbers by contender, in the trial's order."""
        peak = self.result.hardware.get("peak_tflops")
        measured = self.result.measurements
        return {name: derive(measured[name], peak) for name in self.trial.contenders if name in measured}

    def as_dict(self) -> dict[str, Any]:
        """Returns the stage's part of the JSON output."""
        plan, stage, derived = self.trial.plan, self.trial.planned, self.derived
        return {
            "name": stage.name,
            "layers": stage.layers,
            "hidden": plan.model.hidden,
            "sequence_length": plan.data.sequence_length,
            "vocabulary": plan.model.vocabulary,
            "parameters": stage.parameters,
            "precision": stage.precision,
            "micro_batch": stage.micro_batch,
            "accumulation": stage.accumulation,
            "ranks": stage.ranks,
            "zero_stage": stage.zero_stage,
            "dropout": plan.model.dropout,
            "warmup_steps": self.trial.warmup,
            "data": self._data,
            "outcome": self.result.outcome,
            "message": self.result.message,
            "measurements": {
                name: {**measurement.model_dump(mode="json"), **asdict(derived[name])}
                for name, measurement in self.result.measurements.items()
            },
            "ratio": ratios(derived) if derived else {},
            "lost": self.result.lost,
        }

    @property
    def _data(self) -> str:
        if self.trial.plan.data.path is not None:
            return self.trial.plan.data.samples
        return "synthetic, ragged" if self.trial.ragged else "synthetic, full length"


def as_json(stages: list[StageResult], name: str) -> dict[str, Any]:
    """Returns the content of `stacking bench --json`; `stacking.estimate.bench_file` reads it."""
    hardware = next((stage.result.hardware for stage in stages if stage.result.hardware), {})
    return {
        "format": 1,
        "kind": "bench",
        "name": name,
        "hardware": hardware,
        "stages": [stage.as_dict() for stage in stages],
    }


def _by_repeat(values: tuple[float, ...], repeats: int) -> list[float]:
    """Returns the sums of ``repeats`` equal parts."""
    size = len(values) // repeats
    return [sum(values[at : at + size]) for at in range(0, size * repeats, size)]
