"""Everything that is asked of a GPU, in one command: `tools/gpu_bench`. It writes a results file that can be committed.

python -m tools.benchmarks.gpu [--only CASE,...] [--budget 9m] [--quick] [--out FOLDER]
"""

from __future__ import annotations

import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import click

from stacking.bench.results import StageResult
from stacking.bench.targets import targets, trial_of
from stacking.bench.trial import run_trial
from stacking.cli.options import FOLDER
from stacking.errors import StackingError, UserError
from stacking.hardware.machine import find_machine
from stacking.hardware.nvidia_smi import installed_gpus
from stacking.launch.local import Local
from stacking.storage.files import disk_errors, read_json, write_atomically, write_json
from tools.benchmarks.gpu_cases import CASES, Case
from tools.benchmarks.gpu_page import OPERATORS, as_markdown
from tools.benchmarks.gpu_programs import PROGRAMS, Setting, measure_program, run_command

NAMES = (*CASES, OPERATORS, *PROGRAMS)
_CASE_SECONDS = 1800


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure training steps."""

    repeats: int
    warmup: int
    steps: int = 5
    least_seconds: float = 3.0
    """Of one repeat."""
    quick: bool = False
    """Small models and commands that end soon: whether all of it works."""


_QUICK = Effort(repeats=1, warmup=1, steps=1, least_seconds=0.0, quick=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", metavar="CASE,...", help=f"Of {', '.join(NAMES)}; default: all.")
@click.option("--out", type=FOLDER, default=Path("benchmarks"), show_default=True)
@click.option("--budget", metavar="9m", help="Stop after so many minutes; the same command measures the rest.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--warmup", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--quick", is_flag=True, help="Only look whether every case works: small models, a file of its own.")
def gpu_bench(only: str | None, out: Path, budget: str | None, repeats: int, warmup: int, quick: bool) -> None:
    """Benchmarks one GPU; earlier results on the same card are kept in its results file."""
    names = only.split(",") if only else NAMES
    for name in names:
        if name not in NAMES:
            raise UserError("--only", f"{name!r} is not known", f"give {', '.join(NAMES)}")
    end = math.inf if budget is None else time.monotonic() + _seconds(budget)
    if not find_machine().accelerators:
        raise UserError("tools/gpu_bench", "there is no CUDA device here", "run it on a machine with one")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    effort = _QUICK if quick else Effort(repeats=repeats, warmup=warmup)
    results = Results(out, installed_gpus()[0].name, quick)
    if budget is not None:
        known = results.content()["cases"]
        names = [name for name in names if name not in known]
    left = measure_until(end, names, results, effort)
    click.echo(as_markdown(results.content()))
    if left:
        click.echo(f"The budget ended before {', '.join(left)}: run the same command again.", err=True)


@dataclass(frozen=True)
class Results:
    """The results file of a card."""

    folder: Path
    card: str
    quick: bool = False

    @property
    def path(self) -> Path:
        """The JSON; its page lies beside it."""
        return self.folder / f"gpu-{_slug(self.card)}{'-quick' if self.quick else ''}.json"

    def content(self) -> dict[str, Any]:
        """Returns what the file holds."""
        empty = {"format": 1, "kind": "gpu-bench", "quick": self.quick, "hardware": {"name": self.card}, "cases": {}}
        content: dict[str, Any] = read_json(self.path) if self.path.exists() else empty
        return content

    def record(self, name: str, found: dict[str, Any]) -> None:
        """Adds a case, and writes the page again."""
        content = self.content()
        content["hardware"] |= found.pop("hardware", {})
        content["cases"][name] = {"date": f"{date.today():%Y-%m-%d}", **found}
        write_json(self.path, content)
        write_atomically(self.path.with_suffix(".md"), as_markdown(content))


def measure_until(end: float, names: Sequence[str], results: Results, effort: Effort) -> Sequence[str]:
    """Measures and records one case after the other; returns those that ``end``, of the monotonic clock, left out."""
    for position, name in enumerate(names):
        if (left := end - time.monotonic()) <= 0:
            return names[position:]
        click.echo(f"{name} …", err=True)
        found = _measured(name, results.path.with_suffix("") / name, effort, left)
        if time.monotonic() >= end:  # cut off, not measured
            return names[position:]
        results.record(name, found)
    return []


def _measured(name: str, folder: Path, effort: Effort, left_seconds: float) -> dict[str, Any]:
    """Returns what a case gave; ``folder`` is where a program that is cut off can go on."""
    if name in PROGRAMS:
        program, setting = PROGRAMS[name], Setting(find_machine().device.precision, effort.quick)
        return measure_program(program, setting, folder, min(left_seconds, program.most_seconds))
    limit = min(left_seconds, _CASE_SECONDS)
    if name == OPERATORS:
        return measure_operators(folder, limit, compiling=not effort.quick)
    return measure_case(CASES[name], effort, limit)


def _seconds(budget: str) -> int:
    if (match := re.fullmatch(r"([1-9]\d*)m", budget)) is None:
        raise UserError("--budget", f"{budget!r} is not a number of minutes", "write it as 9m")
    return 60 * int(match[1])


def measure_case(case: Case, effort: Effort, limit_seconds: float) -> dict[str, Any]:
    """One case: the benchmark's JSON of its stage, and what it ran on."""
    end = time.monotonic() + limit_seconds
    launcher = Local()
    wanted = (case.small() if effort.quick else case).wanted
    how = {name: getattr(effort, name) for name in ("repeats", "warmup", "steps", "least_seconds")}
    while True:
        target = targets(wanted)[0]
        trial = trial_of(target, wanted, ("stacking", *case.against), None, **how)
        with tempfile.TemporaryDirectory(prefix="stacking-gpu-bench-") as folder:
            result = StageResult(trial, run_trial(trial, Path(folder), launcher, max(0, end - time.monotonic())))
        assert wanted.micro_batch is not None  # every case has one
        if result.result.outcome != "out-of-memory" or wanted.micro_batch == 1:
            break
        wanted = replace(wanted, micro_batch=wanted.micro_batch // 2)
    return {"title": case.title, "hardware": result.result.hardware, **result.as_dict()}


def measure_operators(folder: Path, limit_seconds: float, compiling: bool = True) -> dict[str, Any]:
    """DeepSpeed's kernels; rows with a reason instead of seconds where they cannot be had.

    They are compiled in ``folder``, which is kept if that takes too long, and where no other build leaves a lock.

    Args:
        compiling: False leaves DeepSpeed's own out, which takes minutes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for lock in folder.glob("*/lock"):
        lock.unlink()
    # A toolkit whose minor version differs from the one of torch compiles these kernels all the same.
    settings = {"DS_SKIP_CUDA_CHECK": "1", "TORCH_EXTENSIONS_DIR": str(folder.absolute())}
    command = ("tools.benchmarks.deepspeed_ops", "rows.json", *(() if compiling else ("--no-deepspeed",)))
    ended = run_command(command, folder, limit_seconds, settings)
    file = folder / "rows.json"
    rows = read_json(file) if file.exists() else []
    if not ended.problem:
        shutil.rmtree(folder)
    return {"rows": rows, "message": ended.problem}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")


def main() -> None:
    """Like `stacking.cli.main.main`, reports a user error in one line and exits with 2."""
    try:
        gpu_bench.main(standalone_mode=False)
    except (click.ClickException, StackingError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"stacking: {' '.join(message.split())}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
