"""Defines `stacking compare`."""

from __future__ import annotations

import json
from typing import Any

import click

from stacking.cli.options import COMMAND, FOLDER, HOSTFILE, LAUNCHER
from stacking.errors import UserError

_LONGEST = 1_000_000
"""The largest factor of ``--scale``."""


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
    "scales",
    default="1",
    metavar="FACTOR,...",
    help="Train every recipe FACTOR times as long, but for its warm-up. Several: one comparison each, in OUT/xFACTOR.",
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
    baseline: str, recipes: tuple[str, ...], rates: str | None, scales: str, as_json: bool, **options: Any
) -> None:
    """Measure how much sooner growing reaches the baseline's loss.

    BASELINE is a recipe that trains the final architecture from the start; each RECIPE grows to it. All are trained on
    the same samples in the same order. Run the same command again to continue an interrupted comparison.

    With --submit, the same command submits what is missing and reports what is finished.
    """
    from stacking.compare.budgets import compare_budgets
    from stacking.compare.command import CompareRequest, check_request
    from stacking.compare.command import compare as compare_recipes
    from stacking.compare.tables import as_text, length_table

    factors = _positive("--scale", scales, "0.5,1,2")
    if max(factors) > _LONGEST:
        raise UserError("--scale", f"is {max(factors):g}", f"give at most {_LONGEST:,}")
    searched = _positive("--tune-baseline", rates, "5e-4,1e-3,2e-3") if rates is not None else ()
    request = CompareRequest(sources=(baseline, *recipes), rates=searched, scale=factors[0], **options)
    check_request(request)

    def tell(line: str) -> None:
        click.echo(line, err=True)

    if len(factors) == 1:
        result = compare_recipes(request, tell)
        click.echo(json.dumps(result.as_dict(), indent=2) if as_json else as_text(result))
    else:
        budgets = compare_budgets(request, factors, tell)
        table = length_table([result for _, result in budgets.results]).as_text()
        click.echo(json.dumps(budgets.as_dict(), indent=2) if as_json else table)


def _positive(option: str, text: str, example: str) -> tuple[float, ...]:
    """Parses ``5e-4,1e-3``.

    Raises:
        UserError: it is not a list of different positive numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [0.0]
    if not all(0 < number < float("inf") for number in numbers) or len(set(numbers)) < len(numbers):
        raise UserError(option, f"is {text!r}", f"give different positive numbers, such as {example}")
    return tuple(numbers)
