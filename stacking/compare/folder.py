"""Defines the layout of a comparison's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stacking.run.folder import RunFolder
from stacking.run.lease import Lease
from stacking.storage.files import disk_errors


class CompareFolder:
    """Names the paths inside the folder of a comparison, ``OUT/``."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.lock = self.path / "lock"
        self.page = self.path / "compare.html"
        self.picture = self.path / "compare.png"
        self.result = self.path / "compare.json"
        self.step_times = self.path / "step-times.json"
        self.tuning = self.path / "tuning.json"

    def run(self, arm: str, seed: int) -> RunFolder:
        """Returns the run folder of one seed of an arm."""
        return RunFolder(self.path / "arms" / arm / f"seed-{seed}")

    def runs(self, seed: int) -> list[RunFolder]:
        """Returns the existing run folders of one seed, in the order of the arms' names."""
        return [RunFolder(plan.parent) for plan in sorted(self.path.glob(f"arms/*/seed-{seed}/plan.json"))]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the folder and holds its lock.

        Raises:
            UserError: another process works on this comparison.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lease = Lease(self.lock, patience=10.0)
        try:
            yield
        finally:
            lease.close()
