"""Turns the recipe's schedule of learning rates into break points that the workers follow.

A stage's schedule is a list of ``(step, value)``, interpolated linearly. The value at ``step`` is used by update number
``step`` of the stage, counted from 0; the last point is at the stage's number of steps, where the next stage begins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from stacking.config.recipe import DeepSpeedSchedule, LearningRate, Recipe, StagesSchedule, WarmupStableDecay
from stacking.errors import UserError
from stacking.planning.deepspeed_rates import knots, rate_at
from stacking.terminal.units import counted

Points = tuple[tuple[int, float], ...]


def learning_rate_at(points: Sequence[Sequence[float]], step: float) -> float:
    """Evaluates ``points`` at ``step``; constant before the first point and after the last."""
    if step <= points[0][0]:
        return points[0][1]
    if step >= points[-1][0]:
        return points[-1][1]
    right = bisect_right([point[0] for point in points], step)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (step - x0) / (x1 - x0)


def resolve_schedule(recipe: Recipe, steps: Sequence[int], grown: Sequence[bool]) -> list[Points]:
    """Computes the break points of every stage.

    Args:
        steps: updates of each stage.
        grown: whether each stage begins with growth, so that a re-warm-up applies.

    Raises:
        UserError: a warm-up is longer than its stage, a decay overlaps the warm-up, or the first peak is missing.
    """
    if isinstance(recipe.schedule, StagesSchedule):
        stages = _stage_by_stage(recipe, steps)
    elif isinstance(recipe.schedule, WarmupStableDecay):
        stages = _over_the_run(recipe, recipe.schedule, steps)
    else:
        stages = _as_deepspeed(recipe, recipe.schedule, steps)
    rise = recipe.schedule.rewarmup_steps
    for i, (count, is_grown) in enumerate(zip(steps, grown, strict=True)):
        if is_grown and rise > count:
            where = recipe.key("schedule", "rewarmup_steps")
            raise UserError(where, f"is {rise:,}, but stages[{i}] has {counted(count, 'step')}", "give fewer")
    return _with_rises(stages, rise, grown)


def cut_into_stages(schedule: WarmupStableDecay, steps: Sequence[int], grown: Sequence[bool]) -> list[Points]:
    """Returns the break points of every stage of a schedule over the run; arguments as in `resolve_schedule`."""
    total = sum(steps)
    decay = round(total * schedule.decay_share)
    run = warmup_stable_decay(total, schedule.peak, schedule.warmup_steps, decay, schedule.final)
    ends = list(accumulate(steps))
    cut = [_between(run, end - count, end) for end, count in zip(ends, steps, strict=True)]
    return _with_rises(cut, schedule.rewarmup_steps, grown)


def _with_rises(stages: Sequence[Points], rise: int, grown: Sequence[bool]) -> list[Points]:
    return [
        _with_rise(points, rise) if rise and is_grown else points
        for points, is_grown in zip(stages, grown, strict=True)
    ]


def warmup_stable_decay(total: int, peak: float, warmup: int, decay: int, final: float) -> Points:
    """Warm up from 0 over ``warmup`` steps, hold the peak, then decay linearly to ``final`` over the last ``decay``."""
    points = [(0, 0.0), (warmup, peak), (total - decay, peak), (total, final if decay else peak)]
    return _distinct(points[1:] if warmup == 0 else points)


def _over_the_run(recipe: Recipe, schedule: WarmupStableDecay, steps: Sequence[int]) -> list[Points]:
    _refuse_rates_of_stages(recipe, schedule.kind)
    total = sum(steps)
    decay = round(total * schedule.decay_share)
    if schedule.warmup_steps + decay > total:
        where = recipe.key("schedule", "warmup_steps")
        problem = f"is {schedule.warmup_steps:,}, which with {decay:,} steps of decay exceeds the run's {total:,}"
        raise UserError(where, problem, f"give at most {total - decay:,}")
    return cut_into_stages(schedule.model_copy(update={"rewarmup_steps": 0}), steps, [False] * len(steps))


def _refuse_rates_of_stages(recipe: Recipe, kind: str) -> None:
    for i, stage in enumerate(recipe.stages):
        if stage.learning_rate is not None:
            where = recipe.key("stages", i, "learning_rate")
            raise UserError(where, f"cannot be used in a {kind} schedule", "remove it, or schedule.kind")


def _as_deepspeed(recipe: Recipe, schedule: DeepSpeedSchedule, steps: Sequence[int]) -> list[Points]:
    """Cuts one of DeepSpeed's schedules over the run into stages."""
    _refuse_rates_of_stages(recipe, schedule.kind)
    total, first, cut = sum(steps), 0, []

    def following(start: int) -> Callable[[int], float]:
        return lambda step: rate_at(schedule, start + step, total)

    for count in steps:
        inner = [knot - first for knot in knots(schedule, total) if 0 < knot - first < count]
        cut.append(sampled(following(first), count, inner))
        first += count
    return cut


_DENSE = 2048
"""Up to this many steps, every step is a break point."""
_TOLERANCE = 1e-6
"""Maximum distance between a line and the curve, relative to the curve's highest value."""


def sampled(rate: Callable[[int], float], steps: int, inner: Sequence[int] = ()) -> Points:
    """Approximate ``rate`` by break points: exactly for a short stage, else to a millionth of its highest value.

    Args:
        rate: the learning rate of an update, counted from 0.
        steps: steps of the stage.
        inner: steps at which the curve has a kink; each becomes a break point.
    """
    if steps <= _DENSE:
        return _straightened([(step, rate(step)) for step in range(steps + 1)])
    bounds = sorted({0, steps, *inner, *(knot + 1 for knot in inner), *(steps * n // 64 for n in range(64))})
    highest = max(rate(step) for step in bounds)
    points = [(0, rate(0))]
    waiting = list(pairwise(bounds))[::-1]
    while waiting:
        left, right = waiting.pop()
        quarters = {left + (right - left) * n // 4 for n in (1, 2, 3)} - {left}
        low, slope = rate(left), (rate(right) - rate(left)) / (right - left)
        if all(abs(rate(s) - low - slope * (s - left)) <= _TOLERANCE * highest for s in quarters):
            points.append((right, rate(right)))
        else:
            middle = (left + right) // 2
            waiting += [(middle, right), (left, middle)]
    return tuple(points)


def _straightened(points: list[tuple[int, float]]) -> Points:
    """Drops the points that lie on the line between their neighbours, up to rounding."""
    kept = points[:1]
    for before, here, after in zip(points, points[1:], points[2:], strict=False):
        (x0, y0), (x1, y1) = kept[-1], after
        line = y0 + (y1 - y0) * (here[0] - x0) / (x1 - x0)
        next_to = before[1] + (after[1] - before[1]) / 2
        scale = 1e-13 * max(abs(y0), abs(y1), abs(here[1]))
        if abs(line - here[1]) > scale or abs(next_to - here[1]) > scale:
            kept.append(here)
    return (*kept, points[-1])


def _stage_by_stage(recipe: Recipe, steps: Sequence[int]) -> list[Points]:
    resolved: list[Points] = []
    for i, (stage, count) in enumerate(zip(recipe.stages, steps, strict=True)):
        wanted = stage.learning_rate or LearningRate()
        handed_on = resolved[-1][-1][1] if resolved else None
        if handed_on is None and wanted.peak is None:
            where = recipe.key("stages", i, "learning_rate", "peak")
            raise UserError(where, "is missing", "add it: the highest learning rate, such as 1e-4")
        if wanted.warmup_steps > count:
            where = recipe.key("stages", i, "learning_rate", "warmup_steps")
            raise UserError(where, f"is {wanted.warmup_steps:,}, more than the {counted(count, 'step')}", "give fewer")
        resolved.append(_one_stage(wanted, count, handed_on))
    return resolved


def _one_stage(wanted: LearningRate, steps: int, handed_on: float | None) -> Points:
    peak = wanted.peak if wanted.peak is not None else handed_on
    if not wanted.warmup_steps:
        value = wanted.start if wanted.start is not None else peak
        assert value is not None  # the first stage sets its peak, the others inherit a value
        return ((0, value), (steps, value if wanted.end is None else wanted.end))
    assert peak is not None
    start = next(value for value in (wanted.start, handed_on, 0.0) if value is not None)
    end = peak if wanted.end is None else wanted.end
    return _distinct([(0, start), (wanted.warmup_steps, peak), (steps, end)])


def _with_rise(points: Points, steps: int) -> Points:
    """Returns ``points`` with the first ``steps`` rising from 0 to the original value."""
    later = [point for point in points if point[0] > steps]
    return _distinct([(0, 0.0), (steps, learning_rate_at(points, steps)), *later])


def _between(points: Points, first: int, last: int) -> Points:
    """Returns the part of ``points`` from ``first`` to ``last``, counted from ``first``."""
    inner = [(step - first, value) for step, value in points if first < step < last]
    ends = [(0, learning_rate_at(points, first)), *inner, (last - first, learning_rate_at(points, last))]
    return _distinct(ends)


def _distinct(points: Sequence[tuple[int, float]]) -> Points:
    """Drops the earlier of two points on one step, and starts at 0."""
    kept = [a for a, b in zip(points, [*points[1:], None], strict=True) if b is None or a[0] != b[0]]
    return tuple(kept) if kept[0][0] == 0 else ((0, kept[0][1]), *kept)
