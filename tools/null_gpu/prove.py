"""Proves on the null GPU that this project's host code is right on every generation of cards.

For every card, precision and ZeRO level: what one update asks of the device, beside its bounds; and for every card a
whole run, from text to the report.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tools.null_gpu.__main__ import environment
from tools.null_gpu.bounds import BOUNDS, WAITS_OF_ANY_UPDATE, WAITS_OF_STEP
from tools.null_gpu.build import ROOT
from tools.null_gpu.card import CARDS

RECIPE = Path(__file__).with_name("proof.yaml")
_SECONDS = 600


@dataclass(frozen=True)
class Case:
    """One way to train."""

    card: str
    precision: str
    zero: int

    @property
    def settings(self) -> list[str]:
        """Overrides of the recipe."""
        return [f"precision={self.precision}", f"ds_config.zero_optimization.stage={self.zero}"]

    def __str__(self) -> str:
        return f"{self.card} {self.precision} ZeRO {self.zero}"


CASES = tuple(Case(card, precision, zero) for card, precision in BOUNDS for zero in range(4))


class Failed(Exception):
    """A program ended with an error on the null GPU; the message holds the end of what it said."""


def counts(case: Case) -> dict[str, Any]:
    """Returns what one update asks of the device; see `tools.null_gpu.measure`.

    Raises:
        Failed: the update failed.
    """
    said = _run(case.card, ["tools.null_gpu.measure", str(RECIPE), *case.settings])
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def trained(case: Case, folder: Path) -> list[str]:
    """Trains the whole recipe in ``folder``, which holds ``data``, and returns the names of what the run left behind.

    Raises:
        Failed: the run failed.
    """
    run = f"run-{case.card}"
    settings = [word for setting in case.settings for word in ("--set", setting)]
    _run(case.card, ["stacking", "run", str(RECIPE), "--data", "data", "--run-dir", run, *settings], folder)
    return sorted(path.name for path in (folder / run).iterdir())


def _run(card: str, module: list[str], folder: Path = ROOT) -> str:
    argv, variables = [sys.executable, "-m", *module], environment(CARDS[card])
    done = subprocess.run(argv, cwd=folder, env=variables, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise Failed(f"{module[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def broken(case: Case, found: Mapping[str, Any]) -> list[str]:
    """Returns the bounds that an update does not keep."""
    bound = BOUNDS[case.card, case.precision]
    limits = {
        "launches": bound.launches[case.zero],
        "waits": WAITS_OF_ANY_UPDATE[case.zero],
        "waits of the step": WAITS_OF_STEP[case.zero],
        "compiled": 0,
    }
    problems = [f"{found[name]} {name}, at most {limit}" for name, limit in limits.items() if found[name] > limit]
    if found["attention"] != bound.attention:
        problems.append(f"attention by {found['attention']}, not {bound.attention}")
    return problems


def update_of(case: Case) -> tuple[bool, str]:
    """Returns whether an update keeps its bounds, and a line about it."""
    found = counts(case)
    problems = broken(case, found)
    memory = f"{found['reserved'] / 1e9:.2f} of {found['planned'] / 1e9:.2f} GB planned"
    counted = f"{found['launches']:5} launches, {found['waits']} + {found['waits of the step']:2} waits, {memory}"
    return not problems, "; ".join([f"{counted}, {found['attention']}", *problems])


def run_of(case: Case, folder: Path) -> tuple[bool, str]:
    """Returns whether a whole run in ``folder`` leaves a report behind, and a line about it."""
    ends = "report.html" in trained(case, folder)
    return ends, "a whole run ends with its report" if ends else "a whole run leaves no report"


def main() -> int:
    """Prints a line per proof; returns 1 if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        prepare = [sys.executable, "-m", "stacking", "prepare", "--embedded", "--vocabulary-size", "300"]
        subprocess.run([*prepare, "--out", f"{folder}/data"], cwd=ROOT, check=True, capture_output=True)
        run = partial(run_of, folder=Path(folder))
        failures = [_failed(update_of, case) for case in CASES]
        failures += [_failed(run, case) for case in CASES if case.zero == 1]
    return int(any(failures))


def _failed(proof: Callable[[Case], tuple[bool, str]], case: Case) -> bool:
    """Makes one proof and prints its line."""
    try:
        good, line = proof(case)
    except Failed as failure:
        good, line = False, str(failure)
    print(f"{case!s:20} {'ok    ' if good else 'FAILED'} {line}", flush=True)
    return not good


if __name__ == "__main__":
    sys.exit(main())
