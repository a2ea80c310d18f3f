"""The lab is a SLURM that preempts, requeues and loses nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm_lab.lab import Lab

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_job_runs_on_several_nodes(lab: Lab, tmp_path: Path) -> None:
    job = lab.sbatch("-N3", "-o", tmp_path / "out", "--wrap", "srun -l printenv SLURMD_NODENAME")
    assert lab.wait_for_end(job)["JobState"] == "COMPLETED"
    assert sorted((tmp_path / "out").read_text().splitlines()) == ["0: n1", "1: n2", "2: n3"]


def test_high_priority_preempts_low_which_is_requeued(lab: Lab, tmp_path: Path) -> None:
    script = "echo started $SLURM_RESTART_COUNT; sleep 2000"
    low = lab.sbatch("-N3", "--exclusive", "--requeue", "-o", tmp_path / "low", "--wrap", script)
    lab.wait_for(low, "RUNNING")
    high = lab.sbatch("-N3", "--exclusive", "-p", "high", "-o", "/dev/null", "--wrap", "sleep 1")
    lab.wait_until(lambda: lab.job(low)["Restarts"] == "1" and lab.state(low) == "RUNNING")
    assert lab.state(high) == "COMPLETED"


def test_a_job_that_loses_a_node_is_requeued_on_the_others(lab: Lab, tmp_path: Path) -> None:
    job = lab.sbatch("-N2", "--exclusive", "--requeue", "-o", tmp_path / "out", "--wrap", "srun sleep 2000")
    lost = lab.wait_for(job, "RUNNING")["NodeList"]
    assert lost == "n[1-2]"
    lab.tool("kill", "n2")
    lab.wait_until(lambda: lab.state(job) == "RUNNING" and lab.job(job)["NodeList"] == "n[1,3]")
