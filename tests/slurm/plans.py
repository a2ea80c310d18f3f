"""An invented plan of three stages that need more and more nodes; the parts that submission reads are realistic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stacking.config.recipe import Resources
from stacking.planning.plan import Plan
from tests.report.synthetic import synthetic_plan


def plan_for_jobs(
    ranks: Sequence[int] = (2, 4, 8),
    accelerator: str = "cuda",
    resources: Sequence[Resources] = (Resources(), Resources(hours=36), Resources(hours=72.5, partition="big")),
    **changes: Any,
) -> Plan:
    plan = synthetic_plan((3, 6, 12), (100, 100, 100))
    stages = [
        stage.model_copy(update={"ranks": ranks[stage.index], "resources": resources[stage.index]})
        for stage in plan.stages
    ]
    launch = plan.launch.model_copy(update={"accelerator": accelerator, "resources": Resources(hours=100)})
    return plan.model_copy(update={"stages": tuple(stages), "launch": launch, **changes})
