"""One SLURM for the session, empty again after every test; its tests are skipped where there cannot be one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chain import prepare_text
from tests.slurm_lab.lab import TOOL, Lab


@pytest.fixture(scope="session")
def session_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab itself; whoever uses it directly clears it first."""
    if reason := _missing():
        pytest.skip(reason)
    lab = Lab(tmp_path_factory.mktemp("slurm"))
    yield lab
    lab.stop()


@pytest.fixture
def lab(session_lab: Lab) -> Iterator[Lab]:
    """SLURM with three idle nodes of two CPUs."""
    session_lab.clear()
    yield session_lab
    session_lab.clear()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, the same for all tests."""
    return prepare_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def network_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A SLURM whose nodes have addresses of their own and cables that can be cut."""
    if reason := _missing("--network"):
        pytest.skip(reason)
    lab = Lab(tmp_path_factory.mktemp("network"), "--network")
    yield lab
    lab.stop()


def _missing(*options: str) -> str:
    """Why there can be no SLURM here; empty where there can."""
    check = subprocess.run([sys.executable, str(TOOL), "check", *options], capture_output=True, text=True)
    return check.stderr.strip()
