"""Defines `stacking doctor`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from stacking.cli.options import FOLDER
from stacking.errors import UserError
from stacking.launch.registry import LAUNCHERS, check_hostfile

if TYPE_CHECKING:
    from stacking.planning.plan import Plan
    from stacking.run.folder import RunFolder


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--run-dir", type=FOLDER, default=".", help="Folder of the run, existing or not. Default: here.")
@click.option("--recipe", help="Also check whether this recipe, a file or a shipped one, works here.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe.")
@click.option("--ranks", type=click.IntRange(min=1), help="Ranks to measure. Default: the plan's, one per GPU, or 2.")
@click.option(
    "--launcher",
    type=click.Choice(list(LAUNCHERS)),
    default="local",
    show_default=True,
    help="Starts the ranks.",
)
@click.option("--hostfile", type=FOLDER, help="With --launcher mpi: the hosts, as mpirun takes them.")
@click.option("--collectives/--no-collectives", default=True, help="Measure communication between ranks. Default: yes.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings and all measurements as JSON.")
@click.option("--before-job", is_flag=True, help="The quick check that a job script runs; writes RUN_DIR/doctor.json.")
def doctor(
    run_dir: Path, recipe: str | None, overrides: tuple[str, ...], as_json: bool, before_job: bool, **options: Any
) -> None:
    """Check whether this machine can train, and how well.

    Names what stands in the way and how to fix it. Exits with 1 if something makes training impossible.
    """
    from stacking.doctor import preflight, report
    from stacking.doctor.examine import ExamineRequest, visit
    from stacking.doctor.finding import worst
    from stacking.run.folder import RunFolder

    # Handled like Ctrl-C, so that no measuring process is left behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    check_hostfile(options["launcher"], options["hostfile"])
    if before_job:
        _refuse_beside_before_job()
        sys.exit(preflight.before_job(RunFolder(run_dir), os.environ))
    plan = _plan(RunFolder(run_dir), recipe, overrides)
    found = visit(ExamineRequest(folder=run_dir, plan=plan, **options))
    click.echo(json.dumps(report.as_json(found), indent=2) if as_json else report.as_text(found), nl=as_json)
    if worst(found.findings) == "error":
        sys.exit(1)


def _refuse_beside_before_job() -> None:
    """Rejects options that --before-job ignores because it takes everything from the run's plan."""
    context = click.get_current_context()
    for name in ("recipe", "overrides", "ranks", "launcher", "hostfile", "collectives", "as_json"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = {"overrides": "set", "as_json": "json", "collectives": "no-collectives"}.get(name, name)
            raise UserError(f"--{option}", "has no effect with --before-job", "omit one of the two")


def _plan(run: RunFolder, recipe: str | None, overrides: tuple[str, ...]) -> Plan | None:
    """Returns the recipe's plan or, in the folder of a run, that run's plan."""
    from stacking.config.recipe import load_recipe
    from stacking.planning.plan import load_plan
    from stacking.run.create import plan_recipe

    if recipe is not None:
        return plan_recipe(load_recipe(recipe, list(overrides)), fast=True)[0]
    if overrides:
        raise click.UsageError("--set changes a recipe: add --recipe")
    return load_plan(run.plan) if run.plan.is_file() and run.journal.path.is_file() else None
