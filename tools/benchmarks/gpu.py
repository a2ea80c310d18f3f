"""Everything that is asked of a GPU, in one command: `tools/gpu_bench`. It writes a results file that can be committed.

python -m tools.benchmarks.gpu [--only CASE,...] [--budget 9m] [--out FOLDER]
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import click

from stacking.bench.results import StageResult
from stacking.bench.targets import Wanted, targets, trial_of
from stacking.bench.trial import Contender, run_trial
from stacking.cli.options import FOLDER
from stacking.errors import StackingError, UserError
from stacking.hardware.machine import find_machine
from stacking.hardware.nvidia_smi import installed_gpus
from stacking.launch.local import Local
from stacking.storage.files import disk_errors, read_json, write_atomically, write_json
from stacking.terminal.units import UNKNOWN, count

_OPERATORS = "operators"
_CASE_SECONDS = 1800
_BOTH: tuple[Contender, ...] = ("hugging-face", "hugging-face-compiled")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One benchmark on one GPU, in the precision that suits it."""

    title: str
    wanted: Wanted
    against: tuple[Contender, ...] = _BOTH
    least_mfu: float | None = None
    """The target on an H200 in bf16."""
    least_ratio: float | None = None
    """The same, in tokens/s against compiled Hugging Face."""


def _model(name: str, length: int, micro_batch: int, layers: Sequence[int] = (), ragged: bool = False) -> Wanted:
    return Wanted(target=name, sequence_length=length, micro_batch=micro_batch, layers=layers, ranks=1, ragged=ragged)


CASES: Mapping[str, Case] = {
    "large-128": Case(
        title="BERT-large, 128 tokens", wanted=_model("bert-large", 128, 256), least_mfu=0.5, least_ratio=1.5
    ),
    "large-512": Case(
        title="BERT-large, 512 tokens", wanted=_model("bert-large", 512, 64), least_mfu=0.5, least_ratio=1.5
    ),
    "base-128": Case(
        title="BERT-base, 128 tokens", wanted=_model("bert-base", 128, 512), least_mfu=0.45, least_ratio=1.5
    ),
    "base-128-6": Case(title="6 layers of BERT-base, 128 tokens", wanted=_model("bert-base", 128, 512, layers=(6,))),
    "base-128-3": Case(title="3 layers of BERT-base, 128 tokens", wanted=_model("bert-base", 128, 512, layers=(3,))),
    "ragged-512": Case(
        title="BERT-base, ragged up to 512 tokens",
        wanted=_model("bert-base", 512, 64, ragged=True),
        against=("padded", "hugging-face"),
    ),
}
"""Initial micro-batch; halved until it fits."""
_SHALLOW, _DEEP, _MOST_SHARE = "base-128-3", "base-128", 1 / 3.3
"""Maximum step time of 3 layers, as a share of that of 12."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", metavar="CASE,...", help=f"Of {', '.join(CASES)}, {_OPERATORS}; default: all.")
@click.option("--out", type=FOLDER, default=Path("benchmarks"), show_default=True)
@click.option("--budget", metavar="9m", help="Stop after so many minutes; the same command measures the rest.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--warmup", type=click.IntRange(min=1), default=10, show_default=True)
def gpu_bench(only: str | None, out: Path, budget: str | None, repeats: int, warmup: int) -> None:
    """Benchmarks one GPU; earlier results on the same card are kept in its results file."""
    names = only.split(",") if only else [*CASES, _OPERATORS]
    for name in names:
        if name not in (*CASES, _OPERATORS):
            raise UserError("--only", f"{name!r} is not known", f"give {', '.join((*CASES, _OPERATORS))}")
    end = math.inf if budget is None else time.monotonic() + _seconds(budget)
    if not find_machine().accelerators:
        raise UserError("tools/gpu_bench", "there is no CUDA device here", "run it on a machine with one")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    file = _results_file(out)
    if budget is not None:
        known = _results(file)["cases"]
        names = [name for name in names if name not in known]
    left = measure_until(end, names, out, repeats, warmup)
    click.echo(as_markdown(_results(file)))
    if left:
        click.echo(f"The budget ended before {', '.join(left)}: run the same command again.", err=True)


def measure_until(end: float, names: Sequence[str], out: Path, repeats: int, warmup: int) -> Sequence[str]:
    """Measures and records one case after the other; returns those that ``end``, of the monotonic clock, left out."""
    for position, name in enumerate(names):
        if (limit := min(end - time.monotonic(), _CASE_SECONDS)) <= 0:
            return names[position:]
        click.echo(f"{name} …", err=True)
        found = measure_operators(limit) if name == _OPERATORS else measure_case(CASES[name], repeats, warmup, limit)
        if time.monotonic() >= end:  # cut off, not measured
            return names[position:]
        record(out, name, found)
    return []


def _seconds(budget: str) -> int:
    if (match := re.fullmatch(r"([1-9]\d*)m", budget)) is None:
        raise UserError("--budget", f"{budget!r} is not a number of minutes", "write it as 9m")
    return 60 * int(match[1])


def measure_case(case: Case, repeats: int, warmup: int, limit_seconds: float) -> dict[str, Any]:
    """One case: the benchmark's JSON of its stage, and what it ran on."""
    end = time.monotonic() + limit_seconds
    launcher = Local()
    wanted = case.wanted
    while True:
        target = targets(wanted)[0]
        how = {"repeats": repeats, "warmup": warmup, "steps": 5, "least_seconds": 3.0}
        trial = trial_of(target, wanted, ("stacking", *case.against), None, **how)
        with tempfile.TemporaryDirectory(prefix="stacking-gpu-bench-") as folder:
            result = StageResult(trial, run_trial(trial, Path(folder), launcher, max(0, end - time.monotonic())))
        assert wanted.micro_batch is not None  # every case has one
        if result.result.outcome != "out-of-memory" or wanted.micro_batch == 1:
            break
        wanted = replace(wanted, micro_batch=wanted.micro_batch // 2)
    return {"title": case.title, "hardware": result.result.hardware, **result.as_dict()}


def measure_operators(limit_seconds: float) -> dict[str, Any]:
    """DeepSpeed's kernels; rows with a reason instead of seconds where they cannot be had."""
    with tempfile.TemporaryDirectory(prefix="stacking-gpu-bench-") as folder:
        file = Path(folder) / "rows.json"
        argv = [sys.executable, "-m", "tools.benchmarks.deepspeed_ops", str(file)]
        # A toolkit whose minor version differs from the one of torch compiles these kernels all the same.
        environment = {"DS_SKIP_CUDA_CHECK": "1", **os.environ}
        try:
            ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=limit_seconds)
            message = (
                "" if ended.returncode == 0 else f"ended early: {(ended.stderr.splitlines() or ['no output'])[-1]}"
            )
        except subprocess.TimeoutExpired:
            message = f"took longer than {limit_seconds:.0f} s"
        return {"rows": read_json(file) if file.exists() else [], "message": message}


def record(out: Path, name: str, found: dict[str, Any]) -> tuple[Path, Path]:
    """Adds a case to the card's results; returns the JSON and the table."""
    path = _results_file(out)
    content = _results(path)
    if hardware := found.pop("hardware", None):
        content["hardware"] = hardware
    content["cases"][name] = {"date": f"{date.today():%Y-%m-%d}", **found}
    write_json(path, content)
    write_atomically(path.with_suffix(".md"), as_markdown(content))
    return path, path.with_suffix(".md")


def _results_file(out: Path) -> Path:
    return out / f"gpu-{_slug(installed_gpus()[0].name)}.json"


def _results(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path) if path.exists() else {"format": 1, "kind": "gpu-bench", "cases": {}}
    return content


def as_markdown(content: dict[str, Any]) -> str:
    """The results as a page: cases, depth ratio, DeepSpeed's kernels, what it ran on."""
    cases, hardware = content["cases"], content.get("hardware", {})
    lines = [f"# {hardware.get('name', 'GPU')}", ""]
    measured = [name for name in CASES if name in cases]
    if measured:
        head = "| case | precision | sequences | tokens/s | MFU | aim | Hugging Face | compiled | aim | padded | date |"
        lines += [head, "|---|" + "---:|" * 10, *(_case_row(CASES[name], cases[name]) for name in measured), ""]
        lines += ["Tokens are real ones; the columns of the others are how many times their tokens/s ours are.", ""]
    lines += _depth_lines(cases)
    lines += _operator_lines(cases.get(_OPERATORS))
    lines += [f"- {key.removeprefix('version_')}: {value}" for key, value in hardware.items()]
    return "\n".join(lines) + "\n"


def _case_row(case: Case, stage: dict[str, Any]) -> str:
    ours, ratio = stage["measurements"].get("stacking"), stage["ratio"]
    if ours is None:
        cells = [case.title, stage["precision"], "", f"{stage['outcome']}: {stage['message']}", *[""] * 6]
    else:
        cells = [
            case.title,
            stage["precision"],
            f"{stage['micro_batch']} × {stage['accumulation']}",
            count(ours["real_tokens_per_second"]),
            f"{ours['mfu']:.1%}" if ours["mfu"] else UNKNOWN,
            f"{case.least_mfu:.0%}" if case.least_mfu else "",
            _times(ratio.get("hugging-face")),
            _times(ratio.get("hugging-face-compiled")),
            _times(case.least_ratio),
            _times(ratio.get("padded")),
        ]
    return "| " + " | ".join([*cells, stage["date"]]) + " |"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} ×"


def _depth_lines(cases: dict[str, Any]) -> list[str]:
    """Returns the speed-up per sequence of 3 layers over 12, if both were measured."""
    seconds = {}
    for name in (_SHALLOW, _DEEP):
        ours = cases.get(name, {}).get("measurements", {}).get("stacking")
        if ours is None:
            return []
        seconds[name] = 1 / ours["sequences_per_second"]
    share = seconds[_SHALLOW] / seconds[_DEEP]
    return [f"Step time of 3 layers to 12: 1 : {1 / share:.2f} (aim: at least 1 : {1 / _MOST_SHARE:.1f}).", ""]


def _operator_lines(operators: dict[str, Any] | None) -> list[str]:
    if operators is None:
        return []
    lines = ["| kernel | | ms | first call, s | |", "|---|---|---:|---:|---|"] if operators["rows"] else []
    for row in operators["rows"]:
        took = ["", ""] if row["seconds"] is None else [f"{row['seconds'] * 1e3:.3f}", f"{row['ready_seconds']:.1f}"]
        lines.append(f"| {row['group']} | {row['name']} | {took[0]} | {took[1]} | {row['message'].replace('|', '/')} |")
    if operators["message"]:
        lines += ["", f"DeepSpeed's kernels: {operators['message']}."]
    return [*lines, ""]


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
