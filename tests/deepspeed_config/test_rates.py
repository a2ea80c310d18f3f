"""DeepSpeed's schedules in a recipe: the same learning rate at every update as from DeepSpeed's own class."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime import lr_schedules
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from stacking.config.recipe import Schedule, recipe_from
from stacking.hardware.machine import Machine
from stacking.hardware.presets import DEVICE_CLASSES
from stacking.planning.adopt import adopt_content
from stacking.planning.deepspeed_rates import knots, rate_at
from stacking.planning.make_plan import make_plan
from stacking.planning.schedule import learning_rate_at, sampled
from tests.small_recipe import MACHINE

PEAK = 2e-3
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("WarmupLR", {"warmup_min_lr": 1e-5, "warmup_max_lr": 1e-3, "warmup_num_steps": 37, "warmup_type": "linear"}, 100),
    ("WarmupLR", {"warmup_max_lr": 1e-3, "warmup_num_steps": 370}, 1000),
    ("WarmupLR", {"warmup_max_lr": 1e-3, "warmup_num_steps": 1}, 10),
    ("WarmupDecayLR", {"warmup_max_lr": 1e-3, "warmup_num_steps": 37, "total_num_steps": 200}, 300),
    ("WarmupDecayLR", {"warmup_num_steps": 30, "total_num_steps": 20, "warmup_type": "linear"}, 50),
    ("WarmupCosineLR", {"warmup_min_ratio": 0.1, "warmup_num_steps": 37, "total_num_steps": 200}, 300),
    ("WarmupCosineLR", {"warmup_num_steps": 3700, "total_num_steps": 20_000, "cos_min_ratio": 0.1}, 21_000),
    ("OneCycle", {"cycle_min_lr": 1e-5, "cycle_max_lr": 1e-3, "cycle_first_step_size": 30,
                  "cycle_second_step_size": 50, "decay_step_size": 10, "decay_lr_rate": 0.5}, 300),
    ("OneCycle", {"cycle_min_lr": 1e-5, "cycle_max_lr": 1e-3, "cycle_first_step_size": 30,
                  "cycle_second_step_size": 0}, 100),
    ("OneCycle", {"cycle_min_lr": 0, "cycle_max_lr": 1e-3, "cycle_first_step_size": 31,
                  "cycle_first_stair_count": 7, "cycle_second_stair_count": 3}, 100),
]  # fmt: skip


def theirs(kind: str, params: dict[str, Any], updates: int, rate: float = PEAK) -> list[float]:
    """The rate that DeepSpeed's class gives each update for an optimizer with this ``rate``."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    more = {"cycle_momentum": False} if kind == "OneCycle" else {}
    schedule = getattr(lr_schedules, kind)(optimizer, **params, **more)
    rates = []
    for _ in range(updates):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return rates


@pytest.mark.parametrize(("kind", "params", "updates"), CASES)
def test_every_update_uses_deepspeeds_rate(kind: str, params: dict[str, Any], updates: int) -> None:
    peak = {"peak": PEAK} if kind == "WarmupCosineLR" else {}
    ours: Any = TypeAdapter(Schedule).validate_python({"kind": kind, **params, **peak})
    expected = theirs(kind, params, updates)
    assert [rate_at(ours, n, updates) for n in range(updates)] == pytest.approx(expected, rel=1e-12, abs=1e-18)
    inner = [knot for knot in knots(ours, updates) if 0 < knot < updates]
    points = sampled(lambda n: rate_at(ours, n, updates), updates, inner)
    followed = [learning_rate_at(points, n) for n in range(updates)]
    assert followed == pytest.approx(expected, rel=1e-12, abs=1.1e-6 * max(expected) if updates > 2048 else 1e-18)


@pytest.mark.parametrize(("kind", "params", "updates"), [case for case in CASES if case[2] <= 300])
def test_an_adopted_scheduler_trains_at_deepspeeds_rates(kind: str, params: dict[str, Any], updates: int) -> None:
    content = {"optimizer": {"type": "AdamW", "params": {"lr": PEAK}}, "scheduler": {"type": kind, "params": params}}
    machine = Machine(accelerators=8, device=DEVICE_CLASSES["v100"], memory=16 << 30, cores=8)
    raw = copy.deepcopy(adopt_content(content, None, None, machine, "ds.json").recipe)
    raw["stages"] = [{"layers": 3, "steps": updates // 3, "batch_sequences": 8}, {"layers": 6, "steps": updates}]
    plan = make_plan(recipe_from({**raw, "ds_config": None}, Path("r.yaml")), None, None, MACHINE)
    rates = [learning_rate_at(stage.learning_rate, step) for stage in plan.stages for step in range(stage.steps)]
    assert rates == pytest.approx(theirs(kind, params, len(rates)), rel=1e-9, abs=1e-18)


RATE = st.floats(1e-6, 1e-2)
STEPS = st.integers(1, 40)
TYPES = st.sampled_from(["log", "linear"])
WARM = {"warmup_num_steps": STEPS, "warmup_type": TYPES}
RANDOM = st.one_of(
    st.tuples(st.just("WarmupLR"), st.fixed_dictionaries({**WARM, "warmup_min_lr": RATE, "warmup_max_lr": RATE})),
    st.tuples(
        st.just("WarmupDecayLR"),
        st.fixed_dictionaries({**WARM, "warmup_min_lr": RATE, "warmup_max_lr": RATE, "total_num_steps": STEPS}),
    ),
    st.tuples(
        st.just("WarmupCosineLR"),
        st.fixed_dictionaries(
            {**WARM, "total_num_steps": STEPS, "warmup_min_ratio": st.floats(0, 1), "cos_min_ratio": st.floats(0, 0.9)}
        ),
    ),
    st.tuples(
        st.just("OneCycle"),
        st.fixed_dictionaries(
            {
                "cycle_min_lr": st.floats(1e-6, 1e-3),
                "cycle_max_lr": st.floats(1e-3, 1e-2),
                "cycle_first_step_size": STEPS,
            },
            optional={
                "cycle_second_step_size": STEPS,
                "cycle_first_stair_count": st.integers(0, 5),
                "cycle_second_stair_count": st.integers(0, 5),
                "decay_step_size": st.integers(0, 9),
                "decay_lr_rate": st.floats(0, 2),
            },
        ),
    ),
)


@given(RANDOM)
def test_any_parameters_give_deepspeeds_rates(case: tuple[str, dict[str, Any]]) -> None:
    kind, params = case
    peak = {"peak": PEAK} if kind == "WarmupCosineLR" else {}
    ours: Any = TypeAdapter(Schedule).validate_python({"kind": kind, **params, **peak})
    expected = theirs(kind, params, 120)
    assert [rate_at(ours, n, 120) for n in range(120)] == pytest.approx(expected, rel=1e-9, abs=1e-18)


AUTOMATIC = st.sets(st.sampled_from(["warmup_max_lr", "total_num_steps"]))
MISSING = st.sampled_from(["", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "cos_min_ratio"])
TEXT = st.booleans()
LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(RANDOM, LENGTHS, RATE, AUTOMATIC, MISSING, TEXT)
def test_any_adopted_scheduler_keeps_deepspeeds_rates_across_stage_boundaries(
    case: tuple[str, dict[str, Any]], lengths: list[int], rate: float, automatic: set[str], missing: str, text: bool
) -> None:
    kind, full = case
    stated = {key: value for key, value in full.items() if key != missing}
    autos = automatic & stated.keys()
    meant = {**stated, **{key: rate if key == "warmup_max_lr" else sum(lengths) for key in autos}}
    file = {key: "auto" if key in autos else str(value) if text else value for key, value in stated.items()}
    adam = {"type": "AdamW", "params": {"lr": rate}}
    machine = Machine(accelerators=8, device=DEVICE_CLASSES["v100"], memory=16 << 30, cores=8)
    raw = adopt_content({"optimizer": adam, "scheduler": {"type": kind, "params": file}}, None, 8, machine, "d").recipe
    sizes = [{"layers": 3 * 2**i, "steps": steps} for i, steps in enumerate(lengths)]
    raw["stages"] = [{**sizes[0], "batch_sequences": 8}, *sizes[1:]]
    if "schedule" not in raw:  # everything was automatic
        assert autos == stated.keys()
        return
    plan = make_plan(recipe_from({**raw, "ds_config": None}, Path("r.yaml")), None, None, machine)
    rates = [learning_rate_at(stage.learning_rate, step) for stage in plan.stages for step in range(stage.steps)]
    assert rates == pytest.approx(theirs(kind, meant, sum(lengths), rate), rel=1e-9, abs=1e-18)
