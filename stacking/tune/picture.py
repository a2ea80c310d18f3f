"""Plots the search: speed over micro-batch, one line per setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from stacking.planning.plan import Plan
from stacking.report.plots import GREY, INK, PALE, VERMILION, as_png
from stacking.tune.candidate import Setting
from stacking.tune.write import TunedStage

# The palette of Okabe and Ito (2008) without its vermilion, which marks failures; then more for many settings.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#5B4B8A", "#8C6D1F", "#33332F", "#7FA650", "#A0465F", "#2B7A78", "#B07CC6"),
)
_MARKS: Mapping[str, dict[str, Any]] = {
    "chosen": {"marker": "*", "markersize": 17, "markeredgecolor": INK, "markeredgewidth": 0.9, "color": GREY},
    "the recipe's own": {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK},
    "ran out of memory": {"marker": "X", "markersize": 8, "color": VERMILION},
    "failed": {"marker": "v", "markersize": 7, "color": VERMILION},
}


def picture(plan: Plan, tuned: Sequence[TunedStage]) -> bytes:
    """Returns a PNG with a panel per stage."""
    return as_png(lambda: _draw(plan, tuned))


def _draw(plan: Plan, tuned: Sequence[TunedStage]) -> Figure:
    tried = [tried for one in tuned for tried in one.found.tried if tried.result != "pruned"]
    settings = dict.fromkeys(one.candidate.setting for one in tried)
    colours = {setting: _COLOURS[number % len(_COLOURS)] for number, setting in enumerate(settings)}
    figure = Figure(figsize=(max(6.4, 4.9 * len(tuned)), 4.5 + 0.15 * len(settings)), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(tuned), squeeze=False)[0], tuned, strict=True):
        _draw_stage(axes, one, colours)
    figure.axes[0].set_ylabel("tokens/s")
    figure.suptitle(f"{plan.name}: search for the fastest setting of each stage", fontsize=12, color=INK)
    lines = [Line2D([], [], color=colour, marker="o", label=setting.words) for setting, colour in colours.items()]
    marks = [Line2D([], [], linestyle="", label=words, **mark) for words, mark in _MARKS.items()]
    figure.legend(handles=[*lines, *marks], loc="outside lower center", ncols=1 + len(tuned), fontsize=9)
    return figure


def _draw_stage(axes: Axes, one: TunedStage, colours: Mapping[Setting, str]) -> None:
    for setting, colour in colours.items():
        measured = [tried for tried in one.found.measured if tried.candidate.setting == setting]
        points = sorted((tried.candidate.micro_batch, tried.tokens_per_second) for tried in measured)
        axes.plot([x for x, _ in points], [y for _, y in points], color=colour, marker="o", markersize=5.5)
    for result, words in (("out-of-memory", "ran out of memory"), ("failed", "failed")):
        places = [tried.candidate.micro_batch for tried in one.found.tried if tried.result == result]
        axes.plot(places, [0.03] * len(places), linestyle="", **_MARKS[words], transform=axes.get_xaxis_transform())
    base = one.found.of(one.found.space.base)
    if base is not None and base.result == "measured":
        axes.plot(base.candidate.micro_batch, base.tokens_per_second, **_MARKS["the recipe's own"])
    if one.final is not None:
        own, speed = one.final.winner.candidate, one.final.winner.tokens_per_second
        axes.plot(own.micro_batch, speed, **{**_MARKS["chosen"], "color": colours[own.setting], "zorder": 5})
        text: dict[str, Any] = {"ha": "center", "fontsize": 10, "fontweight": "bold", "zorder": 6}
        axes.annotate(f"{speed:,.0f}", (own.micro_batch, speed), (0, 11), textcoords="offset points", **text)
    axes.set_title(one.stage.name, loc="left", fontsize=11)
    axes.set_ylim(0, 1.16 * max((tried.tokens_per_second for tried in one.found.measured), default=1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_xscale("log", base=2)
    rungs = sorted({tried.candidate.micro_batch for tried in one.found.tried})
    axes.set_xticks(rungs, [str(rung) for rung in rungs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)
    axes.set_xlabel("micro-batch, sequences per rank")
