"""Ranks of the next stage that start during a transition: when, with what outcome, and with the same result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stacking.errors import StackingError
from stacking.launch.job import Accelerator, Fate, Job, Outcome
from stacking.run.early import WHEN_READY, to_start_early
from stacking.run.folder import RunFolder
from stacking.run.phases import phases
from tests.run.test_controller import CRASH, DONE, control
from tests.small_recipe import SMALL, plan_of

EVERYTHING = ["train:0", "consolidate:0", "grow:1", "train:1", "consolidate:1", "export:1", "report:1"]


@dataclass
class PretendedJob:
    """Ends when it is polled."""

    job: Job
    outcome: Outcome
    was_killed: bool = False
    was_polled: bool = False

    def poll(self) -> Outcome:
        self.was_polled = True
        return self.outcome

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        self.was_killed = True


@dataclass
class Overlapping:
    """Pretends to start jobs; those with the given names crash the first time."""

    crashing: list[str] = field(default_factory=list)
    jobs: list[PretendedJob] = field(default_factory=list)
    unattended = False
    overlaps = True

    def capacity(self, accelerator: Accelerator) -> int | None:
        return None

    def start(self, job: Job, inherited: Sequence[int] = ()) -> PretendedJob:
        module = job.argv[3] if job.argv[2] == "stacking" else "train"
        outcome = CRASH if f"{module}:{job.logs.parent.name}" in self.crashing else DONE
        self.jobs.append(PretendedJob(job, outcome))
        return self.jobs[-1]

    def requeue(self) -> Fate:
        return Fate()

    @property
    def names(self) -> list[str]:
        return [job.job.name for job in self.jobs]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


def test_the_next_stage_starts_with_the_transition_to_it(run: RunFolder) -> None:
    launcher = Overlapping()
    control(run, launcher, text="")
    assert launcher.names == ["train-1", "train-1", "consolidate-1", "grow-1", "consolidate-1", "export-1", "report-1"]
    early = launcher.jobs[1]
    assert early.job.logs == run.stage("1-L4").logs and early.job.argv[-1] == WHEN_READY and early.was_polled
    assert WHEN_READY not in launcher.jobs[0].job.argv
    order = [(e["phase"], e["stage"]) for e in run.journal.events() if e["event"] == "started"]
    assert [f"{phase}:{stage}" for phase, stage in order] == EVERYTHING


def test_a_failed_transition_stops_the_waiting_ranks(run: RunFolder) -> None:
    launcher = Overlapping(crashing=["grow:1-L4"])
    with pytest.raises(StackingError):
        control(run, launcher, text="")
    assert launcher.jobs[1].was_killed and not launcher.jobs[1].was_polled
    (failed,) = [event for event in run.journal.events() if event["event"] == "failed"]
    assert failed["phase"] == "grow"


def test_ranks_that_crash_while_waiting_are_distinguished(run: RunFolder) -> None:
    launcher = Overlapping(crashing=["train:1-L4"])
    with pytest.raises(StackingError):
        control(run, launcher, text="")
    (failed,) = [event for event in run.journal.events() if event["event"] == "failed"]
    assert (failed["phase"], failed["stage"], failed["attempt"]) == ("train", 1, 1)


def test_a_job_without_the_next_stage_starts_nothing_early(run: RunFolder) -> None:
    plan = plan_of(SMALL)
    (consolidate,) = [phase for phase in phases(plan, run) if phase.label == "consolidate:0"]
    assert to_start_early(consolidate, ["consolidate:0", "grow:1"], plan, run) is None
    later = to_start_early(consolidate, EVERYTHING, plan, run)
    assert later is not None and later.label == "train:1"


def test_no_ranks_start_early_if_the_state_already_exists(run: RunFolder) -> None:
    """It may be from an earlier attempt, and the ranks would load it before the transition has replaced it."""
    plan = plan_of(SMALL)
    (consolidate,) = [phase for phase in phases(plan, run) if phase.label == "consolidate:0"]
    run.stage("1-L4").start.mkdir(parents=True)
    assert to_start_early(consolidate, EVERYTHING, plan, run) is None
