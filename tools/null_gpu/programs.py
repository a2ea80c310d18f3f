"""The programs that a proof runs on the null GPU, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.null_gpu.__main__ import environment
from tools.null_gpu.build import ROOT
from tools.null_gpu.card import CARDS

RECIPE = Path(__file__).with_name("proof.yaml")
_SECONDS, _BENCH_SECONDS = 1200, 5400


class Failed(Exception):
    """A program ended with an error on the null GPU; the message holds the end of what it said."""


def update_counts(card: str, settings: Sequence[str]) -> dict[str, Any]:
    """Returns what one update asks of the device; see `tools.null_gpu.measure`.

    Raises:
        Failed: the update failed.
    """
    said = _run(card, 1, _module("tools.null_gpu.measure", str(RECIPE), *settings))
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def trained(card: str, ranks: int, settings: Sequence[str], run: Path) -> list[str]:
    """Trains the whole recipe, on a card for each rank, and returns the names of what it left in ``run``.

    Raises:
        Failed: the run failed.
    """
    data = run.parent / "data"
    if not data.exists():
        _run(card, 1, _module("stacking", "prepare", "--embedded", "--vocabulary-size", "300", "--out", str(data)))
    options = [word for setting in settings for word in ("--set", setting)]
    command = _module("stacking", "run", str(RECIPE), "--data", str(data), "--run-dir", str(run), *options)
    _run(card, ranks, command)
    return sorted(path.name for path in run.iterdir())


def host_seconds(card: str, options: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Returns the host's seconds of an update, by contender, repeat and section; see `tools.null_gpu.host_worker`.

    Raises:
        Failed: it ended with an error.
    """
    said = _run(card, 1, _module("tools.null_gpu.host_worker", *options))
    found: dict[str, list[dict[str, float]]] = json.loads(said.splitlines()[-1])
    return found


def benched(card: str, folder: Path) -> dict[str, Any]:
    """Runs a quick `tools/gpu_bench`, and returns the cases of its results file.

    Raises:
        Failed: it ended with an error.
    """
    _run(card, 1, [str(ROOT / "tools" / "gpu_bench"), "--quick", "--out", str(folder)], _BENCH_SECONDS)
    (results,) = folder.glob("*.json")
    cases: dict[str, Any] = json.loads(results.read_text())["cases"]
    return cases


def _module(name: str, *arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", name, *arguments]


def _run(card: str, devices: int, command: Sequence[str], seconds: float = _SECONDS) -> str:
    """Runs a command on a machine with ``devices`` such cards, and returns what it printed.

    Raises:
        Failed: it ended with an error, or not in time.
    """
    # A pool of compilers would take longer to start than the few kernels to compile.
    own = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHON": sys.executable}
    variables = {**environment(CARDS[card], devices), **own}
    name = " ".join(command[:3])
    try:
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Failed(f"{name} takes longer than {seconds:.0f} s") from None
    if done.returncode:
        raise Failed(f"{name} ended with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout
