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
_SECONDS = 1200


class Failed(Exception):
    """A program ended with an error on the null GPU; the message holds the end of what it said."""


def update_counts(card: str, settings: Sequence[str]) -> dict[str, Any]:
    """Returns what one update asks of the device; see `tools.null_gpu.measure`.

    Raises:
        Failed: the update failed.
    """
    said = _run(card, 1, ["tools.null_gpu.measure", str(RECIPE), *settings])
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def trained(card: str, ranks: int, settings: Sequence[str], run: Path) -> list[str]:
    """Trains the whole recipe, on a card for each rank, and returns the names of what it left in ``run``.

    Raises:
        Failed: the run failed.
    """
    data = run.parent / "data"
    if not data.exists():
        _run(card, 1, ["stacking", "prepare", "--embedded", "--vocabulary-size", "300", "--out", str(data)])
    options = [word for setting in settings for word in ("--set", setting)]
    _run(card, ranks, ["stacking", "run", str(RECIPE), "--data", str(data), "--run-dir", str(run), *options])
    return sorted(path.name for path in run.iterdir())


def _run(card: str, devices: int, module: Sequence[str]) -> str:
    """Runs a module on a machine with ``devices`` such cards, and returns what it printed.

    Raises:
        Failed: it ended with an error, or not in time.
    """
    argv = [sys.executable, "-m", *module]
    # A pool of compilers would take longer to start than the few kernels to compile.
    variables = {**environment(CARDS[card], devices), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    try:
        done = subprocess.run(argv, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed(f"{module[0]} takes longer than {_SECONDS} s") from None
    if done.returncode:
        raise Failed(f"{module[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout
