"""Results of runs that never happened."""

from __future__ import annotations

from stacking.glue.recipes import settings
from stacking.glue.results import SeedResult


def result(task: str, seed: int, scores: dict[str, dict[str, float]], failed: bool = False) -> SeedResult:
    """One run; always answering the most frequent label scores zero."""
    return SeedResult(
        task=task,
        seed=seed,
        model="model",
        data="data",
        start=None,
        recipe=settings("original")[task],
        encoder="stacking, without padding",
        notes=(),
        max_length=128,
        cut=0,
        left_out=0,
        steps=100,
        loss=0.5,
        seconds=2.0,
        scores=scores,
        majority={name: dict.fromkeys(values, 0.0) for name, values in scores.items()},
        failed=failed,
    )
