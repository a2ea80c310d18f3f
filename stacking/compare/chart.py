"""Draws the curves of a comparison: held-out loss against one measure of cost, with every growth marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stacking.compare.curve import Measure, Point, Spread
from stacking.compare.result import ArmResult, Result
from stacking.report.plots import COLOURS, GREY, PALE, TIMES, TOKENS, Units, as_png, as_svg, unit_of

AXES: dict[Measure, tuple[str, Units]] = {
    "wall": ("wall-clock", TIMES),
    "rebuilt": ("rebuilt wall-clock", TIMES),
    "flops": ("FLOPs", ((2e18, 1e18, "10¹⁸"), (2e15, 1e15, "10¹⁵"), (2e12, 1e12, "10¹²"), (0, 1e9, "10⁹"))),
    "tokens": ("tokens", TOKENS),
}
"""Per measure: its name and its units, largest first."""
_DOTS: dict[str, Any] = {"marker": "o", "markersize": 4.5, "linewidth": 1.4, "capsize": 3}


def chart(result: Result, measure: Measure) -> str | None:
    """Returns the chart of a measure as an SVG element for embedding in a page; None if some run lacks the measure."""
    if not is_known(result, measure):
        return None
    return as_svg(lambda: _draw_chart(result, measure), f"compare-{measure}")


def _draw_chart(result: Result, measure: Measure) -> Figure:
    figure = Figure(figsize=(9.6, 4.4), layout="constrained", facecolor="none")
    _fill(figure.subplots(), result, measure)
    return figure


def picture(result: Result) -> bytes:
    """Returns a PNG of the losses against time, rebuilt if it is known, and against tokens."""
    return as_png(lambda: _draw_picture(result))


def _draw_picture(result: Result) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _fill(left, result, "rebuilt" if is_known(result, "rebuilt") else "wall")
    _fill(right, result, "tokens")
    right.set_ylabel("")
    right.get_legend().remove()
    return figure


def lengths_picture(results: Sequence[Result]) -> bytes:
    """Returns a PNG of the final losses and the speed-ups against the tokens of trainings of several lengths."""
    return as_png(lambda: _draw_lengths(results))


def _draw_lengths(results: Sequence[Result]) -> Figure:
    time: Measure = "rebuilt" if all(is_known(result, "rebuilt") for result in results) else "wall"
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    losses, speedups = figure.subplots(1, 2)
    for number, first in enumerate(results[0].arms):
        arms = [result.arms[number] for result in results]
        style = {**_DOTS, "color": COLOURS[number % len(COLOURS)]}
        _draw_spreads(losses, arms, [arm.final_loss for arm in arms], label=first.arm.name, **style)
        if number:
            _draw_spreads(speedups, arms, [arm.final.speedup[time] for arm in arms], **style)
    losses.set_ylabel("final held-out loss")
    losses.legend(loc="upper right")
    speedups.set_ylabel(f"speed-up, {AXES[time][0]}")
    speedups.axhline(1, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    speedups.set_ylim(bottom=0)
    _share_tokens_axis((losses, speedups), [_tokens(arm) for result in results for arm in result.arms])
    return figure


def _share_tokens_axis(both: Sequence[Axes], tokens: Sequence[float]) -> None:
    """Gives axes the same logarithmic scale of tokens, with a tick at every length."""
    name, units = AXES["tokens"]
    size, unit = unit_of(max(tokens), units)
    ticks = sorted(set(tokens))
    for axes in both:
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(tokens) / 1.1, max(tokens) * 1.1)
        axes.set_xticks(ticks, [f"{tick / size:.3g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(f"{name} of the whole training, {unit}")
        axes.grid(axis="y", color=PALE, linewidth=0.8)


def _tokens(arm: ArmResult) -> float:
    return float(sum(stage.tokens for stage in arm.arm.plan.stages))


def _draw_spreads(axes: Axes, arms: Sequence[ArmResult], spreads: Sequence[Spread], **style: Any) -> None:
    """Draws means over the seeds, with bars from the lowest to the highest; incomplete ones are left out."""
    whole = [(_tokens(arm), spread) for arm, spread in zip(arms, spreads, strict=True) if spread.mean is not None]
    x, means = [place for place, _ in whole], [spread.mean or 0.0 for _, spread in whole]
    below = [mean - min(spread.known) for mean, (_, spread) in zip(means, whole, strict=True)]
    above = [max(spread.known) - mean for mean, (_, spread) in zip(means, whole, strict=True)]
    axes.errorbar(x, means, yerr=[below, above], **style)


def is_known(result: Result, measure: Measure) -> bool:
    """Returns whether every evaluation of every run has the measure."""
    return None not in (values := _values(result, measure)) and bool(values)


def _values(result: Result, measure: Measure) -> list[float]:
    return [getattr(point, measure) for arm in result.arms for run in arm.runs for point in run.curve]


def _fill(axes: Axes, result: Result, measure: Measure) -> None:
    name, units = AXES[measure]
    size, unit = unit_of(max(_values(result, measure)), units)
    for arm, colour in zip(result.arms, COLOURS * len(result.arms), strict=False):
        for run in arm.runs:
            _draw(axes, run.curve, lambda point: getattr(point, measure) / size, colour, run is arm.runs[0])
        if arm.runs:
            axes.plot([], [], color=colour, linewidth=1.8, label=arm.arm.name)
    axes.set_xlabel(f"{name}, {unit}")
    axes.set_xlim(left=0)
    axes.set_ylabel("held-out loss")
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.legend(loc="upper right", borderaxespad=0.8)


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
