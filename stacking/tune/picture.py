"""Plots the search: speed over micro-batch per stage, and below it the outcome of every candidate."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from stacking.planning.plan import Plan
from stacking.report.plots import GREY, INK, PALE, STYLE, VERMILION
from stacking.storage.files import write_atomically
from stacking.terminal.units import counted
from stacking.tune.candidate import Candidate, Setting
from stacking.tune.record import Tried
from stacking.tune.write import TunedStage

# The palette of Okabe and Ito (2008) without its vermilion, which marks failures; then more for many settings.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#5B4B8A", "#8C6D1F", "#33332F", "#7FA650", "#A0465F", "#2B7A78", "#B07CC6"),
)
_MARKS: dict[str, dict[str, Any]] = {
    "measured": {"marker": "o", "markersize": 5.5},
    "out-of-memory": {"marker": "X", "markersize": 8, "color": VERMILION},
    "failed": {"marker": "v", "markersize": 7, "color": VERMILION},
    "pruned": {"marker": "o", "markersize": 5.5, "color": GREY, "markerfacecolor": "white"},
}
_WORDS = {
    "measured": "measured",
    "out-of-memory": "ran out of memory",
    "failed": "failed",
    "pruned": "cannot fit, not measured",
}
_STAR: dict[str, Any] = {"marker": "*", "markersize": 17, "markeredgecolor": INK, "markeredgewidth": 0.9}
_RING: dict[str, Any] = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK}
_ROW = 0.24
"""Height of a setting's row in the map, in inches."""


def draw(plan: Plan, tuned: Sequence[TunedStage], path: Path) -> None:
    """Write the picture as PNG."""
    rows = max(len(_settings([one])) + bool(_left_out(one)) for one in tuned)
    colours = {setting: _COLOURS[i % len(_COLOURS)] for i, setting in enumerate(_settings(tuned))}
    upper, lower = 3.0, _ROW * (rows + 1)
    with mpl.rc_context(STYLE):
        size = (max(6.4, 4.9 * len(tuned)), upper + lower + 1.3)
        figure = Figure(figsize=size, layout="constrained", dpi=150, facecolor="white")
        grid = figure.subplots(2, len(tuned), squeeze=False, sharex="col", height_ratios=(upper, lower))
        for column, one in enumerate(tuned):
            _draw_speeds(grid[0][column], one, colours)
            _draw_map(grid[1][column], one, colours, rows)
        grid[0][0].set_ylabel("tokens/s")
        figure.suptitle(f"{plan.name}: search for the fastest setting of each stage", fontsize=12, color=INK)
        figure.legend(handles=_legend(tuned), loc="outside lower center", ncols=6, fontsize=9, handletextpad=0.4)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _settings(tuned: Sequence[TunedStage]) -> list[Setting]:
    """Return the settings with a trial, in the order in which they were considered."""
    tried = [tried for one in tuned for tried in one.found.tried if tried.result != "pruned"]
    return list(dict.fromkeys(one.candidate.setting for one in tried))


def _left_out(one: TunedStage) -> list[Candidate]:
    """Return the candidates of settings without any trial."""
    there = _settings([one])
    return [tried.candidate for tried in one.found.tried if tried.candidate.setting not in there]


def _draw_speeds(axes: Axes, one: TunedStage, colours: Mapping[Setting, str]) -> None:
    for setting, colour in colours.items():
        measured = [t for t in one.found.measured if t.candidate.setting == setting]
        points = sorted((tried.candidate.micro_batch, tried.tokens_per_second) for tried in measured)
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, **_MARKS["measured"], zorder=3)
    base = one.found.of(one.found.space.base)
    if base is not None and base.result == "measured":
        axes.plot(base.candidate.micro_batch, base.tokens_per_second, linestyle="", **_RING, zorder=4)
    if one.final is not None:
        _mark_winner(axes, one, one.final.winner, colours[one.final.winner.candidate.setting])
    axes.set_title(f"{one.stage.name}", loc="left", fontsize=11)
    axes.set_ylim(0, 1.16 * max((tried.tokens_per_second for tried in one.found.measured), default=1.0))
    axes.margins(x=0.12)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.tick_params(axis="x", length=0, labelbottom=False)


def _mark_winner(axes: Axes, one: TunedStage, winner: Tried, colour: str) -> None:
    """Draw a star, and the speed where no other point is near."""
    micro, speed = winner.candidate.micro_batch, winner.tokens_per_second
    axes.plot(micro, speed, linestyle="", color=colour, **_STAR, zorder=5)
    tried = [other.candidate.micro_batch for other in one.found.measured]
    above = any(t.tokens_per_second > speed and t.candidate.micro_batch == micro for t in one.found.measured)
    offset, side = (
        ((0, 11), "center") if not above else ((-13, -4), "right") if micro > min(tried) else ((13, -4), "left")
    )
    text: dict[str, Any] = {"ha": side, "fontsize": 10, "fontweight": "bold", "zorder": 6}
    axes.annotate(f"{speed:,.0f}", (micro, speed), offset, textcoords="offset points", **text)


def _draw_map(axes: Axes, one: TunedStage, colours: Mapping[Setting, str], most_rows: int) -> None:
    """Draw a row per setting and a mark per candidate; rows have the same height in every stage."""
    rows = {setting: row for row, setting in enumerate(_settings([one]))}
    for tried in (tried for tried in one.found.tried if tried.candidate.setting in rows):
        own = tried.candidate
        mark = {"color": colours[own.setting], **_MARKS[tried.result]}
        if one.final is not None and own == one.final.winner.candidate:
            mark |= {**_STAR, "markersize": 12}
        axes.plot(own.micro_batch, rows[own.setting], linestyle="", clip_on=False, **mark)
    words, ink = [setting.words for setting in rows], [colours[setting] for setting in rows]
    if others := _left_out(one):
        axes.plot([own.micro_batch for own in others], [len(rows)] * len(others), linestyle="", **_MARKS["pruned"])
        number = len({own.setting for own in others})
        words, ink = [*words, counted(number, "other setting")], [*ink, GREY]
    axes.set_xscale("log", base=2)
    rungs = sorted({tried.candidate.micro_batch for tried in one.found.tried})
    axes.set_xticks(rungs, [str(rung) for rung in rungs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(words)), words)
    for label, colour in zip(axes.get_yticklabels(), ink, strict=True):
        label.set_color(colour)
    axes.set_ylim(most_rows - 0.5, -0.5)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("micro-batch, sequences per rank")


def _legend(tuned: Sequence[TunedStage]) -> list[Line2D]:
    """Explain the marks that are used."""
    there = {tried.result for one in tuned for tried in one.found.tried}
    marks = [(_WORDS[result], {"color": GREY, **mark}) for result, mark in _MARKS.items() if result in there]
    marks += [("the recipe's own", {"color": INK, **_RING}), ("chosen", {"color": GREY, **_STAR, "markersize": 12})]
    return [Line2D([], [], linestyle="", label=words, **mark) for words, mark in marks]
