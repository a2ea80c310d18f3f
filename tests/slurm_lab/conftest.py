"""One SLURM and one undisturbed run for the session; tests are skipped where SLURM cannot run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chain import prepare_text, write_recipe
from tests.slurm_lab.jobs import create, submit
from tests.slurm_lab.lab import TOOL, Lab


@pytest.fixture(scope="session")
def session_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab itself; tests that use it directly clear it first."""
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


@pytest.fixture(scope="session")
def recipe(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages on two ranks that are long enough to be disturbed."""
    first = {"layers": 1, "steps": 400, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}}
    rarely = {"checkpoint": {"every_steps": 60, "keep": 2}, "evaluation": {"every_steps": 200, "samples": 16}}
    folder = tmp_path_factory.mktemp("long")
    return write_recipe(folder, data, stages=[first, {"layers": 2, "steps": 300}], **rarely)


@pytest.fixture(scope="session")
def undisturbed(session_lab: Lab, recipe: Path) -> Path:
    """The run of ``recipe`` in one job of two nodes."""
    session_lab.clear()
    run = create(recipe, recipe.parent / "undisturbed")
    job = submit(session_lab, run)
    assert session_lab.wait_for_end(job)["JobState"] == "COMPLETED", session_lab.output(job)
    return run


@pytest.fixture(scope="module")
def network_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A SLURM whose nodes have their own addresses and cables that can be cut."""
    if reason := _missing("--network"):
        pytest.skip(reason)
    lab = Lab(tmp_path_factory.mktemp("network"), "--network")
    yield lab
    lab.stop()


def _missing(*options: str) -> str:
    """Why SLURM cannot run here; empty where it can."""
    check = subprocess.run([sys.executable, str(TOOL), "check", *options], capture_output=True, text=True)
    return check.stderr.strip()
