"""Reads the curve of a run, with the wall-clock as it was and as rebuilt from step times measured separately.

On a shared machine, the raw wall-clock also measures how busy the others were. The rebuilt one is, for every stage, its
updates times the median seconds of an update, measured in alternation with all other stages of the comparison, plus
the stage's launch as the run measured it: from the last update of the stage before to the first record of this one,
less the updates in it. A launch thus holds the last checkpoint of the stage before, consolidation, growth, start-up and
compilation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stacking.compare.curve import Point
from stacking.report.comparison import ChargedClock
from stacking.report.run import Run


def curve_of(run: Run, step_seconds: Sequence[float] | None = None) -> tuple[Point, ...]:
    """Returns the held-out evaluations of a run, oldest first; those with losses that are not finite are left out.

    Args:
        step_seconds: the median seconds of an update, per stage; None: not measured yet.
    """
    clock = ChargedClock(run)
    bases = _rebuilt_beginnings(run, clock, step_seconds) if step_seconds else None
    curve = []
    for record in run.records("evaluation"):
        index, step = record["stage"], record["step"]
        if not math.isfinite(record["loss"]):
            continue
        curve.append(
            Point(
                loss=record["loss"],
                mlm_loss=record["mlm_loss" if "mlm_loss" in record else "loss"],
                wall=clock(record["time"]),
                rebuilt=bases[index] + step * step_seconds[index] if bases and step_seconds else None,
                flops=run.plan.flops_done(index, step),
                tokens=record["tokens"],
                layers=run.plan.stages[index].layers,
            )
        )
    return tuple(curve)


def _launches(run: Run, clock: ChargedClock, step_seconds: Sequence[float]) -> list[float]:
    """Returns the seconds between the updates of each trained stage and those of the stage before it."""
    found, before = [], 0.0
    for stage, seconds in zip(run.plan.stages, step_seconds, strict=True):
        trained = run.stage_records(stage.index, "train")
        if not trained:
            break
        first = trained[0]
        found.append(max(clock(first["time"]) - before - first["step"] * seconds, 0.0))
        before = clock(trained[-1]["time"])
    return found


def _rebuilt_beginnings(run: Run, clock: ChargedClock, step_seconds: Sequence[float]) -> list[float]:
    """Returns the rebuilt wall-clock at update 0 of each trained stage, its launch included."""
    beginnings, total = [], 0.0
    for stage, launch in zip(run.plan.stages, _launches(run, clock, step_seconds), strict=False):
        total += launch
        beginnings.append(total)
        total += stage.steps * step_seconds[stage.index]
    return beginnings
