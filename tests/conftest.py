"""Fast tests first: what starts no processes of its own, then SLURM without ranks, then ranks, at last ranks on SLURM.

In parallel (``--dist loadgroup``), what starts ranks stays on one worker, for ranks fill all cores. All other tests go
file by file to whoever is free, ranks on SLURM first, for they take long and wait more than they compute.
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
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("ranks" if distributed and not slurm else str(item.path)))


def _cost(item: pytest.Item) -> tuple[bool, ...]:
    marks = {mark.name for mark in item.iter_markers()}
    return tuple(name in marks for name in ("distributed", "slurm", "slow"))
