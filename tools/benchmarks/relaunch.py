"""Measures the pause between two stages of a run: from the last update of one to the first update of the next.

It includes the last checkpoint, the end of its ranks, the engine of the next ones, and loading; consolidation and
growth only as far as they slow the others down. After every run, a durable copy of that checkpoint (`cp`, then fsync)
is timed for comparison.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import click
import yaml

from stacking.cli.main import run_command
from stacking.cli.options import FOLDER
from stacking.errors import StackingError
from stacking.planning.plan import load_plan
from stacking.run import checkpoints
from stacking.run.folder import RunFolder, StageFolder
from stacking.run.metrics import read_metrics
from stacking.storage.files import MANIFEST, require_empty
from tools.benchmarks.process_watch import bytes_below
from tools.benchmarks.transition import SHAPES, Wanted, durable_copy, recipe_of

GOAL = 1.3
"""Pause to copy, at most."""


@dataclass
class Pauses:
    """Holds the figures of one shape."""

    shape: str
    ranks: int
    checkpoint_bytes: int = 0
    pauses: list[float] = field(default_factory=list)
    """Seconds between the stages of each run."""
    checkpoints: list[float] = field(default_factory=list)
    """Of these, seconds until the last checkpoint has its name."""
    copies: list[float] = field(default_factory=list)
    """Seconds of a durable copy of the checkpoint, after each run."""

    @property
    def ratio(self) -> float:
        return median(self.pauses) / median(self.copies)


def measure(shape: str, wanted: Wanted, folder: Path) -> Pauses:
    """Trains both stages of ``shape`` for two updates each in ``folder``, ``wanted.repeats`` times.

    Raises:
        UserError: ``shape`` is not known.
        StackingError: a command failed; says where its output is.
    """
    recipe = recipe_of(shape, wanted) | {"log_every": 1}
    for stage in recipe["stages"]:
        stage["steps"] = 2
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "text.txt").write_text("".join(f"This is sentence number {number}.\n" for number in range(5000)))
    _stacking(folder, "prepare", "text.txt", "--out", "data", "--vocabulary-size", "300")
    found = Pauses(shape, wanted.ranks)
    for number in range(wanted.repeats):
        run = RunFolder(folder / f"run-{number}")
        _stacking(folder, "run", "recipe.yaml", "--data", "data", "--run-dir", run.path.name)
        checkpoint = checkpoints.latest(_stage(run, 0).checkpoints)
        assert checkpoint is not None  # the stage is complete
        found.pauses.append(pause(run))
        found.checkpoints.append((checkpoint / MANIFEST).stat().st_mtime - _last_update(run))
        found.copies.append(_copy_seconds(checkpoint, folder / "copy"))
        found.checkpoint_bytes = bytes_below(checkpoint)
        shutil.rmtree(run.path)
    return found


def pause(run: RunFolder) -> float:
    """Returns the seconds from the end of the first stage's last update to the start of the second's first one."""
    first = next(record for record in read_metrics(_stage(run, 1).metrics) if record["kind"] == "train")
    return float(first["time"] - first["seconds"] - _last_update(run))


def _last_update(run: RunFolder) -> float:
    """Returns when the first stage's last update ended, in unix time."""
    return float([record for record in read_metrics(_stage(run, 0).metrics) if record["kind"] == "train"][-1]["time"])


def _stage(run: RunFolder, index: int) -> StageFolder:
    return run.stage(load_plan(run.plan).stages[index].name)


def _copy_seconds(checkpoint: Path, copy: Path) -> float:
    subprocess.run(["sync"], check=True)
    started = time.monotonic()
    subprocess.run(durable_copy(checkpoint, copy), check=True)
    seconds = time.monotonic() - started
    shutil.rmtree(copy)
    return seconds


def _stacking(folder: Path, *arguments: str) -> None:
    log = folder / f"{arguments[0]}.log"
    with open(log, "ab") as output:
        argv = [sys.executable, "-m", "stacking", *arguments]
        code = subprocess.run(argv, cwd=folder, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        raise StackingError(f"stacking {arguments[0]} ended with {code} (its output: {log})")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", type=click.Choice([*SHAPES]), default="110M", show_default=True, help="Of the first stage.")
@click.option("--ranks", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="bf16", show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--folder", type=FOLDER, help="An empty one on the disk to measure. Default: a temporary one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_relaunch(shape: str, ranks: int, precision: str, repeats: int, folder: Path | None, as_json: bool) -> None:
    """Measure the pause between two stages of a run, compared with a durable copy of the checkpoint.

    From the last update of the first stage to the first of the second.
    """
    wanted = Wanted(ranks=ranks, precision=precision, repeats=repeats)
    if folder is not None:
        require_empty(folder, "--folder")
        folder.mkdir(parents=True, exist_ok=True)
    place = folder or Path(tempfile.mkdtemp(prefix="stacking-relaunch-"))
    found = measure(shape, wanted, place)
    if folder is None:
        shutil.rmtree(place)
    if as_json:
        click.echo(json.dumps({**asdict(found), "ratio": found.ratio}, indent=2))
        return
    click.echo(f"{found.shape} on {found.ranks} ranks, checkpoint of {found.checkpoint_bytes / 1e9:.2f} GB")
    click.echo(
        f"pause {median(found.pauses):.1f} s, of these {median(found.checkpoints):.1f} s for the last checkpoint; "
        f"durable copy {median(found.copies):.1f} s; medians of {repeats}"
    )
    click.echo(f"pause / copy {found.ratio:.2f}; goal: at most {GOAL}")


if __name__ == "__main__":
    run_command(bench_relaunch)
