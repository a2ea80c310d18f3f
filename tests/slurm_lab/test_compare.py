"""A comparison through SLURM: every run is a chain of its own, and submitting twice is harmless."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stacking.run.folder import RunFolder
from tests.compare.test_compare import write_recipe
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.submitted import ROOT

pytestmark = pytest.mark.slurm


def waiting(folder: Path) -> Path:
    """An interpreter that waits in place of the controller."""
    path = folder / "waiting"
    path.write_text(f'#!/bin/sh\ncase "$2" in stacking.slurm.*) exec {sys.executable} "$@";; esac\nexec sleep 600\n')
    path.chmod(0o755)
    return path


def test_every_run_is_submitted_once_as_a_chain(lab: Lab, data: Path, tmp_path: Path) -> None:
    scratch = write_recipe(tmp_path, "scratch", [2], [24])
    late = write_recipe(tmp_path, "late", [1, 2], [16, 8])
    out, site = tmp_path / "out", tmp_path / "site.yaml"
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    site.write_text(yaml.safe_dump({"python": str(waiting(tmp_path)), "doctor": False, "environment": environment}))
    runs = [RunFolder(out / "arms" / name / "seed-0") for name in ("scratch", "late")]

    def stacking(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "stacking", *map(str, arguments)]
        return subprocess.run(argv, capture_output=True, text=True, env=lab.environment, timeout=200, check=True)

    def submitted() -> list[list[str]]:
        return [[e["name"] for e in run.journal.events() if e["event"] == "submitted"] for run in runs]

    arguments = ["compare", scratch, late, "--data", data, "--out", out, "--seeds", "1", "--submit", "--site", site]
    first = stacking(*arguments)
    assert submitted() == [["0-L2", "finish", "watch"], ["0-L1", "0-L1-to-1-L2", "1-L2", "finish", "watch"]]
    assert "late, seed 0: 0 of 24 updates" in first.stderr and "no seed is finished" in first.stdout
    again = stacking(*arguments)
    assert submitted() == [["0-L2", "finish", "watch"], ["0-L1", "0-L1-to-1-L2", "1-L2", "finish", "watch"]]
    assert "nothing to submit" in again.stderr
    for run in runs:
        stacking("cancel", run.path)
