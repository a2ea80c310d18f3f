"""Scales the length of a recipe's training: its counts of updates and tokens, by one factor, which keeps shares.

Warm-ups stay as they are: Adam needs as many updates to settle in a short training as in a long one. So trainings of
several lengths have the same rates until the first of them decays.
"""

from __future__ import annotations

from collections.abc import Iterator

from stacking.config.recipe import Growth, Recipe, Stage, StageGrowth

_OF_THE_SCHEDULE = (
    "total_num_steps",
    "cycle_first_step_size",
    "cycle_second_step_size",
    "decay_step_size",
    "rewarmup_steps",
)
"""The keys of all kinds of schedules that count updates, without warm-ups."""


def length_overrides(recipe: Recipe, factor: float) -> list[str]:
    """Returns the ``KEY=VALUE`` that make the training of ``recipe`` ``factor`` times as long, to whole updates.

    What happens every so many updates (evaluations, checkpoints, log records) stays as it is.
    """
    return [f"{key}={max(1, round(count * factor))}" for key, count in _lengths(recipe) if count]


def _lengths(recipe: Recipe) -> Iterator[tuple[str, int | None]]:
    """Yields every count of updates or tokens under its key; None: not set."""
    for key in _OF_THE_SCHEDULE:
        yield f"schedule.{key}", getattr(recipe.schedule, key, None)
    yield from _of_growth("growth", recipe.growth)
    for index, stage in enumerate(recipe.stages):
        for key, count in _of_stage(stage):
            yield f"stages[{index}].{key}", count


def _of_stage(stage: Stage) -> Iterator[tuple[str, int | None]]:
    yield "steps", stage.steps
    yield "tokens", stage.tokens
    if stage.until:
        yield "until.at_most", stage.until.at_most
    if stage.growth:
        yield from _of_growth("growth", stage.growth)


def _of_growth(place: str, growth: Growth | StageGrowth) -> Iterator[tuple[str, int]]:
    if growth.new_layers:
        yield f"{place}.new_layers.alone_steps", growth.new_layers.alone_steps
        yield f"{place}.new_layers.rewarmup_steps", growth.new_layers.rewarmup_steps
    if growth.trial:
        yield f"{place}.trial.steps", growth.trial.steps
