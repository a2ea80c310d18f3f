"""Defines `stacking prepare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from stacking.cli.options import COMMAND, FOLDER
from stacking.data.formats import SUFFIXES


@click.command(**COMMAND)
@click.argument("inputs", nargs=-1)
@click.option("--out", type=FOLDER, required=True, help="The folder to write.")
@click.option("--embedded", is_flag=True, help="Use the documentation of Python and its installed packages.")
@click.option("--format", type=click.Choice(list(SUFFIXES)), help="Format of all files; default: detected.")
@click.option("--text-key", help="Key or column of the text in JSON lines, Parquet and datasets; default: text.")
@click.option("--vocabulary-size", type=int, help="Entries of the vocabulary to train; default: 30,522.")
@click.option("--cased", is_flag=True, help="Keep case and accents; also applies to a bare vocab.txt.")
@click.option("--tokenizer", type=FOLDER, help="Use this tokenizer (a folder or a file) instead of training one.")
@click.option("--held-out", type=float, help="Share of the text to hold out; default: 0.01.")
@click.option(
    "--held-out-input", "held_out_inputs", multiple=True, help="Hold out exactly this file or folder; may be repeated."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one per core.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def prepare(inputs: tuple[str, ...], out: Path, cased: bool, as_json: bool, **options: Any) -> None:
    """Turn text into token shards for training.

    INPUTS are files and folders of text, JSON lines or Parquet, or Hugging Face datasets. Files may be compressed (.gz,
    .bz2, .xz, .zst). The command prints what it reads and what it skips and why.
    """
    from stacking.data.prepare import prepare as prepare_data
    from stacking.data.summary import summarise

    made = prepare_data(inputs, out, lowercase=not cased, say=lambda line: click.echo(line, err=True), **options)
    summary = summarise(made.manifest)
    for warning in [*made.warnings, *summary.warnings()]:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps({"folder": str(made.folder), "already_there": made.already_there, **summary.as_dict()}))
    else:
        click.echo(f"{made.folder} {'is already prepared' if made.already_there else 'prepared'}")
        click.echo(summary.as_text())
