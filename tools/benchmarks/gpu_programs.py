"""What `tools/gpu_bench` measures with this project's own commands, each in processes of its own with a time limit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_ROOT = Path(__file__).parents[2]
_RECIPES = Path(__file__).with_name("recipes")
_DIRECT, _STACKED = (str(_RECIPES / name) for name in ("direct.yaml", "stacked.yaml"))
_GRACE_SECONDS = 20
"""For a command that is asked to stop: it writes what it can continue from."""
Command = Sequence[str]
"""A Python module and its arguments."""


class Ended(NamedTuple):
    """How a command ended."""

    printed: str
    problem: str
    """Empty if it succeeded."""


@dataclass(frozen=True)
class Setting:
    """What commands depend on."""

    precision: str
    """The card's own."""
    quick: bool
    """Whether a look at whether they work is enough."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """Commands that run one after the other in a folder; the last one prints the result."""

    title: str
    commands: Callable[[Setting], Sequence[Command]]
    most_seconds: float = 1800
    resumes: bool = False
    """Whether the same commands continue in the same folder if they are cut off."""


def _transitions(setting: Setting) -> Sequence[Command]:
    size = ("tiny", "--repeats", "1", "--no-deepspeed") if setting.quick else ("110M",)
    options = ("--ranks", "1", "--precision", setting.precision)
    return [("tools.benchmarks.transition_command", *options, "--shape", *size)]


def _relaunch(setting: Setting) -> Sequence[Command]:
    size = ("tiny", "--repeats", "1") if setting.quick else ("110M",)
    return [("tools.benchmarks.relaunch", "--ranks", "1", "--precision", setting.precision, "--shape", *size)]


def _tune(setting: Setting) -> Sequence[Command]:
    size = ("1", *_set("model.shape=bert-small")) if setting.quick else ("12",)
    return [("stacking", "tune", _STACKED, "--stages", "0", "--out", "tuned", "--trials", *size)]


def _demo(setting: Setting) -> Sequence[Command]:
    shorter = ("stages[0].steps=8", "stages[1].steps=8", "schedule.warmup_steps=2") if setting.quick else ()
    return [
        _text(vocabulary=1024),
        ("stacking", "run", "demo", "--data", "text", "--run-dir", "stacked", *_set(*shorter)),
        ("stacking", "baseline", "stacked", "--run-dir", "direct"),
    ]


def _compare(setting: Setting) -> Sequence[Command]:
    smaller = ("--scale", "0.004", *_set("model.shape=bert-small", "schedule.warmup_steps=2"))
    arms = ("stacking", "compare", _DIRECT, _STACKED, "--data", "text", "--out", "compared", "--seeds", "1")
    return [_text(vocabulary=8192), (*arms, *smaller) if setting.quick else arms]


def _text(vocabulary: int) -> Command:
    return ("stacking", "prepare", "--embedded", "--vocabulary-size", str(vocabulary), "--out", "text")


def _set(*changes: str) -> Command:
    return [word for change in changes for word in ("--set", change)]


PROGRAMS: Mapping[str, Program] = {
    "transitions": Program(title="Consolidate, grow and load, beside cp", commands=_transitions),
    "relaunch": Program(title="The pause between two stages of a run", commands=_relaunch),
    "tune": Program(title="Tuning 3 layers of BERT-base", commands=_tune, resumes=True),
    "demo": Program(title="The demo: from text to report, and its baseline", commands=_demo),
    "compare": Program(
        title="BERT-base grown from 3 over 6 to 12 layers, beside 12 from the start",
        commands=_compare,
        most_seconds=4 * 3600,
        resumes=True,
    ),
}


def measure_program(program: Program, setting: Setting, folder: Path, limit_seconds: float) -> dict[str, Any]:
    """Returns what the last command printed, or why there is nothing, and the seconds of all commands.

    Args:
        folder: for the commands' files; what is left there continues a program that can be continued.
        limit_seconds: of all commands together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started, printed, problem = time.monotonic(), "", ""
    for command in program.commands(setting):
        left = limit_seconds - (time.monotonic() - started)
        printed, problem = run_command(command, folder, left)
        if problem:
            break
    if not (problem and program.resumes):
        shutil.rmtree(folder)
    return {
        "title": program.title,
        "outcome": "failed" if problem else "measured",
        "message": problem,
        "seconds": time.monotonic() - started,
        "printed": "" if problem else printed,
    }


def run_command(
    command: Command, folder: Path, limit_seconds: float, settings: Mapping[str, str] | None = None
) -> Ended:
    """Runs a command in ``folder``, with variables of its own.

    Args:
        limit_seconds: when it is asked to stop.
    """
    search_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search_path, **(settings or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, complaint = process.communicate(timeout=max(0, limit_seconds))
    except subprocess.TimeoutExpired:
        _stop(process)
        return Ended("", f"took longer than {limit_seconds:.0f} s")
    last = next(reversed(complaint.splitlines()), "no output")
    problem = f"{' '.join(command[:2])} ended with {process.returncode}: {last}" if process.returncode else ""
    return Ended(printed, problem)


def _stop(process: subprocess.Popen[str]) -> None:
    """Asks the command to stop, and ends it and its children if it does not."""
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
