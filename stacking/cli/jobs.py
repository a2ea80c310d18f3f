"""Defines the commands that talk to SLURM: `stacking submit` and `stacking cancel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stacking.cli.options import COMMAND, FOLDER
from stacking.run.folder import RunFolder


@click.command(**COMMAND)
@click.argument("recipe", required=False)
@click.option("--run-dir", type=FOLDER, help="A new folder for all files of the run; all nodes must see it.")
@click.option("--resume", "resumed", type=FOLDER, metavar="RUN_DIR", help="Submit the missing jobs of this run.")
@click.option("--mode", type=click.Choice(["per-stage", "one-allocation"]), help="Default: per-stage, or as before.")
@click.option("--site", type=FOLDER, envvar="STACKING_SITE", help="The cluster's settings, a YAML file.")
@click.option("--data", type=FOLDER, help="The prepared data. Default: the recipe's.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key: stages[1].steps=200. With --resume: resources only.",
)
@click.option("--dry-run", is_flag=True, help="Print the commands and scripts without submitting.")
def submit(
    recipe: str | None, run_dir: Path | None, resumed: Path | None, data: Path | None, dry_run: bool, **options: Any
) -> None:
    """Run a recipe through SLURM.

    One job per stage, chained, or one job for the whole run. Submitting twice is harmless. Another site file, or other
    resources in the recipe or with --set, replace the jobs that wait.
    """
    from stacking.slurm.command import SubmitRequest
    from stacking.slurm.command import dry_run as scripts_of
    from stacking.slurm.command import submit as submit_run

    folder = run_dir or resumed
    if folder is None or (run_dir is None) == (resumed is None) or (recipe is None) != (run_dir is None):
        raise click.UsageError("give RECIPE and --run-dir DIR, or --resume RUN_DIR alone")
    if resumed and data:
        raise click.UsageError("--resume continues the run with its own data: omit --data")
    request = SubmitRequest(run=RunFolder(folder), recipe=recipe, data=data, **options)
    for line in (scripts_of if dry_run else submit_run)(request):
        click.echo(line)


@click.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
def cancel(run_dir: Path) -> None:
    """Cancel all jobs of the run in RUN_DIR.

    Waits until they have ended; training leaves a checkpoint.
    """
    from stacking.slurm.command import cancel as cancel_run

    for line in cancel_run(RunFolder(run_dir)):
        click.echo(line)
