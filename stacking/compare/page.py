"""Writes the page of a comparison: self-contained HTML with curves, tables and commands."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from stacking.compare.chart import AXES, chart
from stacking.compare.result import Result
from stacking.compare.tables import equal_time_table, level_table, step_table, summary_table, tuning_table
from stacking.report.html import environment
from stacking.storage.files import write_atomically


def write_page(result: Result, path: Path) -> None:
    """Writes the page to ``path`` atomically."""
    write_atomically(path, render(result))


def render(result: Result) -> str:
    """Returns the page as HTML."""
    grown = result.arms[1:]
    return (
        environment("compare")
        .get_template("compare.html")
        .render(
            title=f"{result.baseline.arm.name} and {len(grown)} {'schedule' if len(grown) == 1 else 'schedules'}",
            summary=_summary(result),
            warnings=result.warnings,
            overview=summary_table(result),
            charts=[(name, drawn) for measure, (name, _) in AXES.items() if (drawn := chart(result, measure))],
            levels=[(arm.arm.name, level_table(arm)) for arm in grown],
            equal_time=equal_time_table(result),
            tuning=tuning_table(result) if result.rates else None,
            step_times=step_table(result),
            commands=result.commands,
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
        )
    )


def _summary(result: Result) -> str:
    if not result.seeds:
        return "No seed is finished in every arm yet."
    words = "1 seed" if len(result.seeds) == 1 else f"{len(result.seeds)} seeds"
    pending = f"; {len(result.pending)} runs are not finished" if result.pending else ""
    return f"{result.baseline.arm.plan.stages[-1].layers} layers at the end, {words}{pending}."
