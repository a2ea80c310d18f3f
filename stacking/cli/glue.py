"""Defines `stacking glue`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from stacking.cli.options import COMMAND, FOLDER
from stacking.errors import UserError


@click.command(**COMMAND)
@click.argument("model", type=FOLDER)
@click.option("--data", required=True, help="A folder with a subfolder per task, or a dataset such as nyu-mll/glue.")
@click.option("--out", type=FOLDER, help="The folder for results; may be continued. Default for a run: RUN/glue.")
@click.option("--tasks", metavar="TASK,...", help="Default: all but WNLI.")
@click.option("--recipe", default="original", show_default=True, help="`original` (Gong et al.) or `run_glue`.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one key: batch=32, CoLA.epochs=5.")
@click.option("--seeds", type=click.IntRange(min=1), help="Runs per task. Default: 6 for small tasks, else 3.")
@click.option("--from-mnli", is_flag=True, help="Also start MRPC, STS-B and RTE from the model fine-tuned on MNLI.")
@click.option("--tokenizer", type=FOLDER, help="The model's tokenizer. Default: its own; for a run, its data's.")
@click.option("--beside", type=FOLDER, multiple=True, metavar="OUT", help="Also show the results in another --out.")
@click.option("--submit", is_flag=True, help="Submit every task to SLURM as a job, and report what is finished.")
@click.option("--site", type=FOLDER, envvar="STACKING_SITE", help="With --submit: the cluster's settings, a YAML file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def glue(
    model: Path, out: Path | None, tasks: str | None, beside: tuple[Path, ...], as_json: bool, **options: Any
) -> None:
    """Fine-tune a model on GLUE and score it.

    MODEL is a run folder, a state, an export or another Hugging Face encoder. Run the same command again to continue
    an interrupted one.

    With --submit, the same command submits what is missing and reports what is finished.
    """
    from stacking.glue.command import Request, score
    from stacking.glue.summary import read_summary
    from stacking.glue.table import as_text, paper_table, spread_table
    from stacking.huggingface.model_folder import kind_of
    from stacking.report.glue import FOLDER as IN_RUN
    from stacking.report.glue import write_tables
    from stacking.report.html import write_report

    is_run = kind_of(model) == "run"
    if out is None and not is_run:
        raise UserError("--out", "is missing", "name a folder for the results; only a run folder has one already")
    others = [read_summary(folder) for folder in beside]
    named = tuple(tasks.split(",")) if tasks is not None else ()
    request = Request(model=model, out=out or model / IN_RUN, tasks=named, **options)
    summary = score(request, lambda line: click.echo(line, err=True))
    write_tables(request.out, spread_table(summary), paper_table([*others, summary]))
    if is_run and out is None:
        click.echo(f"report: {write_report(model)}", err=True)
    click.echo(json.dumps(summary.model_dump(mode="json"), indent=2) if as_json else as_text(summary, others))
