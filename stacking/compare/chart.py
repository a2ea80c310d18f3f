"""Draws the curves of a comparison: held-out loss against one measure of cost, with every growth marked."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import groupby

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stacking.compare.curve import Measure, Point
from stacking.compare.result import Result
from stacking.report.plots import COLOURS, PALE, STYLE, inline


def chart(result: Result, measure: Measure, label: str, unit: float) -> str:
    """Returns the chart as an SVG element for embedding in a page.

    Args:
        unit: the axis shows the measure divided by this.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"compare-{measure}"}):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained", facecolor="none")
        axes = figure.subplots()
        for arm, colour in zip(result.arms, COLOURS * len(result.arms), strict=False):
            for run in arm.runs:
                _draw(axes, run.curve, lambda point: getattr(point, measure) / unit, colour, run is arm.runs[0])
            if arm.runs:
                axes.plot([], [], color=colour, linewidth=1.8, label=arm.arm.name)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.set_ylabel("held-out loss")
        axes.grid(axis="y", color=PALE, linewidth=0.8)
        axes.legend(loc="upper right", borderaxespad=0.8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue())


def _draw(axes: Axes, curve: Sequence[Point], position: Callable[[Point], float], colour: str, named: bool) -> None:
    """Draws one run: a line per depth, joined by dotted lines."""
    before: list[Point] = []
    for layers, group in groupby(curve, key=lambda point: point.layers):
        points = list(group)
        axes.plot([position(p) for p in points], [p.loss for p in points], color=colour, linewidth=1.4, alpha=0.85)
        if before:
            joint = [before[-1], points[0]]
            axes.plot([position(p) for p in joint], [p.loss for p in joint], color=colour, linewidth=1, linestyle=":")
            place = (position(before[-1]), before[-1].loss)
            axes.plot(*place, marker="o", markersize=4, color=colour)
            if named:
                text = f"{before[-1].layers} → {layers}"
                axes.annotate(text, place, textcoords="offset points", xytext=(4, -11), fontsize=9, color=colour)
        before = points
