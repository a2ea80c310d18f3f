"""Renders ``report.html``: a self-contained page that describes a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from stacking.report import plots, tables
from stacking.report.attention import attention_section
from stacking.report.comparison import comparison_chart, comparison_table, write_comparison_picture
from stacking.report.glue import read_tables
from stacking.report.run import Run, read_run
from stacking.report.timeline import wall_clock
from stacking.storage.files import write_atomically
from stacking.terminal.units import count, counted, duration, loss


def write_report(run_dir: Path, beside: Sequence[Path] = ()) -> Path:
    """Writes ``RUN/report.html`` from the files of the run.

    Works at any time: before the first update, during training and after a failure.

    Args:
        beside: other runs to compare with, in the page and in ``RUN/report/comparison.png``.

    Raises:
        UserError: ``run_dir`` is not a run directory, or cannot be written.
        DamagedFile: its plan, journal or metrics are damaged.
    """
    run = read_run(run_dir)
    others = [read_run(path) for path in beside]
    if others:
        write_comparison_picture([run, *others], run.folder.path / "report")
    write_atomically(run.folder.report, render(run, others))
    return run.folder.report


def environment(*rooms: str) -> Environment:
    """Returns an environment that finds templates in the packages ``rooms`` and then in this one."""
    return Environment(
        loader=ChoiceLoader([PackageLoader("stacking", room) for room in (*rooms, "report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(run: Run, others: Sequence[Run] = ()) -> str:
    """Returns the page of ``run`` as HTML, with a comparison if there are ``others``."""
    compared = [run, *others] if others else []
    idle = wall_clock(run).idle
    return (
        environment()
        .get_template("template.html")
        .render(
            name=run.plan.name,
            summary=_summary(run),
            facts=_facts(run),
            trained=bool(run.records("train")),
            by_tokens=plots.chart(run, plots.tokens_axis(run)),
            by_time=plots.chart(run, plots.time_axis(run)),
            comparison=comparison_chart(compared) if compared else None,
            compared=comparison_table(compared) if compared else None,
            idle=duration(idle) if idle else None,
            not_a_number=_not_a_number(run),
            damage=run.damage,
            stages=tables.stage_table(run),
            transitions=tables.transition_table(run),
            account=tables.account_table(run),
            attention=attention_section(run),
            schedule=tables.schedule_table(run),
            glue=read_tables(run.folder.path),
            incidents=tables.incident_table(run),
            identity=tables.identity_table(run),
            versions=tables.version_table(),
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
        )
    )


def _summary(run: Run) -> str:
    *before, last = (stage.layers for stage in run.plan.stages)
    depths = " → ".join([*map(str, before), counted(last, "layer")])
    trained = run.records("train")
    if not trained:
        return f"{depths}; nothing trained yet."
    planned = sum(stage.steps for stage in run.plan.stages)
    done = trained[-1]["global_step"]
    progress = counted(done, "update") if done >= planned else f"{done:,} of {counted(planned, 'update')} so far"
    return f"{depths}, {progress}, {count(trained[-1]['tokens'])} real tokens."


def _facts(run: Run) -> list[tuple[str, str]]:
    trained, evaluated = run.records("train"), run.records("evaluation")
    clock = wall_clock(run)
    return [
        ("training loss", loss(trained[-1]["loss"] if trained else None)),
        ("held-out loss", loss(evaluated[-1]["loss"] if evaluated else None)),
        ("wall-clock", duration(clock(trained[-1]["time"]) if trained else None)),
        ("real tokens/s, last stage", count(trained[-1]["tokens_per_second"] if trained else None)),
    ]


def _not_a_number(run: Run) -> str | None:
    bad = [record for record in run.records("train") if not math.isfinite(record["loss"])]
    if not bad:
        return None
    return f"The loss is not a number in {len(bad):,} of the records, first at update {bad[0]['global_step']:,}."
