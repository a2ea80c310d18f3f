"""Draws a report's charts: loss and learning rate against tokens and wall-clock time, with stage changes marked."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stacking.report.run import Run
from stacking.report.tables import change_label
from stacking.report.timeline import wall_clock
from stacking.run.metrics import Record

# The colour-blind-safe palette of Okabe and Ito (2008); greys for everything that is not data.
BLUE, VERMILION, GREY, PALE, INK = "#0072B2", "#D55E00", "#8A8A86", "#ECEBE6", "#33332F"
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00")
"""For the curves of several runs."""
_DOTS: dict[str, Any] = {
    "linestyle": "",
    "marker": "o",
    "markersize": 5,
    "color": VERMILION,
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
}
_CROSSES: dict[str, Any] = {"linestyle": "", "marker": "x", "markersize": 5, "color": VERMILION}
_POINTS = 1500
"""Maximum number of points per curve; more would only make the page larger."""
Units = Sequence[tuple[float, float, str]]
"""Units of an axis, largest first: the least end of the axis with this unit, its size and its name."""
TIMES: Units = ((172800, 86400, "days"), (7200, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))
TOKENS: Units = ((1e9, 1e9, "billions"), (1e6, 1e6, "millions"), (0, 1e3, "thousands"))
_LETTER = 0.066
"""Width of a label's letter including spacing, in inches."""
STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.0,
    "svg.fonttype": "none",
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Axis:
    """Describes a horizontal axis: its label, and the position of a record on it."""

    label: str
    of: Callable[[Record], float]
    transitions: bool
    """Whether transitions between stages have a width on the axis."""


def unit_of(largest: float, units: Units) -> tuple[float, str]:
    """Returns the size and name of the unit for an axis that ends at ``largest``."""
    return next((size, name) for least, size, name in units if largest >= least)


def tokens_axis(*runs: Run) -> Axis:
    """Returns an axis of real tokens that fits all ``runs``."""
    largest = max((record["tokens"] for run in runs for record in run.records("train")[-1:]), default=0)
    size, unit = unit_of(largest, TOKENS)
    return Axis(f"real tokens, {unit}", lambda record: record["tokens"] / size, transitions=False)


def time_axis(run: Run) -> Axis:
    """Returns an axis of the run's wall-clock without gaps."""
    clock = wall_clock(run)
    records = run.records("train") + run.records("evaluation")
    size, unit = unit_of(max((clock(record["time"]) for record in records), default=0.0), TIMES)
    return Axis(f"wall-clock, {unit}", lambda record: clock(record["time"]) / size, transitions=True)


def as_svg(draw: Callable[[], Figure], salt: str) -> str:
    """Draws a figure as an SVG element as wide as the page; ``salt`` makes its ids the same every time."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}):
        buffer = io.StringIO()
        draw().savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    element = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'<svg (.*?)width="[^"]*" height="[^"]*"', r'<svg \1width="100%"', element, count=1)


def as_png(draw: Callable[[], Figure]) -> bytes:
    """Draws a figure as a PNG."""
    with mpl.rc_context(STYLE):
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def chart(run: Run, axis: Axis) -> str:
    """Draws loss above learning rate against ``axis``; returns an SVG element for embedding in a page."""
    return as_svg(lambda: _draw(run, axis), axis.label)


def _draw(run: Run, axis: Axis) -> Figure:
    figure = Figure(figsize=(9.6, 5.2), layout="constrained", facecolor="none")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_loss(upper, run, axis)
    _draw_learning_rate(lower, run, axis)
    mark_stages(lower, run, axis)
    lower.set_xlabel(axis.label)
    return figure


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Averages exponentially over about ``window`` values, in both directions to avoid lag; NaN stays in place."""
    before, after = _trailing_sums(values, window), reversed(_trailing_sums(values[::-1], window))
    return [(x + y) / (n + m) for (x, n), (y, m) in zip(before, after, strict=True)]


def _trailing_sums(values: Sequence[float], window: int) -> list[tuple[float, float]]:
    """Returns, for each value, the exponentially weighted sum up to it and the sum of the weights."""
    keep = 1 - 1 / max(window, 1)
    total, weight, sums = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
            sums.append((total, weight))
        else:
            sums.append((math.nan, 1.0))
    return sums


def _draw_loss(axes: Axes, run: Run, axis: Axis) -> None:
    raw: list[float] = []
    window = len(run.records("train")) // 100
    for stage in run.plan.stages:
        x, y = points(run.stage_records(stage.index, "train"), axis, "loss")
        raw += y
        axes.plot(*thinned(x, y), color=BLUE, alpha=0.22, linewidth=0.8)
        label = None if stage.index else "training"
        axes.plot(*thinned(x, smoothed(y, window)), color=BLUE, linewidth=1.6, label=label)
    held_out = [record for record in run.records("evaluation") if math.isfinite(record["loss"])]
    if held_out:
        axes.plot(*points(held_out, axis, "loss"), **_DOTS, label="held-out")
    bad = [axis.of(record) for record in run.records("train") if not math.isfinite(record["loss"])]
    if bad:
        axes.plot(bad, [0.03] * len(bad), **_CROSSES, transform=axes.get_xaxis_transform(), label="not a number")
    _limit(axes, raw, [record["loss"] for record in held_out])
    mark_stages(axes, run, axis)
    _label_stages(axes, run, axis)
    axes.set_ylabel("loss")
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.legend(loc="upper right", borderaxespad=0.8)


def _draw_learning_rate(axes: Axes, run: Run, axis: Axis) -> None:
    for stage in run.plan.stages:
        x, y = points(run.stage_records(stage.index, "train"), axis, "learning_rate")
        axes.plot(*thinned(x, y), color=INK, linewidth=1.3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    axes.grid(axis="y", color=PALE, linewidth=0.8)


def mark_stages(axes: Axes, run: Run, axis: Axis) -> None:
    """Marks the beginning of each stage with a line, and transitions that have a width with a band."""
    for index in range(1, stages_begun(run)):
        if axis.transitions:
            axes.axvspan(axis.of(run.metrics[index - 1][-1]), begins(run, axis, index), color=PALE, linewidth=0)
        axes.axvline(begins(run, axis, index), color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))


def _label_stages(axes: Axes, run: Run, axis: Axis) -> None:
    """Labels each stage above its beginning, raising a label that would overlap the previous one."""
    left, right = axes.get_xlim()
    width = axes.get_window_extent().width / axes.figure.dpi
    ends: list[float] = []
    for index in range(stages_begun(run)):
        place, label = begins(run, axis, index), change_label(run, index)
        position = (place - left) / (right - left) * width
        level = next((level for level, end in enumerate(ends) if end <= position), len(ends))
        ends[level:] = [position + len(label) * _LETTER]
        height = 1.01 + 0.06 * level
        axes.text(place, height, f" {label}", transform=axes.get_xaxis_transform(), fontsize=9, va="bottom")


def stages_begun(run: Run) -> int:
    """Returns the number of stages that have records so far."""
    return next((index for index, records in enumerate(run.metrics) if not records), len(run.metrics))


def begins(run: Run, axis: Axis, index: int) -> float:
    """Returns where a stage begins: at its first record or, without transition widths, at the previous stage's end."""
    records = run.metrics[index] if axis.transitions or index == 0 else run.metrics[index - 1][-1:]
    return axis.of(records[0])


def points(records: list[Record], axis: Axis, key: str) -> tuple[list[float], list[float]]:
    """Returns the positions of ``records`` on ``axis`` and their values of ``key``."""
    return [axis.of(record) for record in records], [float(record[key]) for record in records]


def _limit(axes: Axes, raw: list[float], held_out: list[float]) -> None:
    """Crops outliers and the first hundredth of a long run, which would make the rest look flat."""
    finite = [value for value in raw if math.isfinite(value)]
    late = sorted(finite[len(finite) // 100 :])
    outliers = len(late) // 500
    shown = late[outliers : len(late) - outliers] + held_out[len(held_out) // 100 :]
    if shown:
        margin = 0.06 * (max(shown) - min(shown)) or 0.5
        axes.set_ylim(min(shown) - margin, max(shown) + margin)


def thinned(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """Keeps every n-th point, at most ``_POINTS`` in total, and always the last one."""
    stride = max(1, math.ceil(len(x) / _POINTS))
    keep = sorted({*range(0, len(x), stride), *([len(x) - 1] if x else [])})
    return [x[i] for i in keep], [y[i] for i in keep]
