"""Defines the planning commands: `stacking plan` and `stacking adopt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from stacking.cli.options import COMMAND, FOLDER


@click.command(**COMMAND)
@click.argument("recipe")
@click.option("--data", type=FOLDER, help="The prepared data. Default: the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: stages[1].steps=200.")
@click.option("--measured", type=FOLDER, multiple=True, help="Output of `stacking bench --json`; may be repeated.")
@click.option("--network", "network_file", type=FOLDER, help="Output of `stacking doctor --json`.")
@click.option("--price", type=float, help="Price of one GPU hour.")
@click.option("--scaling", "scaled", is_flag=True, help="Simulate 1 to 1,024 GPUs.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan and the prediction as JSON.")
@click.option("--fast", is_flag=True, help="Skip DeepSpeed's own check of the configurations, which takes seconds.")
def plan(recipe: str, data: Path | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Explain what a run would do and cost.

    RECIPE is a file, or the name of a shipped recipe.
    """
    from stacking.cli.plan_text import plan_text

    click.echo(plan_text(recipe, data, overrides, **options), nl=False)


@click.command(**COMMAND)
@click.argument("ds_config", type=FOLDER)
@click.option("--recipe", help="The recipe to complete; default: BERT-base, stacked from 3 layers to 6 and 12.")
@click.option("--gpus", type=click.IntRange(min=1), help="Ranks to resolve the batch for; default: the recipe's.")
@click.option("--out", type=FOLDER, required=True, help="A new folder for ds_config.json and recipe.yaml.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def adopt(ds_config: Path, recipe: str | None, gpus: int | None, out: Path, as_json: bool) -> None:
    """Turn any DeepSpeed configuration into one that fits.

    Reads JSON and HJSON of any DeepSpeed, Hugging Face's and Accelerate's, and writes a ds_config.json and a
    recipe.yaml. One row for each key says whether it is kept, moved to the recipe, translated or impossible.
    """
    from dataclasses import asdict

    from stacking.planning.adopt import adopt as adopt_config
    from stacking.planning.adopt import table

    adopted = adopt_config(ds_config, recipe, gpus, out)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in adopted.rows], indent=2, ensure_ascii=False))
        return
    click.echo(table(adopted.rows))
    click.echo(f"wrote {out / 'ds_config.json'} and {out / 'recipe.yaml'}; next: stacking plan {out / 'recipe.yaml'}")
