"""Fast tests first: what starts no processes of its own, then SLURM without ranks, then ranks, at last ranks on SLURM.

In parallel (``--dist loadgroup``), what starts ranks stays on one worker, for ranks fill all cores, and what starts
ranks through SLURM on another, for it waits more than it computes. These two begin at once; all other tests go file by
file to whoever is free.
"""

from __future__ import annotations

import hypothesis
import pytest

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("patient")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_cost, reverse=hasattr(config, "workerinput"))
    for item in items:
        distributed, slurm, _ = _cost(item)
        group = "slurm" if slurm else "ranks"
        item.add_marker(pytest.mark.xdist_group(group if distributed else str(item.path)))


def _cost(item: pytest.Item) -> tuple[bool, ...]:
    marks = {mark.name for mark in item.iter_markers()}
    return tuple(name in marks for name in ("distributed", "slurm", "slow"))
