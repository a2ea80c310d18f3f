"""Synthetic arms and runs, written from their formats: nothing in them was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stacking.compare.arm import Arm
from stacking.compare.curve import Point
from stacking.compare.result import Trained
from tests.report.synthetic import synthetic_plan


def sample_arm(name: str, layers: Sequence[int], steps: Sequence[int]) -> Arm:
    return Arm(
        name=name,
        source=f"{name}.yaml",
        data=Path("data"),
        overrides=(),
        plan=synthetic_plan(layers, steps),
        held_out=10,
    )


def trained(losses: Sequence[float], seconds_each: float = 10.0, seed: int = 0, rebuilt: bool = True) -> Trained:
    """A run whose evaluations are ``seconds_each`` apart; FLOPs and tokens do not depend on that."""
    curve = tuple(
        Point(
            loss=loss,
            mlm_loss=loss,
            wall=(i + 1) * seconds_each,
            rebuilt=(i + 1) * seconds_each / 2 if rebuilt else None,
            flops=(i + 1) * 1e9,
            tokens=(i + 1) * 100.0,
            layers=12,
        )
        for i, loss in enumerate(losses)
    )
    return Trained(seed=seed, curve=curve)
