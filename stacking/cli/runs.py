"""Defines the commands that run and inspect chains: `run`, `resume`, `baseline`, `status`, `report`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacking.cli.options import COMMAND, FOLDER, HOSTFILE, LAUNCHER
from stacking.errors import UserError
from stacking.launch.registry import open_launcher, runs_elsewhere
from stacking.run.folder import RunFolder, continuation
from stacking.terminal.units import counted

if TYPE_CHECKING:
    from stacking.launch.job import Launcher
    from stacking.planning.plan import Plan
    from stacking.run.branch import BranchPoint
    from stacking.run.create import Design
    from stacking.run.lease import Lease


@click.command(**COMMAND)
@click.argument("recipe")
@click.option("--run-dir", type=FOLDER, required=True, help="A new folder for all files of the run.")
@click.option("--data", type=FOLDER, help="The prepared data. Default: the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: stages[1].steps=200.")
@click.option(
    "--branch-of",
    type=FOLDER,
    metavar="RUN",
    help="Begin with the last checkpoint of another run that this recipe would reach with the same bits.",
)
@LAUNCHER
@HOSTFILE
def run(
    recipe: str,
    run_dir: Path,
    data: Path | None,
    overrides: tuple[str, ...],
    branch_of: Path | None,
    launcher: str | None,
    hostfile: Path | None,
) -> None:
    """Train all stages of a recipe, export, report.

    RECIPE is a file, or the name of a shipped recipe.
    """
    from stacking.config.recipe import load_recipe
    from stacking.run.branch import require_branch_point
    from stacking.run.create import design_of, require_idle

    folder = RunFolder(run_dir)
    require_idle(folder)
    design = design_of(load_recipe(recipe, list(overrides), data), folder, elsewhere=runs_elsewhere(launcher))
    begins = None
    if branch_of is not None:
        begins = require_branch_point(RunFolder(branch_of), design.plan, lambda damage: click.echo(damage, err=True))
    start(design, folder, launcher, hostfile, begins)


def start(
    design: Design, folder: RunFolder, launcher: str | None, hostfile: Path | None, begins: BranchPoint | None = None
) -> None:
    """Writes a new run, explains its plan and trains it; ``begins``: with that checkpoint of another run."""
    from stacking.cli.plan_report import explain_text
    from stacking.cli.plan_text import expected, precision_notes
    from stacking.run.create import holding_new, write_run

    chosen = open_launcher(launcher or design.plan.launch.launcher, hostfile)
    with holding_new(folder) as lease:
        write_run(design, folder, begins)
        if begins is not None:
            click.echo(f"begins with {begins}", err=True)
        click.echo(explain_text(design.plan, expected(design.plan), precision_notes(design.plan)))
        control(folder, design.plan, lease, chosen)


@click.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
@click.option("--only", metavar="PHASE:STAGE,...", help="Run only these phases: train:0 or consolidate:0,grow:1.")
@click.option(
    "--from-step",
    type=click.IntRange(min=0),
    metavar="N",
    help="Go back to the checkpoint after update N of the current stage; 0: to its beginning.",
)
@click.option("--here", is_flag=True, help="Run on this machine even if SLURM jobs of the run are queued or running.")
@LAUNCHER
@HOSTFILE
def resume(
    run_dir: Path, only: str | None, from_step: int | None, here: bool, launcher: str | None, hostfile: Path | None
) -> None:
    """Resume a run from its files.

    With --from-step, resume from an earlier checkpoint of the current stage. For a run that was submitted to SLURM this
    only goes back, and `stacking submit --resume` continues from there.
    """
    from stacking.launch.slurm import allocation_facts
    from stacking.run.create import open_run, require_run
    from stacking.run.rewind import refuse_repetition, rewind
    from stacking.slurm.ledger import is_submitted_from_outside, refuse_beside_jobs

    folder = RunFolder(run_dir)
    require_run(folder)
    if not here:
        refuse_beside_jobs(folder, os.environ)
    # A scheduler may start this job before the lock of a dead node has expired.
    with folder.locked(patience=120 if launcher == "slurm" else 10) as lease:
        plan = open_run(folder, note=lambda text: click.echo(text, err=True))
        chosen = open_launcher(launcher or plan.launch.launcher, hostfile)
        if from_step is None:
            refuse_repetition(folder)
        else:
            stage = rewind(folder, plan, from_step)
            click.echo(f"{stage}: back at step {from_step}; later files are kept as *.superseded", err=True)
            if not here and is_submitted_from_outside(folder, os.environ):
                click.echo(f"run `{continuation(folder)}` to continue", err=True)
                return
        folder.journal.append("resumed", **allocation_facts(os.environ))
        control(folder, plan, lease, chosen, only)


def control(folder: RunFolder, plan: Plan, lease: Lease, launcher: Launcher, only: str | None = None) -> None:
    """Runs the unfinished phases, with progress on stderr and the table of stages at the end."""
    from stacking.report.run import read_run
    from stacking.report.tables import stage_table
    from stacking.run.controller import Controller
    from stacking.run.phases import parse_labels, phases
    from stacking.run.progress import Progress

    labels = parse_labels(only, phases(plan, folder)) if only is not None else ()
    with Progress(plan) as progress:
        Controller(folder, plan, launcher, progress, lease, labels).run()
    click.echo(stage_table(read_run(folder.path)).as_text())


@click.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
@click.option("--run-dir", "baseline_dir", type=FOLDER, required=True, help="A new folder for the baseline.")
@LAUNCHER
@HOSTFILE
def baseline(run_dir: Path, baseline_dir: Path, launcher: str | None, hostfile: Path | None) -> None:
    """Train a run's deepest model from the start.

    The baseline trains for the wall-clock time of the run in RUN_DIR, and RUN_DIR/report.html compares the two. To
    continue an interrupted baseline, run `stacking resume BASELINE` and `stacking report RUN_DIR --beside BASELINE`.
    """
    from stacking.report.baseline import baseline_recipe
    from stacking.report.comparison import comparison_table
    from stacking.report.html import write_report
    from stacking.report.run import read_run
    from stacking.run.create import design_of, holding_new, require_idle, write_run

    recipe, folder = baseline_recipe(read_run(run_dir)), RunFolder(baseline_dir)
    require_idle(folder)
    design = design_of(recipe, folder, elsewhere=runs_elsewhere(launcher))
    plan, chosen = design.plan, open_launcher(launcher or design.plan.launch.launcher, hostfile)
    with holding_new(folder) as lease:
        write_run(design, folder)
        (stage,) = plan.stages
        layers, steps = counted(stage.layers, "layer"), counted(stage.steps, "step")
        click.echo(f"{layers} from the start: {steps} fit into the same wall-clock")
        control(folder, plan, lease, chosen)
    write_report(run_dir, [baseline_dir])
    click.echo(f"\n{comparison_table([read_run(run_dir), read_run(baseline_dir)]).as_text()}")


@click.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
@click.option("--watch", is_flag=True, help="Update until the run ends.")
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
def status(run_dir: Path, watch: bool, as_json: bool) -> None:
    """Show how far the run in RUN_DIR is."""
    from stacking.report.status import status as status_of
    from stacking.report.status import watch as watch_run

    if watch:
        if as_json:
            raise UserError("--json", "has no effect with --watch", "omit one of the two")
        for now in watch_run(run_dir):
            click.clear()
            click.echo(now.as_text())
        return
    now = status_of(run_dir)
    click.echo(json.dumps(now.as_dict(), indent=2) if as_json else now.as_text())


@click.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
@click.option("--beside", type=FOLDER, multiple=True, metavar="RUN_DIR", help="Compare with this run; may be repeated.")
def report(run_dir: Path, beside: tuple[Path, ...]) -> None:
    """Write report.html for a run, finished or not."""
    from stacking.report.comparison import comparison_table
    from stacking.report.html import write_report
    from stacking.report.run import read_run

    click.echo(write_report(run_dir, beside))
    if beside:
        click.echo(f"\n{comparison_table([read_run(path) for path in (run_dir, *beside)]).as_text()}")
