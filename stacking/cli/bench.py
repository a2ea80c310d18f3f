"""Defines `stacking bench`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from stacking.cli.options import FOLDER, LAUNCHER
from stacking.errors import StackingError, UserError
from stacking.hardware.cores import usable_cores
from stacking.hardware.presets import Precision
from stacking.terminal.units import counted

if TYPE_CHECKING:
    from stacking.bench.results import StageResult
    from stacking.bench.targets import Wanted
    from stacking.launch.job import Accelerator, Launcher


_COUNT = click.IntRange(min=1)


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Parses ``3,12``."""
    try:
        numbers = tuple(int(part) for part in value.split(",")) if value else ()
    except ValueError:
        raise click.BadParameter(f"{value!r} is not like 3,12") from None
    if any(number < 1 for number in numbers):
        raise click.BadParameter(f"{value!r} has a depth below 1")
    return numbers


def _words(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",")) if value else ()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", required=False)
@click.option("--against", callback=_words, help="Alternate with hf, hf-compiled, padded, checkpointing; print ratios.")
@click.option("--stages", callback=_words, help="Stages of a recipe, such as 0,2; default: all.")
@click.option("--hidden", type=_COUNT, help="Width of the model; without TARGET, one head per 64.")
@click.option("--layers", callback=_numbers, help="Depths of a named model, such as 3,12; default: its own.")
@click.option("--sequence-length", type=click.IntRange(min=8), help="Tokens per sample.")
@click.option("--vocabulary", type=click.IntRange(min=16), help="Default: the data's, or 30,522.")
@click.option("--micro-batch", type=_COUNT, help="Sequences that a rank computes at once.")
@click.option("--batch", type=_COUNT, help="Sequences per update, over all ranks.")
@click.option("--precision", type=click.Choice(get_args(Precision)), help="Default: the device's best.")
@click.option("--ranks", type=_COUNT, help="Processes; default of a named model: one per GPU, one on a CPU.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="In all places; default: 0.1.")
@click.option("--ragged", is_flag=True, help="Without data: draw lengths from S/16 to S instead of full sequences.")
@click.option("--data", type=FOLDER, help="Prepared data; without them, random tokens.")
@click.option("--steps", type=_COUNT, help="Steps per repeat; default: 2 seconds' worth.")
@click.option("--warmup", type=_COUNT, help="Steps before the first repeat; default: 2 on a CPU, 10 on a GPU.")
@click.option("--repeats", type=_COUNT, default=5, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe.")
@LAUNCHER
@click.option("--folder", type=FOLDER, help="For plans and logs; all nodes must see it. Default: a temporary one.")
@click.option("--profile", is_flag=True, help="Also print the operators that take longest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    target: str | None,
    against: tuple[str, ...],
    steps: int | None,
    warmup: int | None,
    repeats: int,
    launcher: str | None,
    folder: Path | None,
    profile: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how fast a model trains.

    TARGET is a recipe or a named model, such as bert-base; without it, a model of --hidden and --layers is measured.
    """
    from stacking.bench.as_text import block, footer
    from stacking.bench.results import as_json as results_as_json
    from stacking.bench.targets import Wanted

    wanted = Wanted(target=target, **options)
    how = {"steps": steps, "warmup": warmup, "repeats": repeats, "profile": profile}
    results = []
    for result in _measure(wanted, against, how, launcher, folder):
        results.append(result)
        if not as_json:
            click.echo(block(result))
    click.echo(json.dumps(results_as_json(results, target or ""), indent=2) if as_json else footer(results))
    failed = [result for result in results if result.result.outcome != "measured"]
    if failed:
        raise StackingError(f"{failed[0].trial.planned.name}: {failed[0].result.message}")


def _measure(
    wanted: Wanted, against: tuple[str, ...], how: dict[str, Any], launcher_name: str | None, folder: Path | None
) -> Iterator[StageResult]:
    """Yields a measurement of each target. If a trial fails, its temporary folder is kept for the logs."""
    from stacking.bench.results import StageResult
    from stacking.bench.targets import OPPONENTS, save_rows, targets, trial_of
    from stacking.bench.trial import Contender, run_trial
    from stacking.launch.registry import open_launcher
    from stacking.storage.files import disk_errors, require_empty

    for name in against:
        if name not in OPPONENTS:
            raise UserError("--against", f"{name!r} is not known", f"give {', '.join(OPPONENTS)}")
    contenders: list[Contender] = ["stacking", *dict.fromkeys(OPPONENTS[name] for name in against)]
    found = targets(wanted)
    if wanted.ragged and found[0].plan.data.path is not None:
        raise UserError("--ragged", "has no effect with data, which has its own lengths", "omit one of the two")
    if "checkpointing" in contenders and any(t.plan.stages[t.stage].kernels.activation_checkpointing for t in found):
        problem = "compares nothing: the recipe turns activation checkpointing on"
        raise UserError("--against checkpointing", problem, "set stacking.activation_checkpointing to false")
    launcher = open_launcher(launcher_name or found[0].plan.launch.launcher)
    if folder is not None:
        require_empty(folder, "--folder")
    place, logs_wanted = folder or Path(tempfile.mkdtemp(prefix="stacking-bench-")), False
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    try:
        samples = save_rows(found[0].rows, place / "samples.npy")
        for number, target in enumerate(found):
            trial = trial_of(target, wanted, contenders, samples, **_how(target.plan.launch.accelerator, **how))
            _check_capacity(launcher, target.plan.launch.accelerator, trial.planned.ranks)
            click.echo(f"measuring {target.plan.name}, {counted(trial.planned.layers, 'layer')} …", err=True)
            result = run_trial(trial, place / f"{number}", launcher)
            logs_wanted |= result.outcome != "measured"
            if how["profile"] and result.outcome == "measured":
                click.echo((place / f"{number}" / "profile.txt").read_text(encoding="utf-8"), err=True)
            yield StageResult(trial, result)
    finally:
        if folder is None and not logs_wanted:
            shutil.rmtree(place, ignore_errors=True)


def _how(accelerator: str, steps: int | None, warmup: int | None, repeats: int, profile: bool) -> dict[str, Any]:
    return {
        "warmup": warmup or (10 if accelerator == "cuda" else 2),
        "steps": steps or (5 if accelerator == "cuda" else 1),
        "least_seconds": 0.0 if steps else 2.0,
        "repeats": repeats,
        "profile": profile,
    }


def _check_capacity(launcher: Launcher, accelerator: Accelerator, ranks: int) -> None:
    from stacking.launch.local import Local

    capacity, what = launcher.capacity(accelerator), "devices"
    if accelerator == "cpu" and isinstance(launcher, Local):
        capacity, what = usable_cores(), "cores"  # ranks that share a core would slow each other down
    if capacity is not None and capacity < ranks:
        raise UserError("--ranks", f"{ranks} are requested, but this machine has {capacity} {what}", f"give {capacity}")
