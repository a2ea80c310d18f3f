"""Node-hours of every start of every job, from SLURM's accounting or from the controllers' records."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.report.run import read_run
from stacking.report.status import status
from stacking.report.tables import account_table
from stacking.report.timeline import node_hours
from stacking.run.folder import RunFolder
from tests.report.synthetic import SyntheticRun
from tests.slurm.fake_slurm import FakeSlurm, slurm

__all__ = ["slurm"]


@pytest.fixture
def preempted(tmp_path: Path) -> SyntheticRun:
    """A stage on four nodes for an hour, queued for two, then on two nodes for half an hour and still working."""
    run = SyntheticRun(tmp_path / "run")
    RunFolder(run.path).scripts.mkdir()
    run.event("submitted", job=11, name="0-L3", mode="per-stage", phases="train:0", after=None)
    run.wait(3600)
    run.event("resumed", job=11, nodes=4)
    run.event("started", phase="train", stage=0, attempt=1)
    run.wait(3600)
    run.event("preempted", phase="train", stage=0, attempt=1, message="stopped by SIGTERM")
    run.wait(3600)
    run.event("submitted", job=12, name="1-L6", mode="per-stage", phases="train:1", after="afterok:11")
    run.wait(3600)
    run.event("resumed", job=11, nodes=2)
    run.wait(1800 - 45)
    run.train(0, last=40, start_up=45 - 40 * 0.3 - 2.0)
    return run


def test_without_accounting_the_journal_counts_and_the_queue_does_not(
    preempted: SyntheticRun, slurm: FakeSlurm
) -> None:
    slurm.answers("squeue", stdout="")
    slurm.answers("sacct", stderr="Slurm accounting storage is disabled\n", code=1)
    found = node_hours(read_run(preempted.path))
    assert found is not None and (found.hours, found.source) == (pytest.approx(5.0, abs=0.01), "the journal")
    assert "node-hours  5.00 with all restarts, according to the journal" in status(preempted.path).as_text()


def test_accounting_counts_every_start_of_every_job(preempted: SyntheticRun, slurm: FakeSlurm) -> None:
    rows = [f"{job}|RUNNING|gpu|n1|0:01|N/A|None|name|/run\n" for job in (11, 12)]
    slurm.answers("squeue", stdout="".join(rows))
    slurm.answers("sacct", stdout="4|3600\n2|1800\n1|0\n")
    told = status(preempted.path).as_dict()
    assert (told["node_hours"], told["node_hours_source"]) == (5.0, "SLURM's accounting")
    (call,) = [call for call in slurm.calls() if "--duplicates" in call]
    assert call[-2:] == ["--jobs", "11,12"] and "--allocations" in call
    notes = account_table(read_run(preempted.path)).notes
    assert notes[-1] == "Node-hours: 5.00 with all restarts, according to SLURM's accounting."


def test_a_journal_that_does_not_name_the_nodes_is_not_used(preempted: SyntheticRun, slurm: FakeSlurm) -> None:
    preempted.event("resumed", job=11)
    assert node_hours(read_run(preempted.path)) is None


def test_a_run_that_was_not_submitted_has_no_node_hours(tmp_path: Path, slurm: FakeSlurm) -> None:
    run = SyntheticRun(tmp_path / "run").whole()
    assert node_hours(read_run(run.path)) is None and slurm.calls() == []
