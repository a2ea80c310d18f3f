"""The memory estimate is above state plus activations, and the limit is shared by the ranks of a host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stacking.hardware.machine import Machine
from stacking.hardware.presets import DEVICE_CLASSES, GiB
from stacking.planning.plan import Plan
from stacking.tune import space
from stacking.tune.space import memory_limit, memory_needed
from tests.small_recipe import MACHINE, SMALL, plan_of


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    return plan_of(SMALL)


def test_a_rank_needs_more_memory_than_its_state_and_activations(plan: Plan) -> None:
    assert memory_needed(plan, plan.stages[0]) > plan.stages[0].memory_per_rank


def test_ranks_of_a_host_share_its_memory(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "_CGROUP", tmp_path / "absent")
    alone, four = memory_limit(plan, MACHINE, 1), memory_limit(plan, MACHINE, 4)
    assert alone is not None and four is not None and four == alone // 4 and alone < MACHINE.memory


@pytest.mark.parametrize(("content", "bytes_"), [(f"{2 * GiB}\n", 2 * GiB), ("max\n", MACHINE.memory)])
def test_a_control_groups_limit_counts(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, bytes_: int
) -> None:
    (tmp_path / "memory.max").write_text(content)
    monkeypatch.setattr(space, "_CGROUP", tmp_path / "memory.max")
    assert memory_limit(plan, MACHINE, 1) == int(0.9 * bytes_)


def test_candidates_near_a_gpus_limit_are_tried(plan: Plan) -> None:
    cuda = plan.model_copy(update={"launch": plan.launch.model_copy(update={"accelerator": "cuda"})})
    gpu = Machine(accelerators=1, device=DEVICE_CLASSES["v100"], memory=16 * GiB, cores=8)
    limit = memory_limit(cuda, gpu, 4)
    assert limit is not None and limit > gpu.memory
    assert memory_limit(cuda, replace(gpu, accelerators=0), 4) is None
