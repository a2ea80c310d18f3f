"""The command line. Each command imports what it needs when it runs, so that all of them start at once."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stacking import __version__
from stacking.cli.bench import bench
from stacking.cli.doctor import doctor
from stacking.cli.options import FOLDER
from stacking.cli.tune import tune
from stacking.data.formats import SUFFIXES
from stacking.errors import StackingError, UserError, printable
from stacking.run.folder import RunFolder
from stacking.run.signals import Stopped, exit_code, exit_on_signals, raise_on_signals
from stacking.storage.os_errors import explained
from stacking.terminal.lenient import lenient

if TYPE_CHECKING:
    from stacking.launch.job import Launcher
    from stacking.planning.plan import Plan
    from stacking.run.lease import Lease

COMMAND: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}, "no_args_is_help": True}
LAUNCHER = click.option(
    "--launcher",
    type=click.Choice(["local", "slurm", "mpi"]),
    help="How to start the ranks. Default: the recipe's.",
)
ALLOW_NON_FINITE = click.option("--allow-non-finite", is_flag=True, help="Take NaN and infinity as they are.")
HOSTFILE = click.option("--hostfile", type=FOLDER, help="With --launcher mpi: the hosts, as mpirun takes them.")


@click.group(**COMMAND)
@click.version_option(__version__)
def cli() -> None:
    """Pre-train BERT by progressive stacking, with DeepSpeed."""


@cli.command(**COMMAND)
@click.argument("inputs", nargs=-1)
@click.option("--out", type=FOLDER, required=True, help="The folder to write.")
@click.option("--embedded", is_flag=True, help="Take the documentation that comes with Python and its packages.")
@click.option("--format", type=click.Choice(list(SUFFIXES)), help="Read all files so; default: what is recognised.")
@click.option("--text-key", help="Key or column of the text in JSON lines, Parquet and datasets; default: text.")
@click.option("--vocabulary-size", type=int, help="Entries of the vocabulary to train; default: 30,522.")
@click.option("--cased", is_flag=True, help="Keep upper case and accents; decides for a bare vocab.txt, too.")
@click.option("--tokenizer", type=FOLDER, help="Take this tokenizer (a folder or a file) instead of training one.")
@click.option("--held-out", type=float, help="Share of the text to hold out; default: 0.01.")
@click.option("--held-out-input", multiple=True, help="Hold out exactly this file or folder; may be repeated.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one per core.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def prepare(
    inputs: tuple[str, ...],
    out: Path,
    embedded: bool,
    format: str | None,
    text_key: str | None,
    vocabulary_size: int | None,
    cased: bool,
    tokenizer: Path | None,
    held_out: float | None,
    held_out_input: tuple[str, ...],
    workers: int | None,
    as_json: bool,
) -> None:
    """Turn text into token shards for training.

    INPUTS are files and folders of text, JSON lines or Parquet, or Hugging Face datasets. Files may be compressed (.gz,
    .bz2, .xz, .zst). The command prints what it reads, and what it passes over and why.
    """
    from stacking.data.prepare import prepare as prepare_data
    from stacking.data.summary import summarise

    made = prepare_data(
        list(inputs),
        out,
        embedded=embedded,
        format=format,
        text_key=text_key,
        vocabulary_size=vocabulary_size,
        lowercase=not cased,
        tokenizer=tokenizer,
        held_out=held_out,
        held_out_inputs=list(held_out_input),
        workers=workers,
        say=lambda line: click.echo(line, err=True),
    )
    summary = summarise(made.manifest)
    for warning in [*made.warnings, *summary.warnings()]:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps({"folder": str(made.folder), "already_there": made.already_there, **summary.as_dict()}))
    else:
        click.echo(f"{made.folder} {'was prepared already' if made.already_there else 'prepared'}")
        click.echo(summary.as_text())


@cli.command(**COMMAND)
@click.argument("recipe")
@click.option("--data", type=FOLDER, help="The prepared data. Default: the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: stages[1].steps=200.")
@click.option("--measured", type=FOLDER, multiple=True, help="What `stacking bench --json` printed; may be repeated.")
@click.option("--network", type=FOLDER, help="What `stacking doctor --json` printed.")
@click.option("--price", type=float, help="Price of one GPU hour.")
@click.option("--scaling", is_flag=True, help="Simulate 1 to 1,024 GPUs.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan and the prediction as JSON.")
@click.option(
    "--fast", is_flag=True, help="Leave out DeepSpeed's own check of the configurations, which takes seconds."
)
def plan(
    recipe: str,
    data: Path | None,
    overrides: tuple[str, ...],
    measured: tuple[Path, ...],
    network: Path | None,
    price: float | None,
    scaling: bool,
    as_json: bool,
    fast: bool,
) -> None:
    """Explain what a run would do, take and cost.

    RECIPE is a file, or the name of a shipped recipe.
    """
    from stacking.cli.plan import plan_text

    text = plan_text(
        recipe,
        data,
        overrides,
        measured=measured,
        network_file=network,
        price=price,
        scaled=scaling,
        as_json=as_json,
        fast=fast,
    )
    click.echo(text, nl=False)


@cli.command(**COMMAND)
@click.argument("ds_config", type=FOLDER)
@click.option("--recipe", help="The recipe to complete; default: BERT-base, stacked from 3 layers to 6 and 12.")
@click.option("--gpus", type=click.IntRange(min=1), help="Ranks to settle the batch for; default: the recipe's.")
@click.option("--out", type=FOLDER, required=True, help="A new folder for ds_config.json and recipe.yaml.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def adopt(ds_config: Path, recipe: str | None, gpus: int | None, out: Path, as_json: bool) -> None:
    """Make a DS_CONFIG from anywhere fit a recipe: what is kept, moved, translated, or cannot be, key by key."""
    from dataclasses import asdict

    from stacking.planning.adopt import adopt as adopt_config
    from stacking.planning.adopt import table

    adopted = adopt_config(ds_config, recipe, gpus, out)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in adopted.rows], indent=2, ensure_ascii=False))
        return
    click.echo(table(adopted.rows))
    click.echo(f"wrote {out / 'ds_config.json'} and {out / 'recipe.yaml'}; next: stacking plan {out / 'recipe.yaml'}")


@cli.command(**COMMAND)
@click.argument("recipe")
@click.option("--run-dir", type=FOLDER, required=True, help="A new folder for everything that the run makes.")
@click.option("--data", type=FOLDER, help="The prepared data. Default: the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: stages[1].steps=200.")
@LAUNCHER
@HOSTFILE
def run(
    recipe: str,
    run_dir: Path,
    data: Path | None,
    overrides: tuple[str, ...],
    launcher: str | None,
    hostfile: Path | None,
) -> None:
    """Train all stages of a recipe, export, report.

    RECIPE is a file, or the name of a shipped recipe.
    """
    from stacking.cli.plan import expected, precision_notes
    from stacking.cli.plan_report import explain_text
    from stacking.launch.registry import open_launcher
    from stacking.run.create import design_run, holding_new, require_idle, write_run

    folder = RunFolder(run_dir)
    require_idle(folder)
    design = design_run(recipe, folder, overrides, data, elsewhere=launcher in ("slurm", "mpi"))
    chosen = open_launcher(launcher or design.plan.launch.launcher, hostfile)
    with holding_new(folder) as lease:
        write_run(design, folder)
        click.echo(explain_text(design.plan, expected(design.plan), precision_notes(design.plan)))
        _control(folder, design.plan, lease, chosen)


@cli.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
@click.option("--only", metavar="PHASE:STAGE,...", help="Run only these phases: train:0 or consolidate:0,grow:1.")
@click.option(
    "--from-step",
    type=click.IntRange(min=0),
    metavar="N",
    help="Go back to the checkpoint after update N of the stage at work; 0: to its beginning.",
)
@LAUNCHER
@HOSTFILE
def resume(run_dir: Path, only: str | None, from_step: int | None, launcher: str | None, hostfile: Path | None) -> None:
    """Resume the run in RUN_DIR from what is on disk, or from an earlier checkpoint."""
    from stacking.launch.registry import open_launcher
    from stacking.run.create import open_run, require_run
    from stacking.run.rewind import refuse_repetition, rewind

    folder = RunFolder(run_dir)
    require_run(folder)
    # A scheduler may have started this job before a dead node's lock has run out.
    with folder.locked(patience=120 if launcher == "slurm" else 10) as lease:
        plan = open_run(folder, note=lambda text: click.echo(text, err=True))
        chosen = open_launcher(launcher or plan.launch.launcher, hostfile)
        if from_step is None:
            refuse_repetition(folder)
        else:
            stage = rewind(folder, plan, from_step)
            click.echo(f"{stage}: back at step {from_step}; what came later is kept as *.superseded", err=True)
        folder.journal.append("resumed")
        _control(folder, plan, lease, chosen, only)


@cli.command(**COMMAND)
@click.argument("recipe", required=False)
@click.option("--run-dir", type=FOLDER, help="A new folder for everything that the run makes; all nodes must see it.")
@click.option("--resume", "resumed", type=FOLDER, metavar="RUN_DIR", help="Submit the missing jobs of this run.")
@click.option("--mode", type=click.Choice(["per-stage", "one-allocation"]), help="Default: per-stage, or as before.")
@click.option("--site", type=FOLDER, envvar="STACKING_SITE", help="The cluster's settings, a YAML file.")
@click.option("--data", type=FOLDER, help="The prepared data. Default: the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: stages[1].steps=200.")
@click.option("--dry-run", is_flag=True, help="Print the commands and scripts without submitting.")
def submit(
    recipe: str | None,
    run_dir: Path | None,
    resumed: Path | None,
    mode: Any,
    site: Path | None,
    data: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Run a recipe through SLURM.

    One job per stage, chained, or one job for the whole run. Submitting twice is harmless.
    """
    from stacking.slurm.command import Request
    from stacking.slurm.command import dry_run as scripts_of
    from stacking.slurm.command import submit as submit_run

    folder = run_dir or resumed
    if folder is None or (run_dir is None) == (resumed is None) or (recipe is None) != (run_dir is None):
        raise click.UsageError("give RECIPE and --run-dir DIR, or --resume RUN_DIR alone")
    if resumed and (data or overrides):
        raise click.UsageError("--resume takes the run as it is: neither --data nor --set")
    request = Request(run=RunFolder(folder), recipe=recipe, mode=mode, site=site, overrides=overrides, data=data)
    for line in (scripts_of if dry_run else submit_run)(request):
        click.echo(line)


@cli.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
def cancel(run_dir: Path) -> None:
    """Cancel all jobs of the run in RUN_DIR.

    Waits until they have ended; training leaves a checkpoint.
    """
    from stacking.slurm.command import cancel as cancel_run

    for line in cancel_run(RunFolder(run_dir)):
        click.echo(line)


def _control(folder: RunFolder, plan: Plan, lease: Lease, launcher: Launcher, only: str | None = None) -> None:
    """Run what is unfinished, with progress on stderr and the table of stages at the end."""
    from stacking.report.run import read_run
    from stacking.report.tables import stage_table
    from stacking.run.controller import Controller
    from stacking.run.phases import parse_labels, phases
    from stacking.run.progress import Progress

    labels = parse_labels(only, phases(plan, folder)) if only is not None else ()
    with Progress(plan) as progress:
        Controller(folder, plan, launcher, progress, lease, labels).run()
    click.echo(stage_table(read_run(folder.path)).as_text())


@cli.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
@click.option("--watch", is_flag=True, help="Keep showing it until the run ends.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(run_dir: Path, watch: bool, as_json: bool) -> None:
    """Show how far the run in RUN_DIR is."""
    from stacking.report.status import status as status_of
    from stacking.report.status import watch as watch_run

    if watch:
        if as_json:
            raise UserError("--json", "has no effect with --watch", "leave one of the two out")
        for now in watch_run(run_dir):
            click.clear()
            click.echo(now.as_text())
        return
    now = status_of(run_dir)
    click.echo(json.dumps(now.as_dict(), indent=2) if as_json else now.as_text())


@cli.command(**COMMAND)
@click.argument("checkpoint", type=FOLDER)
@click.option("--config", type=FOLDER, help="A checkpoint of another program: its Hugging Face config, or a recipe.")
@click.option("--out", type=FOLDER, required=True, help="The state folder to write.")
@ALLOW_NON_FINITE
def consolidate(checkpoint: Path, config: Path | None, out: Path, allow_non_finite: bool) -> None:
    """Merge a ZeRO checkpoint into one unsharded state.

    CHECKPOINT may be of any ZeRO stage and world size. No GPU is needed.
    """
    from functools import partial

    from stacking.planning.describe import described
    from stacking.state.consolidate import consolidate as consolidate_checkpoint
    from stacking.storage.files import require_absent
    from stacking.terminal.progress_bar import bar

    require_absent(out)
    with bar("consolidating") as update:
        describe = partial(described, config) if config else None
        consolidate_checkpoint(checkpoint, out, update, describe, allow_non_finite)


@cli.command(**COMMAND)
@click.argument("state", type=FOLDER)
@click.option("--layers", type=click.IntRange(min=1), required=True, help="How deep the grown model is.")
@click.option("--operator", default="stack", show_default=True, help="stack, interleave or identity.")
@click.option("--optimizer-state", default="reset", show_default=True, help="What happens to Adam's moments and step.")
@click.option("--share", is_flag=True, help="Link the files of STATE instead of copying them: no time, no space.")
@click.option("--out", type=FOLDER, required=True, help="The state folder to write.")
@ALLOW_NON_FINITE
def grow(
    state: Path, layers: int, operator: str, optimizer_state: str, share: bool, out: Path, allow_non_finite: bool
) -> None:
    """Grow a shallow state into a deeper one.

    STATE itself is not changed.
    """
    from stacking.growth.apply import grow as grow_state
    from stacking.storage.files import require_absent
    from stacking.terminal.progress_bar import bar

    require_absent(out)
    with bar("growing") as update:
        grow_state(state, out, layers, operator, optimizer_state, update, share, allow_non_finite)


@cli.command(**COMMAND)
@click.argument("state", type=FOLDER)
@click.option("--data", type=FOLDER, help="The prepared data, for its tokenizer.")
@click.option("--out", type=FOLDER, required=True, help="The Hugging Face folder to write.")
@ALLOW_NON_FINITE
def export(state: Path, data: Path | None, out: Path, allow_non_finite: bool) -> None:
    """Export a state as a Hugging Face model.

    Writes config, safetensors, tokenizer and model card.
    """
    from stacking.huggingface.export import export as export_state
    from stacking.storage.files import require_absent

    require_absent(out)
    export_state(state, out, data, allow_non_finite)


@cli.command("import", **COMMAND)
@click.argument("model", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The state folder to write.")
def import_model(model: Path, out: Path) -> None:
    """Import a Hugging Face BERT as a state.

    The state can be grown, or trained further.
    """
    from stacking.huggingface.importing import import_hugging_face
    from stacking.storage.files import require_absent

    require_absent(out)
    report = import_hugging_face(model, out)
    for note in report.notes:
        click.echo(f"note: {printable(note)}", err=True)
    for what, names in (("initialised", report.initialised), ("ignored", report.ignored)):
        if names:
            click.echo(f"{what}: {printable(', '.join(names))}", err=True)


@cli.command(**COMMAND)
@click.argument("state", type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="The prepared data.")
@click.option("--samples", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--kind", default="segment-pair", show_default=True, help="sentence-pair, segment-pair or packed.")
@click.option("--sequence-length", type=click.IntRange(min=8), default=128, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def evaluate(state: Path, data: Path, samples: int, kind: str, sequence_length: int, seed: int, as_json: bool) -> None:
    """Score a state on held-out data."""
    from stacking.evaluate.mlm import evaluate_state

    scores = evaluate_state(state, data, samples, seed, kind, sequence_length)._asdict()
    click.echo(json.dumps(scores) if as_json else "\n".join(f"{name:14} {value:.4f}" for name, value in scores.items()))


@cli.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
@click.option("--beside", type=FOLDER, multiple=True, metavar="RUN_DIR", help="Compare with this run; may be repeated.")
def report(run_dir: Path, beside: tuple[Path, ...]) -> None:
    """Write report.html for a run, finished or not."""
    from stacking.report.comparison import comparison_table
    from stacking.report.html import write_report
    from stacking.report.run import read_run

    click.echo(write_report(run_dir, beside))
    if beside:
        click.echo(f"\n{comparison_table([read_run(path) for path in (run_dir, *beside)]).as_text()}")


@cli.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
@click.option("--run-dir", "baseline_dir", type=FOLDER, required=True, help="A new folder for the baseline.")
@LAUNCHER
@HOSTFILE
def baseline(run_dir: Path, baseline_dir: Path, launcher: str | None, hostfile: Path | None) -> None:
    """Train a run's deepest model from the start.

    It trains for the same wall-clock as the whole run in RUN_DIR, and RUN_DIR/report.html compares the two. To continue
    an interrupted baseline: `stacking resume` with its folder, then `stacking report RUN_DIR --beside` it.
    """
    from stacking.launch.registry import open_launcher
    from stacking.report.baseline import baseline_recipe
    from stacking.report.comparison import comparison_table
    from stacking.report.html import write_report
    from stacking.report.run import read_run
    from stacking.run.create import design_of, holding_new, require_idle, write_run

    recipe, folder = baseline_recipe(read_run(run_dir)), RunFolder(baseline_dir)
    require_idle(folder)
    design = design_of(recipe, folder, elsewhere=launcher in ("slurm", "mpi"))
    plan, chosen = design.plan, open_launcher(launcher or design.plan.launch.launcher, hostfile)
    with holding_new(folder) as lease:
        write_run(design, folder)
        (stage,) = plan.stages
        click.echo(f"{stage.layers} layers from the start: {stage.steps:,} steps fit into the same wall-clock")
        _control(folder, plan, lease, chosen)
    write_report(run_dir, [baseline_dir])
    click.echo(f"\n{comparison_table([read_run(run_dir), read_run(baseline_dir)]).as_text()}")


cli.add_command(bench)
cli.add_command(doctor)
cli.add_command(tune)


def main() -> NoReturn:
    """The command `stacking`."""
    run_command(cli)


def run_command(command: click.Command) -> NoReturn:
    """Run a command and exit; a mistake of its user is one line on stderr and exit code 2."""
    sys.stderr = lenient(sys.stderr)
    raise_on_signals()
    try:
        code = _exit_code_of(lambda: command.main(standalone_mode=False))
    except Stopped as stop:
        exit_on_signals()
        click.echo(f"stacking: {stop}", err=True)
        code = exit_code(stop.signal)
    sys.exit(code)


def _exit_code_of(command: Callable[[], Any]) -> int:
    try:
        code = command()
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = UserError.exit_code
    except click.ClickException as error:
        click.echo(f"stacking: {' '.join(error.format_message().split())}", err=True)
        code = UserError.exit_code
    except StackingError as error:
        click.echo(f"stacking: {error}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = exit_code(signal.SIGINT)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        code = _refused(error)
    return code if isinstance(code, int) else 0


def _refused(error: OSError) -> int:
    """Say in one line what the operating system refused; returns the exit code."""
    reason = error.strerror or str(error)
    if _is_of_output(error):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ours: StackingError = UserError("standard output", reason, "check where it leads")
    elif (found := explained(error, error.filename or "a file")) is not None:
        ours = found
    elif isinstance(error, FileNotFoundError):
        ours = UserError(error.filename or "a file", reason, "check the path")
    else:
        ours = StackingError(f"{error.filename or 'the operating system'}: {reason}")
    click.echo(f"stacking: {ours}", err=True)
    return ours.exit_code


def _is_of_output(error: OSError) -> bool:
    """Whether it came from writing to standard output: by `click.echo`, or by the flush at the end."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return error.filename is None and (click.echo.__code__ in frames or frames == [_exit_code_of.__code__])


if __name__ == "__main__":
    main()
