"""Defines the command `attention`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stacking.cli.options import COMMAND, FOLDER


@click.command(**COMMAND)
@click.argument("model", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The folder to write: numbers, pictures, page.")
@click.option("--data", type=FOLDER, help="The prepared data whose held-out text is read. Default: those of the run.")
@click.option("--text", type=FOLDER, help="A text file to read instead.")
@click.option("--tokenizer", type=FOLDER, help="The folder of the tokenizer for --text. Default: the model's.")
@click.option("--kind", help="As `data.samples` of a recipe. Default: that of the run, or segment-pair.")
@click.option("--sequence-length", type=click.IntRange(min=8), help="Default: that of the run, or 128.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=1024, show_default=True, help="How many to read at most."
)
@click.option(
    "--window", type=click.IntRange(min=1, max=512), default=16, show_default=True, help="Relative positions."
)
@click.option("--sentence", "sentences", multiple=True, help="A sentence for the page; may be repeated.")
def attention(model: Path, out: Path, **options: Any) -> None:
    """Measure what a model attends to.

    MODEL is a run, a state, a checkpoint, or the Hugging Face folder of any encoder. Writes attention.json, pictures as
    SVG, PDF and PNG, and attention.html.
    """
    from stacking.attention.command import AttentionRequest, write_attention
    from stacking.attention.result import layer_table
    from stacking.storage.files import require_absent

    require_absent(out)
    measured = write_attention(model, out, AttentionRequest(**options))
    click.echo(layer_table(measured).as_text())
    click.echo(out / "attention.html")
