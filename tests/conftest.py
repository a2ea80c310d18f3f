"""Fast tests first: what starts no processes of its own, then what starts ranks, then what starts a whole SLURM.

In parallel (``--dist loadgroup``), what starts ranks stays on one worker, for ranks fill all cores, and so does what
needs SLURM, which waits more than it computes. These two begin at once; the fast tests fill up, file by file.
"""

from __future__ import annotations

import hypothesis
import pytest

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("patient")
_LATER = ("slow", "distributed", "slurm")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_cost, reverse=hasattr(config, "workerinput"))
    for item in items:
        group = (item.path.stem, "ranks", "ranks", "slurm")[_cost(item)]
        item.add_marker(pytest.mark.xdist_group(group))


def _cost(item: pytest.Item) -> int:
    return max((_LATER.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in _LATER), default=0)
