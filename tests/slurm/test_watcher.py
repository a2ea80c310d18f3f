"""The watcher: what ended a job, whatever SLURM still knows about it, and whether it is mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.run.folder import RunFolder
from stacking.slurm.watcher import first_broken, mend
from tests.slurm.fake_slurm import FakeSlurm

WATCHER = 14


def submitted(run: RunFolder, *jobs: tuple[int, str, str | None]) -> None:
    run.scripts.mkdir(parents=True)
    for job, name, after in jobs:
        run.journal.append("submitted", job=job, name=name, mode="per-stage", phases=f"train:{job % 10}", after=after)


def ended(run: RunFolder, name: str, job: int, code: int | None) -> None:
    """A job that has started, and whose script exited with ``code`` or was killed."""
    (run.scripts / f"{name}.{job}.log").touch()
    if code is not None:
        (run.scripts / f"{name}.{job}.code").write_text(f"{code}\n")


def slurm_knows(slurm: FakeSlurm, states: dict[int, str]) -> None:
    rows = [f"{job}|{state}|gpu||0:00|N/A|None|name|/run\n" for job, state in states.items()]
    slurm.answers("squeue", stdout="".join(rows))
    slurm.answers("sacct", stderr="Slurm accounting storage is disabled\n", code=1)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    submitted(found, (11, "0-L3", None), (12, "1-L6", "afterok:11"), (13, "finish", "afterok:12"))
    found.journal.append("submitted", job=14, name="watch", mode="per-stage", phases="train:1", after="afternotok:13")
    return found


@pytest.mark.parametrize(
    ("state", "code", "is_accident"),
    [
        ("FAILED", None, True),  # SIGKILL of the shell
        ("FAILED", 75, True),  # stopped, and SLURM did not requeue it
        ("FAILED", 1, False),
        ("FAILED", 137, False),  # the controller was killed too often
        ("OUT_OF_MEMORY", None, True),
        ("OUT_OF_MEMORY", 137, True),
        ("TIMEOUT", None, True),
        ("NODE_FAIL", None, True),
        ("PREEMPTED", 75, True),
        ("CANCELLED", None, False),
        ("CANCELLED", 75, False),
        ("", None, True),  # forgotten by SLURM
        ("", 75, False),  # perhaps cancelled
        ("", 1, False),
    ],
)
def test_neither_errors_nor_cancellations_are_mended(
    run: RunFolder, slurm: FakeSlurm, state: str, code: int | None, is_accident: bool
) -> None:
    ended(run, "0-L3", 11, 0)
    ended(run, "1-L6", 12, code)
    slurm_knows(slurm, {13: "CANCELLED"} | ({12: state} if state else {}))
    broken = first_broken(run, run.journal.events(), WATCHER)
    assert broken is not None and (broken.job, broken.is_accident) == (12, is_accident)


def test_a_job_forgotten_by_slurm_that_never_started_counts_as_cancelled(run: RunFolder, slurm: FakeSlurm) -> None:
    ended(run, "0-L3", 11, 0)
    slurm_knows(slurm, {})
    broken = first_broken(run, run.journal.events(), WATCHER)
    assert broken is not None and (broken.job, broken.is_accident) == (12, False)


def test_jobs_of_an_earlier_submission_do_not_count(run: RunFolder, slurm: FakeSlurm) -> None:
    for job, name, after in ((22, "1-L6", None), (23, "finish", "afterok:22"), (24, "watch", "afternotok:23")):
        run.journal.append("submitted", job=job, name=name, mode="per-stage", phases="train:1", after=after)
    slurm_knows(slurm, {11: "TIMEOUT", 22: "CANCELLED", 23: "CANCELLED"})
    broken = first_broken(run, run.journal.events(), 24)
    assert broken is not None and broken.job == 22


def test_a_job_restarted_too_often_is_recorded_in_the_journal(run: RunFolder, slurm: FakeSlurm) -> None:
    ended(run, "0-L3", 11, None)
    (run.scripts / "0-L3.kills").write_text("137\nFAILED\n")
    slurm_knows(slurm, {11: "FAILED", 12: "CANCELLED", 13: "CANCELLED"})
    (line,) = mend(run, WATCHER, 2)
    assert line.startswith("job 11 (0-L3) ended as FAILED, and its script was killed; already started again 2 times")
    event = run.journal.events()[-1]
    assert (event["event"], event["phase"], event["stage"], event["message"]) == ("failed", "train", 1, line)
