"""Proves on the null GPU that this project's host code is right on every generation of cards.

For every card, precision and ZeRO level: what one update asks of the device, beside its bounds; and for every card a
whole run, from text to the report.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.null_gpu.__main__ import environment
from tools.null_gpu.bounds import BOUNDS, WAITS_OF_ANY_UPDATE, WAITS_OF_STEP
from tools.null_gpu.card import CARDS

ROOT = Path(__file__).parent.parent.parent
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
    """Trains the whole recipe in ``folder`` and returns the names of what the run left behind.

    Raises:
        Failed: the run failed.
    """
    text = folder / "text"
    text.mkdir()
    words = " ".join(f"word{number % 97}" for number in range(200))
    (text / "text.txt").write_text("\n\n".join(f"{words} {number}." for number in range(400)))
    _run(case.card, ["stacking", "prepare", "text", "--out", "data", "--vocabulary-size", "300"], folder)
    settings = [word for setting in case.settings for word in ("--set", setting)]
    _run(case.card, ["stacking", "run", str(RECIPE), "--data", "data", "--run-dir", "run", *settings], folder)
    return sorted(path.name for path in (folder / "run").iterdir())


def _run(card: str, module: list[str], folder: Path = ROOT) -> str:
    variables = dict(environment(CARDS[card]))
    variables["PYTHONPATH"] = f"{variables['PYTHONPATH']}:{ROOT}"
    argv = [sys.executable, "-m", *module]
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


def run_of(case: Case) -> tuple[bool, str]:
    """Returns whether a whole run leaves a report behind, and a line about it."""
    with tempfile.TemporaryDirectory() as folder:
        ends = "report.html" in trained(case, Path(folder))
    return ends, "a whole run ends with its report" if ends else "a whole run leaves no report"


def main() -> int:
    """Prints a line per proof; returns 1 if one fails."""
    proofs = [(update_of, case) for case in CASES] + [(run_of, case) for case in CASES if case.zero == 1]
    failures = 0
    for proof, case in proofs:
        try:
            good, line = proof(case)
        except Failed as failure:
            good, line = False, str(failure)
        failures += not good
        print(f"{case!s:20} {'ok    ' if good else 'FAILED'} {line}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
