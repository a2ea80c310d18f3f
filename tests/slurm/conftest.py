"""One SLURM for the session, empty again after every test; its tests are skipped where there cannot be one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chain import prepare_text
from tests.slurm.lab import TOOL, Lab


@pytest.fixture(scope="session")
def _slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if reason := _missing():
        pytest.skip(reason)
    lab = Lab(tmp_path_factory.mktemp("slurm"))
    yield lab
    lab.stop()


@pytest.fixture
def lab(_slurm: Lab) -> Iterator[Lab]:
    """SLURM with three idle nodes of two CPUs."""
    _slurm.clear()
    yield _slurm
    _slurm.clear()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, the same for all tests."""
    return prepare_text(tmp_path_factory.mktemp("text"))


def _missing() -> str:
    """Why there can be no SLURM here; empty where there can."""
    programs = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if programs:
        return f"{', '.join(programs)} not found; on Debian: apt-get install slurm-wlm munge"
    check = subprocess.run([sys.executable, str(TOOL), "check"], capture_output=True, text=True)
    return check.stderr.strip()
