"""Defines `stacking compare`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from stacking.cli.options import COMMAND, FOLDER, HOSTFILE, LAUNCHER
from stacking.errors import UserError


@click.command(**COMMAND)
@click.argument("baseline")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--data", type=FOLDER, required=True, help="The prepared data.")
@click.option("--out", type=FOLDER, required=True, help="The folder for all runs and results; may be continued.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs per recipe.")
@click.option(
    "--tune-baseline",
    "rates",
    metavar="5e-4,1e-3,2e-3",
    help="First search the baseline's learning rate on its whole budget; every arm uses the best one.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key in every recipe.")
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True, max=1e6),
    default=1.0,
    metavar="FACTOR",
    help="Train every recipe FACTOR times as long: all its updates and tokens, warm-ups included.",
)
@click.option("--any-model", is_flag=True, help="Accept recipes whose final models differ.")
@click.option(
    "--reuse",
    multiple=True,
    type=FOLDER,
    metavar="OUT",
    help="Another comparison's folder: begin with its checkpoints as far as the runs are the same.",
)
@LAUNCHER
@HOSTFILE
@click.option(
    "--submit", is_flag=True, help="Submit every run to SLURM as a chain of jobs, and report what is finished."
)
@click.option("--site", type=FOLDER, envvar="STACKING_SITE", help="With --submit: the cluster's settings, a YAML file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def compare(
    baseline: str,
    recipes: tuple[str, ...],
    data: Path,
    out: Path,
    seeds: int,
    rates: str | None,
    overrides: tuple[str, ...],
    scale: float,
    any_model: bool,
    reuse: tuple[Path, ...],
    launcher: str | None,
    hostfile: Path | None,
    submit: bool,
    site: Path | None,
    as_json: bool,
) -> None:
    """Measure how much sooner growing reaches the baseline's loss.

    BASELINE is a recipe that trains the final architecture from the start; each RECIPE grows to it. All are trained on
    the same samples in the same order. Run the same command again to continue an interrupted comparison.

    With --submit, the same command submits what is missing and reports what is finished.
    """
    from stacking.compare.command import CompareRequest
    from stacking.compare.command import compare as compare_recipes
    from stacking.compare.tables import as_text

    if submit and (launcher or hostfile):
        raise UserError("--submit", "runs under SLURM's launcher", "omit --launcher and --hostfile")
    if submit and reuse:
        raise UserError("--submit", "leaves every run to a chain of its own", "omit --reuse")
    for folder in reuse:
        if not (folder / "arms").is_dir():
            raise UserError(f"--reuse {folder}", "holds no comparison", "give what was --out of another one")
    if math.isnan(scale):
        raise UserError("--scale", "is not a number", "give the length of the training as a factor, such as 0.5")
    request = CompareRequest(
        sources=(baseline, *recipes),
        data=data,
        out=out,
        seeds=seeds,
        rates=_rates(rates),
        overrides=overrides,
        any_model=any_model,
        scale=scale,
        reuse=reuse,
        launcher=launcher,
        hostfile=hostfile,
        submit=submit,
        site=site,
    )
    result = compare_recipes(request, lambda line: click.echo(line, err=True))
    click.echo(json.dumps(result.as_dict(), indent=2) if as_json else as_text(result))


def _rates(text: str | None) -> tuple[float, ...]:
    """Parses ``5e-4,1e-3``.

    Raises:
        UserError: it is not a list of different positive numbers.
    """
    try:
        rates = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        rates = [0.0]
    if not all(0 < rate < float("inf") for rate in rates) or len(set(rates)) < len(rates):
        raise UserError("--tune-baseline", f"is {text!r}", "give different learning rates, such as 5e-4,1e-3,2e-3")
    return tuple(rates)
