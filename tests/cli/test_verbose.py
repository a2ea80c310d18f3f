"""`stacking --verbose` explains decisions on stderr; without it, users only see the progress display."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacking.run.checkpoints import newest_good, tag
from stacking.run.retries import Retries
from stacking.storage.files import new_folder


@pytest.fixture
def debug(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, logger="stacking"):
        yield caplog


def test_a_slurm_query_is_shown_only_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's programs know no jobs here."""
    for program in ("squeue", "sacct", "scontrol", "scancel", "sbatch"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    code = (
        "import sys; from stacking.cli.main import cli; from stacking.launch.slurm_client import jobs\n"
        "cli.main([*sys.argv[1:], 'status', '--help'], standalone_mode=False); jobs([1])"
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    quiet, verbose = (
        subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stderr
        for words in ([], ["-v"])
    )
    assert quiet == "" and "stacking.launch.slurm_client: squeue" in verbose


def test_the_chosen_checkpoint_is_named(debug: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with new_folder(tmp_path / tag(4), {"step": 4}) as checkpoint:
        (checkpoint / "model.pt").write_text("weights")
    newest_good(tmp_path, pytest.fail)
    assert f"{tmp_path / tag(4)} is the newest undamaged checkpoint" in debug.messages


def test_crashes_are_counted(debug: pytest.LogCaptureFixture) -> None:
    retries = Retries(limit=2, seconds=1)
    retries.pause(6)
    retries.pause(6)
    assert debug.messages[-1] == "crash 2 since step 6; 2 retries are allowed"
