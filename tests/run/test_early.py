"""Ranks of the next stage that start during a transition: when, with what outcome, and with the same result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stacking.errors import StackingError, UserError
from stacking.launch.job import Accelerator, Fate, Job, Outcome
from stacking.run.early import LEAD, Countdown, to_start_early
from stacking.run.folder import RunFolder
from stacking.run.metrics import MetricsWriter
from stacking.run.phases import phases
from tests.run.test_controller import CRASH, DONE, control
from tests.run.test_progress import trained
from tests.small_recipe import SMALL, plan_of

EVERYTHING = ["train:0", "consolidate:0", "grow:1", "train:1", "consolidate:1", "export:1", "report:1"]


@dataclass
class PretendedJob:
    """Ends when it is polled often enough."""

    job: Job
    outcome: Outcome
    polls: int
    was_killed: bool = False
    was_polled: bool = False

    def poll(self) -> Outcome | None:
        self.was_polled = True
        self.polls -= 1
        return None if self.polls else self.outcome

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        self.was_killed = True


@dataclass
class Overlapping:
    """Pretends to start jobs; those with the given names crash the first time."""

    crashing: list[str] = field(default_factory=list)
    polls: int = 1
    """How often each job is polled until it ends."""
    jobs: list[PretendedJob] = field(default_factory=list)
    unattended = False
    overlaps = True

    def capacity(self, accelerator: Accelerator) -> int | None:
        return None

    def start(self, job: Job, inherited: Sequence[int] = ()) -> PretendedJob:
        module = job.argv[3] if job.argv[2] == "stacking" else "train"
        outcome = CRASH if f"{module}:{job.logs.parent.name}" in self.crashing else DONE
        self.jobs.append(PretendedJob(job, outcome, self.polls))
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


def write_record(run: RunFolder) -> None:
    """The first stage's metrics, by which it ends soon."""
    with MetricsWriter(run.stage("0-L2").metrics) as writer:
        writer.append(trained(3, seconds=0.3))


def test_the_next_stage_starts_with_the_transition_to_it(run: RunFolder) -> None:
    launcher = Overlapping()
    control(run, launcher, text="")
    assert launcher.names == ["train-1", "train-1", "consolidate-1", "grow-1", "consolidate-1", "export-1", "report-1"]
    early = launcher.jobs[1]
    assert early.job.logs == run.stage("1-L4").logs and early.was_polled
    assert early.job.argv[-2:] == [str(run.path), "1"], "the stage before has ended, so there is nothing to wait for"
    order = [(e["phase"], e["stage"]) for e in run.journal.events() if e["event"] == "started"]
    assert [f"{phase}:{stage}" for phase, stage in order] == EVERYTHING


def test_the_next_stage_starts_shortly_before_the_one_before_ends(run: RunFolder) -> None:
    launcher = Overlapping(polls=3)
    write_record(run)
    control(run, launcher, text="")
    assert launcher.names[:3] == ["train-1", "train-1", "consolidate-1"]
    early = launcher.jobs[1].job
    assert early.argv[-3:] == [str(run.path), "1", "1"], "it waits for attempt 1 of the stage before"


def test_the_end_of_a_stage_is_expected_from_its_speed(run: RunFolder) -> None:
    stage = plan_of(SMALL).stages[0].model_copy(update={"steps": 100})
    countdown = Countdown(stage)
    assert not countdown.is_near
    countdown.note({"kind": "train", "step": 50, "seconds": 50 * LEAD})
    countdown.note({"kind": "evaluation", "step": 99, "seconds": 1.0})
    assert not countdown.is_near
    countdown.note({"kind": "train", "step": 99, "seconds": 99 * LEAD / 2})
    assert countdown.is_near


def test_a_failed_stage_stops_the_ranks_that_wait_for_its_end(run: RunFolder) -> None:
    launcher = Overlapping(crashing=["train:0-L2"], polls=3)
    write_record(run)
    with pytest.raises(StackingError):
        control(run, launcher, text="")
    assert launcher.names == ["train-1", "train-1"] and launcher.jobs[1].was_killed


def test_a_stage_ends_although_there_is_no_room_for_the_next(run: RunFolder) -> None:
    class Shrinking(Overlapping):
        def capacity(self, accelerator: Accelerator) -> int | None:
            return 0 if self.jobs else None

    launcher = Shrinking(polls=3)
    write_record(run)
    with pytest.raises(UserError, match="only 0 are available"):
        control(run, launcher, text="")
    assert launcher.names == ["train-1", "consolidate-1", "grow-1"]


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
