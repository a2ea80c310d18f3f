"""Compares runs: a chart of held-out loss against wall-clock time and tokens, and a table.

Each run is charged with its whole wall-clock time, including start-ups, transitions and checkpoints, but not
evaluations.
"""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stacking.report.plots import COLOURS, GREY, PALE, STYLE, inline, smoothed, thinned
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
        """Returns the seconds charged up to the unix time ``time``."""
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
    """Returns a table with one row per run: its training time, steps, tokens and loss."""
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
    """Returns the chart as an SVG element for embedding in a page."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": "comparison"}):
        buffer = io.StringIO()
        _draw(runs).savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue())


def write_comparison_picture(runs: Sequence[Run], folder: Path) -> Path:
    """Writes the chart as ``folder/comparison.png``."""
    with mpl.rc_context(STYLE):
        buffer = io.BytesIO()
        _draw(runs).savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _PICTURE, buffer.getvalue())
    return folder / _PICTURE


class _Scale(NamedTuple):
    """Defines a horizontal axis: the position of a record on it, and the unit."""

    label: str
    size: float
    in_seconds: bool

    def of(self, run: Run, records: Sequence[Record]) -> list[float]:
        """Returns the positions of the records."""
        clock = ChargedClock(run)
        return [(clock(r["time"]) if self.in_seconds else r["tokens"]) / self.size for r in records]


def _time_scale(runs: Sequence[Run]) -> _Scale:
    longest = max(charged_seconds(run) for run in runs)
    units = ((172800, 86400, "days"), (7200, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))
    size, name = next((size, name) for least, size, name in units if longest >= least)
    return _Scale(f"wall-clock without evaluations, {name}", size, True)


def _token_scale(runs: Sequence[Run]) -> _Scale:
    most = max((record["tokens"] for run in runs for record in run.records("train")[-1:]), default=0)
    units = ((1e9, "tokens, billions"), (1e6, "tokens, millions"), (1e3, "tokens, thousands"), (0, "tokens"))
    size, label = next(unit for unit in units if most >= unit[0])
    return _Scale(label, size or 1.0, False)


def _draw(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained", facecolor="none")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, scale in ((left, _time_scale(runs)), (right, _token_scale(runs))):
        for run, name, colour in zip(runs, titles(runs), COLOURS * len(runs), strict=False):
            _draw_run(axes, run, scale, name, colour)
            _mark_growths(axes, run, scale)
        axes.set_xlabel(scale.label)
        axes.set_xlim(0, 1.04 * axes.get_xlim()[1])
        axes.grid(axis="y", color=PALE, linewidth=0.8)
    _limit(left, runs)
    left.set_ylabel("loss")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(runs), fontsize=10)
    return figure


def _draw_run(axes: Axes, run: Run, scale: _Scale, name: str, colour: str) -> None:
    """Draws the held-out loss over the pale training loss, labelled with its final value."""
    window = len(run.records("train")) // 100
    style: dict[str, Any] = {"color": colour, "linewidth": 1.8, "marker": "o", "markersize": 3.5}
    label: str | None = f"{name}, held-out loss"
    for index in range(len(run.metrics)):  # a growth interrupts the lines
        trained, evaluated = (_finite(run.stage_records(index, kind)) for kind in ("train", "evaluation"))
        curve = smoothed([r["loss"] for r in trained], window)
        axes.plot(*thinned(scale.of(run, trained), curve), color=colour, alpha=0.3, linewidth=1)
        if not evaluated:
            continue
        x, y = scale.of(run, evaluated), [r["loss"] for r in evaluated]
        axes.plot(x, y, label=label, **style)
        label, last = None, (x[-1], y[-1])
    if label is None:
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": (6, 0), "va": "center", "fontsize": 9}
        axes.annotate(f"{last[1]:.2f}", last, color=colour, path_effects=[_HALO], **place)


def _finite(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if math.isfinite(record["loss"])]


def _mark_growths(axes: Axes, run: Run, scale: _Scale) -> None:
    """Marks the beginning of each later stage with a labelled line, and on a time axis its transition with a band."""
    for index, records in enumerate(run.metrics[1:], start=1):
        if not records:
            break
        ended, begins = scale.of(run, [run.metrics[index - 1][-1], records[0]])
        if scale.in_seconds:
            axes.axvspan(ended, begins, color=PALE, linewidth=0)
        place = begins if scale.in_seconds else ended
        axes.axvline(place, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            change_label(run, index),
            (place, 0.98),
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
        shown += held_out + smoothed(trained, len(trained) // 100)[len(trained) // 20 :]
    if shown:
        margin = 0.08 * (max(shown) - min(shown)) or 0.5
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
