"""Proves on the null GPU that this project's host code is right on every generation of cards: tools/prove_gpu.

What one update asks of the device, beside its bounds, for every card, precision and ZeRO level; whole runs, from text
to report; and every case of `tools/gpu_bench`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tools.benchmarks.gpu import NAMES
from tools.null_gpu.bench import missing
from tools.null_gpu.bounds import BOUNDS, MOST_RESERVED, WAITS_OF_ANY_UPDATE, WAITS_OF_STEP
from tools.null_gpu.card import CARDS
from tools.null_gpu.programs import Failed, benched, trained, update_counts

Proof = Callable[[], tuple[list[str], str]]
"""Returns what is wrong, and what was found."""


@dataclass(frozen=True)
class Case:
    """One way to train."""

    card: str
    precision: str
    zero: int
    ranks: int = 1

    @property
    def settings(self) -> list[str]:
        """Overrides of the recipe."""
        zero = f"ds_config.zero_optimization.stage={self.zero}"
        return [f"precision={self.precision}", zero, f"launch.ranks={self.ranks}"]

    def __str__(self) -> str:
        return f"{self.card} {self.precision} ZeRO {self.zero}{' 2 ranks' if self.ranks > 1 else ''}"


UPDATES = tuple(Case(card, precision, zero) for card, precision in BOUNDS for zero in range(4))
_CARDS_OF_RUNS = {
    "fp32": ("P40", "V100", "A100", "H100"),
    "fp16": ("V100", "A100", "H100", "H100"),
    "bf16": ("A100", "H100", "A100", "H100"),
}
"""Of ZeRO 0, 1, 2 and 3."""
RUNS = (
    *(Case(card, precision, zero) for precision, cards in _CARDS_OF_RUNS.items() for zero, card in enumerate(cards)),
    *(Case("A100", "bf16", zero, ranks=2) for zero in (1, 3)),
)
"""Every card in each of its precisions, and every precision at each ZeRO level; all of it would take an hour."""


def broken(case: Case, found: Mapping[str, Any]) -> list[str]:
    """Returns the bounds that an update does not keep."""
    bound = BOUNDS[case.card, case.precision]
    limits = {
        "launches": bound.launches[case.zero],
        "waits": WAITS_OF_ANY_UPDATE[case.zero],
        "waits of the step": WAITS_OF_STEP[case.precision][case.zero],
        "recompiled": 0,
        "allocated": found["planned"],
        "reserved": round(MOST_RESERVED * found["planned"]),
    }
    problems = [f"{found[name]} {name}, at most {limit}" for name, limit in limits.items() if found[name] > limit]
    chosen = {"attention": bound.attention, "compile": "each layer" if bound.compiled and case.zero < 3 else "no"}
    wrong = (name for name, expected in chosen.items() if found[name] != expected)
    return [*problems, *(f"{name}: {found[name]}, not {chosen[name]}" for name in wrong)]


def prove_update(case: Case) -> tuple[list[str], str]:
    """Counts what an update asks of the device."""
    found = update_counts(case.card, case.settings)
    counted = f"{found['launches']:5} launches, {found['waits']} + {found['waits of the step']:2} waits"
    planned, allocated, reserved = (f"{found[name] / 1e9:.2f}" for name in ("planned", "allocated", "reserved"))
    memory = f"{allocated} of {planned} GB planned, {reserved} reserved"
    return broken(case, found), f"{counted}, {memory}, {found['attention']}, compiled: {found['compile']}"


def prove_run(case: Case, folder: Path) -> tuple[list[str], str]:
    """Trains the whole recipe in ``folder``."""
    left = trained(case.card, case.ranks, case.settings, folder / str(case))
    return [f"it leaves no {name}" for name in ("report.html", "export") if name not in left], "from text to report"


def prove_bench(card: str, folder: Path) -> tuple[list[str], str]:
    """Runs every case of `tools/gpu_bench` in ``folder``."""
    cases = benched(card, folder / f"bench-{card}")
    return missing(card, cases), f"{len(cases)} of {len(NAMES)} cases"


def proved(name: str, proof: Proof) -> bool:
    """Makes one proof and prints its line."""
    try:
        problems, found = proof()
    except Failed as failure:
        problems, found = [str(failure)], ""
    print(f"{name:33} {'FAILED' if problems else 'ok    '} {'; '.join(filter(None, [found, *problems]))}", flush=True)
    return not problems


def main() -> int:
    """Prints a line per proof; returns 1 if one fails."""
    parser = argparse.ArgumentParser(prog="tools/prove_gpu", description="Prove the host side of CUDA without a card.")
    parser.add_argument("only", nargs="?", default="", metavar="TEXT", help="only proofs with this in their name")
    only = parser.parse_args().only
    with tempfile.TemporaryDirectory() as folder:
        proofs: dict[str, Proof] = {f"update {case}": partial(prove_update, case) for case in UPDATES}
        proofs |= {f"run {case}": partial(prove_run, case, Path(folder)) for case in RUNS}
        proofs |= {f"bench {card}": partial(prove_bench, card, Path(folder)) for card in CARDS}
        chosen = {name: proof for name, proof in proofs.items() if only in name}
        if not chosen:
            parser.error(f"no proof is called {only!r}, but {', '.join(proofs)}")
        failures = [name for name, proof in chosen.items() if not proved(name, proof)]
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
