"""Plans to predict, and measurements of them generated from a known law."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stacking.config.recipe import load_recipe
from stacking.estimate.prediction import Basis
from stacking.estimate.setting import open_setting
from stacking.planning.make_plan import make_plan
from stacking.planning.plan import Plan, StagePlan
from tests.small_recipe import MACHINE


def shipped(name: str = "bert-large-a100", *overrides: str) -> Plan:
    return make_plan(load_recipe(name, list(overrides)), None, None, MACHINE)


def tabled(plan: Plan, **options: Any) -> Basis:
    """What the tables say of the plan's devices."""
    setting = open_setting(plan, MACHINE, **options)
    assert setting is not None
    return setting


def seconds_by_law(layers: int, micro_batch: int) -> float:
    """Forward and backward times of an imaginary device: affine in the depth, and in the micro-batch."""
    return 0.001 + layers * (0.0005 + 0.0002 * micro_batch)


def bench_stage(plan: Plan, stage: StagePlan, communication: float = 0.002, **changes: Any) -> dict[str, Any]:
    """One stage as `stacking bench` prints it, timed by ``seconds_by_law``."""
    found = {
        "name": stage.name,
        "layers": stage.layers,
        "hidden": plan.model.hidden,
        "sequence_length": plan.data.sequence_length,
        "precision": stage.precision,
        "micro_batch": stage.micro_batch,
        "accumulation": stage.accumulation,
        "ranks": stage.ranks,
        "zero_stage": stage.zero_stage,
        "vocabulary": plan.model.vocabulary,
        "data": plan.data.samples,
        "warmup_steps": 0,
        **changes,
    }
    computed = found["accumulation"] * seconds_by_law(found["layers"], found["micro_batch"])
    split = {"forward": computed / 3, "backward": computed * 2 / 3, "data": 0.0001, "optimizer": 0.003}
    split["communication"] = communication if found["ranks"] > 1 else 0.0
    whole = sum(split.values()) + 0.0005
    times = {"seconds_per_step": whole, "split": split, "startup_seconds": 1.5, "warmup_seconds": 0.0}
    found["measurements"] = {"stacking": times}
    return found


def bench_file(path: Path, stages: Sequence[dict[str, Any]], changes: Mapping[str, Any] = {}) -> Path:
    content = {"format": 1, "kind": "bench", "hardware": {"device": "cpu"}, "stages": list(stages)}
    path.write_text(json.dumps(content | changes))
    return path


def doctor_file(path: Path, collectives: Sequence[dict[str, Any]], **more: Any) -> Path:
    path.write_text(json.dumps({"format": 1, "kind": "doctor", "collectives": list(collectives), **more}))
    return path
