"""The command line. Each command imports what it needs when it runs, so that all of them start at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from stacking import __version__
from stacking.cli.bench import bench
from stacking.cli.doctor import doctor
from stacking.cli.tune import tune
from stacking.errors import StackingError, UserError
from stacking.run.folder import RunFolder
from tools.benchmarks.data_command import bench_data
from tools.benchmarks.transition_command import bench_transition

if TYPE_CHECKING:
    from stacking.planning.plan import Plan

FOLDER = click.Path(path_type=Path)
COMMAND: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}, "no_args_is_help": True}
LAUNCHER = click.option(
    "--launcher", type=click.Choice(["local", "slurm", "mpi"]), help="What starts the ranks, in place of the recipe's."
)
HOSTFILE = click.option("--hostfile", type=FOLDER, help="With --launcher mpi: the hosts, as mpirun takes them.")


@click.group(**COMMAND)
@click.version_option(__version__)
def cli() -> None:
    """Pre-train BERT by progressive stacking, with DeepSpeed."""


@cli.command(**COMMAND)
@click.argument("inputs", nargs=-1)
@click.option("--out", type=FOLDER, required=True, help="The folder to write.")
@click.option("--embedded", is_flag=True, help="Take the documentation that comes with Python and its packages.")
@click.option("--vocabulary-size", type=int, default=30_522, show_default=True, help="Most entries to train.")
@click.option("--cased", is_flag=True, help="Keep upper case and accents; decides for a bare vocab.txt, too.")
@click.option("--tokenizer", type=FOLDER, help="Take this tokenizer (a folder or a file) instead of training one.")
@click.option("--held-out", type=float, default=0.01, show_default=True, help="Share of documents.")
@click.option("--held-out-input", multiple=True, help="Hold out exactly this file or folder; may be repeated.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one per core.")
def prepare(
    inputs: tuple[str, ...],
    out: Path,
    embedded: bool,
    vocabulary_size: int,
    cased: bool,
    tokenizer: Path | None,
    held_out: float,
    held_out_input: tuple[str, ...],
    workers: int | None,
) -> None:
    """Make token shards of INPUTS: files, folders (.txt .md .jsonl .parquet, also .gz) or Hugging Face datasets."""
    from stacking.data.prepare import prepare as prepare_data

    if tokenizer is not None:
        _refuse_idle("vocabulary_size", "--tokenizer")
    if held_out_input:
        _refuse_idle("held_out", "--held-out-input")
    made = prepare_data(
        list(inputs),
        out,
        embedded=embedded,
        vocabulary_size=vocabulary_size,
        lowercase=not cased,
        tokenizer=tokenizer,
        held_out=held_out,
        held_out_inputs=list(held_out_input),
        workers=workers,
    )
    for warning in made.warnings:
        click.echo(f"warning: {warning}", err=True)
    state = "was prepared already" if made.already_there else "prepared"
    sizes = [
        f"{name} {split['tokens']:,} tokens, {split['documents']:,} documents"
        for name, split in made.manifest["splits"].items()
    ]
    click.echo(f"{made.folder} {state}: {'; '.join(sizes)}; vocabulary {made.manifest['vocabulary']:,}")


@cli.command(**COMMAND)
@click.argument("recipe")
@click.option("--data", type=FOLDER, help="The prepared data, in place of the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: stages[1].steps=200.")
@click.option("--measured", type=FOLDER, multiple=True, help="What `stacking bench --json` printed; may be repeated.")
@click.option("--network", type=FOLDER, help="What `stacking doctor --json` printed.")
@click.option("--price", type=float, help="Of one GPU hour.")
@click.option("--scaling", is_flag=True, help="Simulate 1 to 1,024 GPUs.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan and the prediction as JSON.")
def plan(
    recipe: str,
    data: Path | None,
    overrides: tuple[str, ...],
    measured: tuple[Path, ...],
    network: Path | None,
    price: float | None,
    scaling: bool,
    as_json: bool,
) -> None:
    """Say what a run of RECIPE (a file, or the name of a shipped one) would do, how long it takes and what it costs."""
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
    )
    click.echo(text, nl=False)


@cli.command(**COMMAND)
@click.argument("recipe")
@click.option("--run-dir", type=FOLDER, required=True, help="A new folder for everything that the run makes.")
@click.option("--data", type=FOLDER, help="The prepared data, in place of the recipe's.")
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
    """Train all stages of RECIPE here, export the model and write the report."""
    from stacking.cli.plan import expected
    from stacking.cli.plan_report import explain_text
    from stacking.run.create import create_run
    from stacking.storage.files import disk_errors

    folder = RunFolder(run_dir)
    with disk_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    with folder.locked() as lock:
        plan = create_run(recipe, folder, overrides, data, elsewhere=launcher in ("slurm", "mpi"))
        click.echo(explain_text(plan, expected(plan)))
        _control(folder, plan, lock, launcher, hostfile)


@cli.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
@click.option("--only", metavar="PHASE:STAGE,...", help="Run these phases alone: train:0 or consolidate:0,grow:1.")
@LAUNCHER
@HOSTFILE
def resume(run_dir: Path, only: str | None, launcher: str | None, hostfile: Path | None) -> None:
    """Go on with the run in RUN_DIR from whatever is on disk."""
    from stacking.run.create import open_run

    folder = RunFolder(run_dir)
    if not folder.journal.path.is_file():
        raise UserError(run_dir, "is not a run", "start one with `stacking run RECIPE --run-dir DIR`")
    # A scheduler may have started this job before a dead node's lock has run out.
    with folder.locked(patience=120 if launcher == "slurm" else 10) as lock:
        folder.journal.append("resumed")
        _control(folder, open_run(folder), lock, launcher, hostfile, only)


@cli.command(**COMMAND)
@click.argument("recipe", required=False)
@click.option("--run-dir", type=FOLDER, help="A new folder for everything that the run makes; all nodes must see it.")
@click.option("--resume", "resumed", type=FOLDER, metavar="RUN_DIR", help="Submit what is missing of this run's jobs.")
@click.option("--mode", type=click.Choice(["per-stage", "one-allocation"]), help="Default: per-stage, or as before.")
@click.option("--site", type=FOLDER, envvar="STACKING_SITE", help="The cluster's settings, a YAML file.")
@click.option("--data", type=FOLDER, help="The prepared data, in place of the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: stages[1].steps=200.")
@click.option("--dry-run", is_flag=True, help="Print the commands and the scripts, and do nothing.")
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
    """Run RECIPE through SLURM: one job a stage, chained, or one job for all of it. Submitting twice is harmless."""
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
    """End all jobs of the run in RUN_DIR and wait for their end; training leaves a checkpoint."""
    from stacking.slurm.command import cancel as cancel_run

    for line in cancel_run(RunFolder(run_dir)):
        click.echo(line)


def _refuse_idle(option: str, other: str) -> None:
    """Refuse an option that the user wrote and that ``other`` leaves without effect."""
    if click.get_current_context().get_parameter_source(option) is not ParameterSource.DEFAULT:
        raise UserError(f"--{option.replace('_', '-')}", f"has no effect with {other}", "leave one of the two out")


def _control(
    folder: RunFolder, plan: Plan, lock: int, launcher: str | None, hostfile: Path | None, only: str | None = None
) -> None:
    """Run what is unfinished, with progress on stderr and the table of stages at the end."""
    from stacking.launch.registry import open_launcher
    from stacking.report.run import read_run
    from stacking.report.tables import stage_table
    from stacking.run.controller import Controller
    from stacking.run.phases import parse_labels, phases
    from stacking.run.progress import Progress

    labels = parse_labels(only, phases(plan, folder)) if only is not None else ()
    chosen = open_launcher(launcher or plan.launch.launcher, hostfile)
    with Progress(plan) as progress:
        Controller(folder, plan, chosen, progress, lock, labels).run()
    click.echo(stage_table(read_run(folder.path)).as_text())


@cli.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
@click.option("--watch", is_flag=True, help="Show it again and again until the run ends.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(run_dir: Path, watch: bool, as_json: bool) -> None:
    """Say where the run in RUN_DIR is."""
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
@click.option("--out", type=FOLDER, required=True, help="The state folder to write.")
def consolidate(checkpoint: Path, out: Path) -> None:
    """Turn a ZeRO CHECKPOINT of any stage and world size into one unsharded state, without GPUs."""
    from stacking.state.consolidate import consolidate as consolidate_checkpoint
    from stacking.storage.files import require_absent
    from stacking.terminal.progress_bar import bar

    require_absent(out)
    with bar("consolidating") as update:
        consolidate_checkpoint(checkpoint, out, update)


@cli.command(**COMMAND)
@click.argument("state", type=FOLDER)
@click.option("--layers", type=click.IntRange(min=1), required=True, help="How deep the grown model is.")
@click.option("--operator", default="stack", show_default=True, help="stack, interleave or identity.")
@click.option("--optimizer-state", default="reset", show_default=True, help="What becomes of Adam's moments and step.")
@click.option("--share", is_flag=True, help="Link the files of STATE instead of copying them: no time, no space.")
@click.option("--out", type=FOLDER, required=True, help="The state folder to write.")
def grow(state: Path, layers: int, operator: str, optimizer_state: str, share: bool, out: Path) -> None:
    """Make a deeper STATE out of a shallow one; the source is not changed."""
    from stacking.growth.apply import grow as grow_state
    from stacking.storage.files import require_absent
    from stacking.terminal.progress_bar import bar

    require_absent(out)
    with bar("growing") as update:
        grow_state(state, out, layers, operator, optimizer_state, update, share)


@cli.command(**COMMAND)
@click.argument("state", type=FOLDER)
@click.option("--data", type=FOLDER, help="The prepared data, for its tokenizer.")
@click.option("--out", type=FOLDER, required=True, help="The Hugging Face folder to write.")
def export(state: Path, data: Path | None, out: Path) -> None:
    """Turn a STATE into a Hugging Face folder: config, safetensors, tokenizer, model card."""
    from stacking.huggingface.export import export as export_state
    from stacking.storage.files import require_absent

    require_absent(out)
    export_state(state, out, data)


@cli.command("import", **COMMAND)
@click.argument("model", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The state folder to write.")
def import_model(model: Path, out: Path) -> None:
    """Turn the Hugging Face BERT in the folder MODEL into a state to grow or to go on from."""
    from stacking.huggingface.importing import import_hugging_face
    from stacking.storage.files import require_absent

    require_absent(out)
    report = import_hugging_face(model, out)
    for what, names in (("initialised", report.initialised), ("ignored", report.ignored)):
        if names:
            click.echo(f"{what}: {', '.join(names)}", err=True)


@cli.command(**COMMAND)
@click.argument("state", type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="The prepared data.")
@click.option("--samples", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--kind", default="segment-pair", show_default=True, help="sentence-pair, segment-pair or packed.")
@click.option("--sequence-length", type=click.IntRange(min=8), default=128, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def evaluate(state: Path, data: Path, samples: int, kind: str, sequence_length: int, seed: int, as_json: bool) -> None:
    """Score a STATE on the held-out split of its data."""
    from stacking.evaluate.mlm import evaluate_state

    scores = evaluate_state(state, data, samples, seed, kind, sequence_length)._asdict()
    click.echo(json.dumps(scores) if as_json else "\n".join(f"{name:14} {value:.4f}" for name, value in scores.items()))


@cli.command(**COMMAND)
@click.argument("run_dir", type=FOLDER)
def report(run_dir: Path) -> None:
    """Write report.html for the run in RUN_DIR, finished or not."""
    from stacking.report.html import write_report

    click.echo(write_report(run_dir))


cli.add_command(bench)
cli.add_command(bench_data)
cli.add_command(bench_transition)
cli.add_command(doctor)
cli.add_command(tune)


def main() -> NoReturn:
    """Run a command; what a user can have caused is one line on stderr and an exit code."""
    try:
        code = cli.main(standalone_mode=False)
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
        code = 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = error.filename or "standard output"
        click.echo(f"stacking: {UserError(where, error.strerror or str(error), 'check where it leads')}", err=True)
        code = UserError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
