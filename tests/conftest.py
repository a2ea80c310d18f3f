"""Fast tests first: those that start no processes, then SLURM without ranks, then ranks, finally ranks on SLURM.

In parallel (``--dist loadgroup``), tests that start several ranks stay on one worker, because ranks use all cores. All
others, with ``distributed(ranks=1)`` too, go file by file to whichever worker is free, those on SLURM first: they take
long and wait more than they compute.
"""

from __future__ import annotations

import hypothesis
import pytest

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is not a failure
hypothesis.settings.load_profile("patient")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_cost, reverse=hasattr(config, "workerinput"))
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("ranks" if _fills_the_cores(item) else str(item.path)))


def _cost(item: pytest.Item) -> tuple[bool, ...]:
    marks = {mark.name for mark in item.iter_markers()}
    return tuple(name in marks for name in ("distributed", "slurm", "slow"))


def _fills_the_cores(item: pytest.Item) -> bool:
    distributed = item.get_closest_marker("distributed")
    return distributed is not None and distributed.kwargs.get("ranks") != 1 and not item.get_closest_marker("slurm")
