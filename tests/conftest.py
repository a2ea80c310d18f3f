"""Fast tests first: what starts no processes of its own, then what starts ranks, then what starts a whole SLURM."""

from __future__ import annotations

import hypothesis
import pytest

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("patient")
_LATER = ("slow", "distributed", "slurm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(
        key=lambda item: max((_LATER.index(m.name) + 1 for m in item.iter_markers() if m.name in _LATER), default=0)
    )
