"""Fast tests first: those that start no processes, then SLURM without ranks, then ranks, finally ranks on SLURM.

In parallel (``--dist loadgroup``), tests that start several ranks stay on one worker, because ranks use all cores. All
others, with ``distributed(ranks=1)`` too, go file by file to whichever worker is free, those on SLURM first: they take
long and wait more than they compute.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import hypothesis
import pytest

from tests.chain import SHARED

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is not a failure
hypothesis.settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder that all workers share, which is removed at the end of the session; limits threads.

    Workers and ranks together have more threads than there are cores, and those of one process wait for each other
    actively: with two threads each, tests that compute take six times as much CPU time.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not hasattr(config, "workerinput"):
        os.environ[SHARED] = tempfile.mkdtemp(prefix="stacking-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ[SHARED]))


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
