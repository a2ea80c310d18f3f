"""Moves the learning rate of a recipe: all its rates in proportion, so that the highest becomes a given one."""

from __future__ import annotations

from stacking.config.recipe import Recipe

_RATES: dict[str, tuple[str, ...]] = {
    "stages": (),
    "warmup-stable-decay": ("peak", "final"),
    "WarmupLR": ("warmup_max_lr", "warmup_min_lr"),
    "WarmupDecayLR": ("warmup_max_lr", "warmup_min_lr"),
    "WarmupCosineLR": ("peak",),
    "OneCycle": ("cycle_max_lr", "cycle_min_lr"),
}
"""The keys of each kind of schedule that are learning rates."""
_RATES_OF_A_STAGE = ("start", "peak", "end")


def rate_overrides(recipe: Recipe, before: float, peak: float) -> list[str]:
    """Returns the ``KEY=VALUE`` that change the highest learning rate of ``recipe`` from ``before`` to ``peak``."""
    found = {f"schedule.{key}": getattr(recipe.schedule, key) for key in _RATES[recipe.schedule.kind]}
    for index, stage in enumerate(recipe.stages):
        if stage.learning_rate is not None:
            rates = {key: getattr(stage.learning_rate, key) for key in _RATES_OF_A_STAGE}
            found |= {f"stages[{index}].learning_rate.{key}": rate for key, rate in rates.items()}
    return [f"{key}={peak if rate == before else rate * peak / before!r}" for key, rate in found.items() if rate]
