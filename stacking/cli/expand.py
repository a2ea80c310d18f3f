"""Defines `stacking expand`, which deepens a pretrained model."""

from __future__ import annotations

from pathlib import Path

import click

from stacking.cli.options import COMMAND, FOLDER, HOSTFILE, LAUNCHER, source_list
from stacking.launch.registry import runs_elsewhere
from stacking.run.folder import RunFolder

_POSITIVE = click.IntRange(min=1)


@click.command(**COMMAND)
@click.argument("model", type=FOLDER)
@click.option("--layers", type=_POSITIVE, help="Depth of the expanded model.")
@click.option("--operator", default="block-expansion", show_default=True, help="How --layers is reached.")
@click.option("--layers-from", metavar="N,N,...", help="The source of each layer instead: 0,1,2,1,2,3.")
@click.option("--data", type=FOLDER, required=True, help="Data prepared with the model's own tokenizer.")
@click.option("--run-dir", type=FOLDER, required=True, help="A new folder for all files of the run.")
@click.option("--steps", type=_POSITIVE, default=2000, show_default=True, help="Updates in all.")
@click.option("--alone-steps", type=click.IntRange(min=0), help="Updates of the new layers alone. Default: half.")
@click.option("--batch-sequences", type=_POSITIVE, default=32, show_default=True, help="Sequences per update.")
@click.option("--learning-rate", type=float, default=1e-4, show_default=True, help="The peak.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe.")
@LAUNCHER
@HOSTFILE
def expand(
    model: Path,
    layers: int | None,
    operator: str,
    layers_from: str | None,
    data: Path,
    run_dir: Path,
    steps: int,
    alone_steps: int | None,
    batch_sequences: int,
    learning_rate: float,
    overrides: tuple[str, ...],
    launcher: str | None,
    hostfile: Path | None,
) -> None:
    """Deepen a pretrained Hugging Face BERT.

    MODEL is imported and grown; its new layers are trained alone, then everything; RUN_DIR/export is the result.
    RUN_DIR/recipe.yaml is the recipe. To continue an interrupted expansion, run `stacking resume RUN_DIR`.
    """
    from stacking.cli.runs import start
    from stacking.config.expansion import expansion_recipe
    from stacking.config.recipe import recipe_from
    from stacking.run.create import design_of, require_idle

    listed = source_list(layers, layers_from)
    content = expansion_recipe(
        model,
        layers or len(listed or ()),
        operator,
        listed,
        steps=steps,
        alone_steps=steps // 2 if alone_steps is None else alone_steps,
        batch_sequences=batch_sequences,
        learning_rate=learning_rate,
    )
    folder = RunFolder(run_dir)
    require_idle(folder)
    recipe = recipe_from(content, folder.recipe, list(overrides), data)
    start(design_of(recipe, folder, elsewhere=runs_elsewhere(launcher)), folder, launcher, hostfile)
    click.echo(f"the expanded model is in {folder.export}")
