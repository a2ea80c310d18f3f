"""Defines `stacking tune`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from stacking.cli.options import COMMAND, FOLDER, LAUNCHER
from stacking.errors import UserError


@click.command(**COMMAND)
@click.argument("recipe")
@click.option("--out", type=FOLDER, required=True, help="The folder for trials and results; may be continued.")
@click.option("--data", type=FOLDER, help="The prepared data. Default: the recipe's, or random tokens.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: stages[1].steps=200.")
@click.option("--stages", metavar="0,2", help="Tune only these stages; default: all.")
@LAUNCHER
@click.option("--trials", type=int, help="Maximum number of settings per stage; the final repeats two of them.")
@click.option("--budget-minutes", "minutes", type=float, help="Total time limit; the best settings so far are written.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def tune(
    recipe: str, data: Path | None, overrides: tuple[str, ...], stages: str | None, as_json: bool, **options: Any
) -> None:
    """Find the fastest settings for each stage of a recipe.

    Varies micro-batch, ZeRO stage, offload, activation checkpointing and compilation. What an update computes, such as
    its global batch, does not change.
    """
    from stacking.config.recipe import load_recipe
    from stacking.tune.command import TuneRequest, as_dict, as_table
    from stacking.tune.command import tune as tune_recipe

    request = TuneRequest(recipe=load_recipe(recipe, list(overrides), data), stages=_numbers(stages), **options)
    report = tune_recipe(request, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(as_dict(report), indent=2))
    else:
        click.echo(as_table(report).as_text())
        command = shlex.join(["stacking", "run", str(report.recipe)])
        click.echo(f"\n{report.page} explains the choice; run `{command}` to train with it")


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError("--stages", f"is {text!r}", "give numbers and commas, such as 0,2")
    return [int(part) for part in parts]
