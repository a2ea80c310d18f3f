"""Makes one comparison at several lengths of training, to show how the gain changes with the budget.

The longest length trains first, and the shorter ones begin with its checkpoints as far as the runs are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stacking.compare.chart import lengths_picture
from stacking.compare.command import CompareRequest, compare
from stacking.compare.curve import MEASURES
from stacking.compare.folder import CompareFolder
from stacking.compare.result import ArmResult, Result
from stacking.compare.work import Tell
from stacking.storage.files import disk_errors, write_atomically, write_json


@dataclass(frozen=True)
class Budgets:
    """Holds the results at several lengths, shortest first."""

    results: tuple[tuple[float, Result], ...]
    """Each with the length of its trainings, relative to the recipes'."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of ``lengths.json``; each length's own ``compare.json`` holds the rest."""
        lengths = [
            {
                "scale": scale,
                "seeds": list(result.seeds),
                "pending": list(result.pending),
                "arms": [_arm_as_dict(arm) for arm in result.arms],
            }
            for scale, result in self.results
        ]
        return {"format": 1, "kind": "compare-lengths", "lengths": lengths}


def _arm_as_dict(arm: ArmResult) -> dict[str, Any]:
    return {
        "name": arm.arm.name,
        "tokens": arm.total("tokens").mean,
        "final_loss": arm.final_loss.as_dict(),
        **{f"speedup_{measure}": arm.final.speedup[measure].as_dict() for measure in MEASURES},
    }


def compare_budgets(request: CompareRequest, scales: Sequence[float], tell: Tell) -> Budgets:
    """Makes the comparison at every length, each in ``OUT/xLENGTH/``, and writes ``lengths.json`` and ``lengths.png``.

    Raises:
        UserError, Preempted, StackingError: as `stacking.compare.command.compare`.
    """
    results: dict[float, Result] = {}
    longest = CompareFolder(request.out / f"x{max(scales):g}")
    reuse = () if request.submit else (*request.reuse, longest.path)
    for scale in sorted(scales, reverse=True):
        folder = CompareFolder(request.out / f"x{scale:g}")
        if longest.step_times.is_file() and not folder.step_times.exists():
            with disk_errors(folder.path):
                folder.path.mkdir(parents=True, exist_ok=True)
            write_atomically(folder.step_times, longest.step_times.read_bytes())
        tell(f"{scale:g} times the recipes' lengths, in {folder.path}")
        others = tuple(path for path in reuse if path != folder.path)
        results[scale] = compare(replace(request, out=folder.path, scale=scale, reuse=others), tell)
    budgets = Budgets(tuple(sorted(results.items())))
    write_json(request.out / "lengths.json", budgets.as_dict())
    if all(result.seeds for result in results.values()):
        write_atomically(request.out / "lengths.png", lengths_picture(list(results.values())))
    return budgets
