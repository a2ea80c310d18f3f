"""Findings about cores, memory, limits and the disk. Invented facts, since no test can have 64 MB of /dev/shm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.doctor.checks.disk import checkpoint_bytes, run_bytes
from stacking.doctor.facts import Facts, FolderFacts, Host
from tests.doctor.sample_machines import A100, GiB, findings, machine, only, plan_for


def host(ranks: int = 1, **changes: Any) -> Facts:
    facts: dict[str, Any] = {"name": "n1", "cores": 8, "affinity": 8, "memory": 16 * GiB, "available": 8 * GiB}
    return machine(host=Host(**(facts | changes)), ranks=ranks)


def folder(**changes: Any) -> FolderFacts:
    facts: dict[str, Any] = {"path": "/runs", "filesystem": "ext4", "free": 10**12, "write": 1e9, "read": 2e9}
    return FolderFacts(**(facts | changes))


def test_threads_of_all_ranks_need_cores() -> None:
    assert only("cores", host(ranks=2)).found == "8 for 2 ranks here"
    assert only("cores", host(ranks=9)).level == "warning"
    threads = only("cores", host(ranks=2, environment={"OMP_NUM_THREADS": "8"}))
    assert (threads.level, threads.advice) == ("warning", "set OMP_NUM_THREADS to 4")
    assert only("cores", host(affinity=2)).found == "2 of 8 for 1 rank here"


def test_a_control_group_may_allow_fewer_cores_than_the_host_has() -> None:
    found = only("cores", host(quota=2.5, ranks=2))
    assert found.level == "warning" and "allows the time of 2.5" in found.found
    assert found.advice.startswith("set OMP_NUM_THREADS to 1")


def test_a_gpu_needs_a_core_to_feed_it_and_one_to_read() -> None:
    narrow = Host(name="n1", cores=64, affinity=4)
    assert only("cores", machine(A100, host=narrow, ranks=4)).level == "warning"
    assert only("cores", machine(A100, host=narrow, ranks=2)).level == "ok"


def test_memory_is_compared_with_the_plan() -> None:
    plan = plan_for(accelerator="cpu")
    large = tuple(stage.model_copy(update={"memory_per_rank": 20 * GiB}) for stage in plan.stages)
    facts = host().model_copy(update={"plan": plan.model_copy(update={"stages": large})})
    assert "the plan's estimate is 24.0" in only("memory", facts).found
    assert only("memory", host()).level == "ok"
    assert only("memory", host(available=GiB // 2)).level == "warning"


def test_shared_memory_of_a_container_is_too_small_for_several_ranks() -> None:
    found = only("shared memory", host(ranks=2, shared_memory=64 << 20))
    assert (found.level, found.found) == ("warning", "64 MiB for 2 ranks") and "--shm-size" in found.advice
    assert only("shared memory", host(shared_memory=64 << 20)).level == "ok"
    assert only("shared memory", host(shared_memory=None)).level == "warning"


def test_locked_memory_matters_with_infiniband() -> None:
    assert only("locked memory", host(locked_memory=None)).found == "unlimited"
    assert only("locked memory", host(locked_memory=8 << 20)).level == "ok"
    limited = Host(name="n1", locked_memory=8 << 20, infiniband=("mlx5_0",))
    assert only("locked memory", machine(A100, host=limited)).level == "warning"


def test_a_low_limit_on_open_files_is_reported() -> None:
    assert only("open files", host(open_files=256)).advice == "ulimit -n 4096"
    assert [only("open files", host(open_files=n)).level for n in (1024, None)] == ["ok", "ok"]


def test_a_slow_disk_is_reported_with_the_time_a_checkpoint_takes() -> None:
    assert only("disk speed", machine(folder=folder())).level == "ok"
    assert only("disk speed", machine(folder=folder(write=50e6))).level == "warning"
    plan = plan_for()
    huge = tuple(stage.model_copy(update={"parameters": 10**10}) for stage in plan.stages)
    slow = only("disk speed", machine(folder=folder(), plan=plan.model_copy(update={"stages": huge})))
    assert slow.level == "warning" and "a checkpoint takes about 160 s" in slow.found
    assert findings("disk speed", machine(folder=folder(write=None, read=None))) == []


def test_free_space_is_compared_with_what_the_run_will_keep() -> None:
    plan = plan_for()
    need = run_bytes(plan)
    levels = [
        only("disk space", machine(folder=folder(free=free, used=used), plan=plan)).level
        for free, used in ((need, 0), (need / 2, 0), (need / 2, need / 2), (1000, 0), (1000, need))
        for free, used in [(int(free) + 1, int(used) + 1)]
    ]
    assert levels == ["ok", "warning", "ok", "error", "ok"]
    assert only("disk space", machine(folder=folder(free=10**9))).level == "warning"
    assert only("disk space", machine(folder=folder())).level == "ok"


@given(keep=st.integers(1, 10))
def test_a_run_needs_at_least_the_space_of_its_checkpoints(keep: int) -> None:
    plan = plan_for()
    plan = plan.model_copy(update={"checkpoint": plan.checkpoint.model_copy(update={"keep": keep})})
    assert run_bytes(plan) > keep * sum(map(checkpoint_bytes, plan.stages))


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "ok", "ext4, files can be locked"),
        ({"filesystem": "nfs4"}, "ok", "nfs4, files can be locked"),
        ({"filesystem": "lustre", "lock_error": "ENOSYS"}, "error", "lustre cannot lock files (ENOSYS)"),
        ({"filesystem": "tmpfs"}, "warning", "lost when the machine restarts"),
    ],
)
def test_a_runs_folder_must_be_lockable_and_persistent(changes: dict[str, str], level: str, words: str) -> None:
    found = only("file system", machine(folder=folder(**changes)))
    assert found.level == level and words in found.found
