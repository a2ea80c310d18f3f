"""Ends stages when their held-out loss levels off: the rule, and the plan once a length is decided.

The run's total number of updates is fixed, and with it the learning-rate curve and the sample order: the updates that
such a stage leaves over go to the last stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum, log2

from stacking.config.recipe import Recipe, Until, WarmupStableDecay
from stacking.errors import UserError
from stacking.planning.plan import Plan, StagePlan
from stacking.planning.schedule import cut_into_stages


def settled_from(stage: StagePlan, schedule: WarmupStableDecay | None) -> int:
    """Returns the update of ``stage`` after which its evaluations count: warm-ups and growth are over."""
    warmup = max(0, schedule.warmup_steps - stage.first_step) if schedule else 0
    if stage.growth is None:
        return warmup
    new = stage.growth.new_layers
    return max(warmup, schedule.rewarmup_steps if schedule else 0, new.rewarmup_steps, new.alone_steps)


def has_levelled(until: Until, evaluations: Sequence[tuple[int, float]]) -> bool:
    """Returns whether the loss falls by less than ``until.plateau`` per doubling of the updates.

    The fall is the slope of a line fitted by least squares to the latest losses over the logarithm of the update.

    Args:
        evaluations: update (from 1) and held-out loss, oldest first.
    """
    latest = evaluations[-until.evaluations :]
    if len(latest) < until.evaluations:
        return False
    x, y = [log2(step) for step, _ in latest], [loss for _, loss in latest]
    x0, y0 = fsum(x) / len(x), fsum(y) / len(y)
    slope = fsum((a - x0) * (b - y0) for a, b in zip(x, y, strict=True)) / fsum((a - x0) ** 2 for a in x)
    return -slope < until.plateau


def with_lengths(plan: Plan, lengths: Mapping[int, int]) -> Plan:
    """Returns ``plan`` with the decided ``lengths`` of stages, in updates, keyed by their index."""
    if not lengths:
        return plan
    steps = [lengths.get(stage.index, stage.steps) for stage in plan.stages]
    steps[-1] += sum(stage.steps for stage in plan.stages) - sum(steps)
    assert plan.schedule is not None  # checked when the plan was made
    curves = cut_into_stages(plan.schedule, steps, [stage.growth is not None for stage in plan.stages])
    stages: list[StagePlan] = []
    for stage, count, curve in zip(plan.stages, steps, curves, strict=True):
        share = count / stage.steps
        first_step = stages[-1].first_step + stages[-1].steps if stages else 0
        first_sample = stages[-1].last_sample if stages else 0
        changes = {
            "steps": count,
            "first_step": first_step,
            "first_sample": first_sample,
            "last_sample": first_sample + count * stage.global_batch,
            "tokens": count * stage.global_batch * plan.data.sequence_length,
            "epochs": None if stage.epochs is None else stage.epochs * share,
            "flops": stage.flops * share,
            "learning_rate": curve,
            "until": None if stage.index in lengths else stage.until,
        }
        stages.append(stage.model_copy(update=changes))
    cost = plan.cost.model_copy(update={"flops": fsum(stage.all_flops for stage in stages)})
    return plan.model_copy(update={"stages": tuple(stages), "cost": cost})


def check_until(recipe: Recipe, stages: Sequence[StagePlan]) -> None:
    """Checks that the stages which end automatically can.

    Raises:
        UserError: the schedule depends on the stages' lengths, no later stage takes the remaining updates, the batches
            differ, or a stage has too few evaluations.
    """
    last = stages[-1]
    for stage in (stage for stage in stages if stage.until is not None):
        assert stage.until is not None
        where = recipe.key("stages", stage.index, "until")
        if not isinstance(recipe.schedule, WarmupStableDecay):
            problem = f"cannot be used in a {recipe.schedule.kind} schedule, which depends on the lengths of the stages"
            raise UserError(where, problem, "set schedule.kind to warmup-stable-decay, or give steps")
        if stage is last:
            raise UserError(
                where, "is in the last stage, which takes the other stages' remaining updates", "give steps"
            )
        if stage.global_batch != last.global_batch:
            problem = f"needs the last stage's batch of {last.global_batch} sequences, but has {stage.global_batch}"
            raise UserError(where, problem, "give both stages the same batch")
        begin, every = settled_from(stage, recipe.schedule), recipe.evaluation.every_steps
        if stage.until.at_most // every - begin // every < stage.until.evaluations:
            problem = (
                f"is never decided: {stage.until.evaluations} evaluations, one every {every:,} updates, do not fit"
            )
            remedy = "evaluate more often, or raise at_most"
            raise UserError(where, f"{problem} between update {begin:,} and {stage.until.at_most:,}", remedy)
