"""Builds the report's section on attention: how alike the layers attend before and after every growth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from pydantic import Field, ValidationError

from stacking.errors import DamagedFile
from stacking.planning.plan import StagePlan
from stacking.report.plots import VERMILION, as_svg
from stacking.report.run import Run
from stacking.report.tables import Table
from stacking.run.phases import MOMENTS
from stacking.storage.files import read_json, verify_folder
from stacking.storage.frozen import FrozenPart
from stacking.terminal.units import UNKNOWN, counted

_MOMENTS = {"grown": "after growing", "trained": "at the end"}
_MOST_PANELS = 4
"""Pictures in a row."""

Matrix = tuple[tuple[float, ...], ...]


class _Heads(FrozenPart):
    first: Matrix
    itself: Matrix
    entropy: Matrix


class _Similarity(FrozenPart):
    cosine: Matrix = Field(min_length=1)
    halves_cosine: float | None
    others_cosine: float | None


class _Measured(FrozenPart):
    heads: _Heads
    similarity: _Similarity


@dataclass(frozen=True)
class Snapshot:
    """One moment of the run; ``measured`` is None if there is no undamaged measurement yet."""

    stage: StagePlan
    moment: str
    measured: _Measured | None
    problem: str = ""

    @property
    def label(self) -> str:
        """``12 layers, after growing``."""
        return f"{counted(self.stage.layers, 'layer')}, {_MOMENTS[self.moment]}"


@dataclass(frozen=True)
class AttentionSection:
    """Holds the content of the section."""

    table: Table
    chart: str | None
    """An SVG element; None before the first measurement."""
    problems: tuple[str, ...]
    """A sentence per measurement that failed or is damaged."""


def attention_section(run: Run) -> AttentionSection | None:
    """Returns the section; None if the recipe does not ask for measurements."""
    if run.plan.attention is None:
        return None
    found = [snapshot(run, stage, moment) for stage in run.plan.stages for moment in MOMENTS]
    shown = [one for one in found if one is not None]
    problems = tuple(f"{one.label}: {one.problem}" for one in shown if one.problem)
    measured = [one for one in shown if one.measured is not None]
    return AttentionSection(
        _table(measured), as_svg(lambda: _draw(measured), "attention") if measured else None, problems
    )


def snapshot(run: Run, stage: StagePlan, moment: str) -> Snapshot | None:
    """Returns what is known of one moment; None if it has none, or if it has not come yet."""
    folder = run.folder.stage(stage.name).attention(moment)
    if folder.is_dir():
        try:
            verify_folder(folder)
            return Snapshot(stage, moment, _Measured.model_validate(read_json(folder / "attention.json")))
        except (DamagedFile, ValidationError) as error:
            return Snapshot(stage, moment, None, str(error).splitlines()[0])
    label = (f"attention-{moment}", stage.index)
    events = [event for event in run.events if (event.get("phase"), event.get("stage")) == label]
    skipped = [event["message"] for event in events if event["event"] == "skipped"]
    return Snapshot(stage, moment, None, skipped[-1]) if skipped else None


def _table(snapshots: list[Snapshot]) -> Table:
    head = ("", "to the first token", "to itself", "entropy", "cosine, half the depth apart", "cosine, other pairs")
    return Table(head, [_row(one, one.measured) for one in snapshots if one.measured is not None])


def _row(one: Snapshot, measured: _Measured) -> tuple[str, ...]:
    heads, alike = measured.heads, measured.similarity
    means = [float(np.mean(values)) for values in (heads.first, heads.itself, heads.entropy)]
    cosines = (alike.halves_cosine, alike.others_cosine)
    return (
        one.label,
        *(f"{mean:.3f}" for mean in means),
        *(UNKNOWN if cosine is None else f"{cosine:.3f}" for cosine in cosines),
    )


def _draw(snapshots: list[Snapshot]) -> Figure:
    """Draws the similarity of all pairs of layers at every moment."""
    columns = min(_MOST_PANELS, len(snapshots))
    rows = -(-len(snapshots) // columns)
    figure = Figure(figsize=(9.6, 2.6 * rows), layout="constrained", facecolor="none")
    panels = figure.subplots(rows, _MOST_PANELS, squeeze=False).flatten()
    drawn = [_draw_one(axes, one) for axes, one in zip(panels, snapshots, strict=False)]
    for axes in panels[len(snapshots) :]:
        axes.set_visible(False)
    bar = figure.colorbar(drawn[0], ax=panels[:columns].tolist(), fraction=0.04, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    return figure


def _draw_one(axes: Axes, one: Snapshot) -> QuadMesh:
    """Draws one moment, all with the same colours; crosses mark layers half the depth apart."""
    assert one.measured is not None
    cosines = np.array(one.measured.similarity.cosine)
    layers, half = len(cosines), len(cosines) // 2
    edges = np.arange(layers + 1) + 0.5
    mesh = axes.pcolormesh(edges, edges, cosines, vmin=0, vmax=1, cmap="viridis")
    if layers % 2 == 0:
        low = np.arange(1, half + 1)
        axes.plot([*low, *(low + half)], [*(low + half), *low], "x", color=VERMILION, markersize=4)
    axes.set_aspect("equal")
    axes.set_title(one.label, fontsize=9)
    ticks = sorted({1, layers})
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    return mesh
