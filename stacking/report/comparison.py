"""Compares runs: a chart of held-out loss against wall-clock time and tokens, and a table.

Each run is charged with its whole wall-clock time, including start-ups, transitions and checkpoints, but not
evaluations.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stacking.report import plots
from stacking.report.plots import Axis
from stacking.report.run import Run
from stacking.report.tables import Table, change_label
from stacking.report.timeline import attention_spans, wall_clock
from stacking.run.metrics import Record
from stacking.storage.files import disk_errors, write_atomically
from stacking.terminal.units import count, counted, duration, loss

_PICTURE = "comparison.png"
_HALO = patheffects.withStroke(linewidth=2.5, foreground="white")
"""A white outline that keeps numbers readable on a curve."""


class ChargedClock:
    """Counts the seconds charged to a run, excluding evaluations, measurements of attention and gaps."""

    def __init__(self, run: Run) -> None:
        self._clock = wall_clock(run)
        free = [(record["time"], record["seconds"]) for record in run.records("evaluation")]
        free = sorted(free + [(span.end, span.seconds) for span in attention_spans(run)])
        self._ends: list[float] = [end for end, _ in free]
        self._spent: list[float] = list(accumulate((seconds for _, seconds in free), initial=0.0))

    def __call__(self, time: float) -> float:
        return self._clock(time) - self._spent[bisect_right(self._ends, time)]


def charged_seconds(run: Run) -> float:
    """Returns the seconds charged to the run up to its last update; 0 before the first."""
    trained = run.records("train")
    return ChargedClock(run)(trained[-1]["time"]) if trained else 0.0


def title(run: Run) -> str:
    """Returns ``2 → 12 layers``, or ``12 layers from the start``."""
    depths = [str(stage.layers) for stage in run.plan.stages]
    return f"{' → '.join(depths)} layers" if len(depths) > 1 else f"{counted(int(depths[0]), 'layer')} from the start"


def titles(runs: Sequence[Run]) -> list[str]:
    """Returns a title for each run; equal titles get the folder's name appended."""
    plain = [title(run) for run in runs]
    return [f"{t} ({run.folder.path.name})" if plain.count(t) > 1 else t for t, run in zip(plain, runs, strict=True)]


def comparison_table(runs: Sequence[Run]) -> Table:
    """Lists the steps, tokens, charged wall-clock and latest held-out loss of each run."""
    rows = []
    for name, run in zip(titles(runs), runs, strict=True):
        trained, evaluated = run.records("train"), run.records("evaluation")
        last = trained[-1] if trained else None
        rows.append(
            (
                name,
                f"{last['global_step']:,}" if last else "0",
                count(last["tokens"] if last else 0),
                duration(charged_seconds(run)),
                loss(evaluated[-1]["loss"] if evaluated else None),
            )
        )
    note = "Wall-clock: time up to the last update, including start-ups, transitions and checkpoints, not evaluations"
    return Table(("run", "steps", "tokens", "wall-clock", "held-out loss"), rows, [note])


def comparison_chart(runs: Sequence[Run]) -> str:
    """Draws held-out loss against wall-clock and tokens; returns an SVG element for embedding in a page."""
    return plots.as_svg(lambda: _draw(runs), "comparison")


def write_comparison_picture(runs: Sequence[Run], folder: Path) -> Path:
    """Writes the chart as ``folder/comparison.png``."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _PICTURE, plots.as_png(lambda: _draw(runs)))
    return folder / _PICTURE


def _time_axes(runs: Sequence[Run]) -> list[Axis]:
    """Returns an axis for each run, since each has a clock of its own; the unit is the same."""
    size, unit = plots.unit_of(max(charged_seconds(run) for run in runs), plots.TIMES)

    def axis(clock: ChargedClock) -> Axis:
        return Axis(f"wall-clock without evaluations, {unit}", lambda record: clock(record["time"]) / size, True)

    return [axis(ChargedClock(run)) for run in runs]


def _draw(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained", facecolor="none")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, scales in ((left, _time_axes(runs)), (right, [plots.tokens_axis(*runs)] * len(runs))):
        for run, axis, name, colour in zip(runs, scales, titles(runs), plots.COLOURS * len(runs), strict=False):
            _draw_run(axes, run, axis, name, colour)
            plots.mark_stages(axes, run, axis)
            _label_growths(axes, run, axis)
        axes.set_xlabel(scales[0].label)
        axes.set_xlim(0, 1.04 * axes.get_xlim()[1])
        axes.grid(axis="y", color=plots.PALE, linewidth=0.8)
    _limit(left, runs)
    left.set_ylabel("loss")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(runs), fontsize=10)
    return figure


def _draw_run(axes: Axes, run: Run, axis: Axis, name: str, colour: str) -> None:
    """Draws the held-out loss over the pale training loss, labelled with its final value."""
    window = len(run.records("train")) // 100
    style: dict[str, Any] = {"color": colour, "linewidth": 1.8, "marker": "o", "markersize": 3.5}
    label: str | None = f"{name}, held-out loss"
    for index in range(len(run.metrics)):  # a growth interrupts the lines
        trained, evaluated = (_finite(run.stage_records(index, kind)) for kind in ("train", "evaluation"))
        x, y = plots.points(trained, axis, "loss")
        axes.plot(*plots.thinned(x, plots.smoothed(y, window)), color=colour, alpha=0.3, linewidth=1)
        if not evaluated:
            continue
        x, y = plots.points(evaluated, axis, "loss")
        axes.plot(x, y, label=label, **style)
        label, last = None, (x[-1], y[-1])
    if label is None:
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": (6, 0), "va": "center", "fontsize": 9}
        axes.annotate(f"{last[1]:.2f}", last, color=colour, path_effects=[_HALO], **place)


def _finite(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if math.isfinite(record["loss"])]


def _label_growths(axes: Axes, run: Run, axis: Axis) -> None:
    for index in range(1, plots.stages_begun(run)):
        axes.annotate(
            change_label(run, index),
            (plots.begins(run, axis, index), 0.98),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            xytext=(-4, 0),
            ha="right",
            va="top",
            rotation=90,
            fontsize=9,
        )


def _limit(axes: Axes, runs: Sequence[Run]) -> None:
    """Crops each run's initial drop in loss, which would make the rest look flat."""
    shown = []
    for run in runs:
        held_out, trained = ([r["loss"] for r in _finite(run.records(kind))] for kind in ("evaluation", "train"))
        shown += held_out + plots.smoothed(trained, len(trained) // 100)[len(trained) // 20 :]
    if shown:
        margin = 0.08 * (max(shown) - min(shown)) or 0.5
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
