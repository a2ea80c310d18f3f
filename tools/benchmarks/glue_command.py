"""`tools/bench_glue`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stacking.cli.main import run_command
from stacking.cli.options import FOLDER


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=FOLDER)
@click.option("--data", required=True, help="As for `stacking glue`.")
@click.option("--tasks", default="CoLA,MRPC", show_default=True, help="Tasks to train.")
@click.option("--updates", type=click.IntRange(min=1), default=100, show_default=True, help="Per training.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Seeds.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def bench_glue(
    model: Path, data: str, tasks: str, updates: int, repeats: int, changes: tuple[str, ...], as_json: bool
) -> None:
    """Compare `stacking glue` with padding to 128 tokens, as Hugging Face's run_glue does.

    MODEL is a Hugging Face BERT. Both contenders train it in turns, on the CPU, with the recipe `run_glue`.
    """
    from stacking.glue.metrics import require_libraries
    from stacking.glue.tasks import chosen
    from tools.benchmarks.glue import as_dicts, as_text
    from tools.benchmarks.glue import bench_glue as measure

    require_libraries()
    changes = (f"max_steps={updates}", *changes)
    results = measure(model, data, chosen(tasks.split(",")), changes, repeats, lambda line: click.echo(line, err=True))
    click.echo(json.dumps(as_dicts(results), indent=2) if as_json else as_text(results))


if __name__ == "__main__":
    run_command(bench_glue)
