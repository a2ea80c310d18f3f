"""How the controller reacts to the outcomes of phases; the launcher here only pretends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stacking.errors import LostLock, Preempted, StackingError, UserError
from stacking.launch.job import Accelerator, Fate, Job, Launcher, Outcome
from stacking.planning.plan import Plan
from stacking.run.controller import Controller
from stacking.run.folder import RunFolder
from stacking.run.lease import TOKEN_VARIABLE, Lease
from stacking.run.phases import parse_labels, phases
from stacking.run.progress import Progress
from stacking.slurm.ledger import phases_left
from stacking.storage.files import new_folder
from tests.small_recipe import SMALL, plan_of

DONE, CRASH, STOPPED = Outcome(exit_code=0), Outcome(exit_code=1, rank=3, host="n2"), Outcome(exit_code=75)
ASKED = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
QUICK = "launch: {ranks: 4, retry_seconds: 0.01}\n"


class Pretender:
    """A scheduler's launcher whose jobs end immediately, first with these outcomes and then successfully."""

    unattended = True
    overlaps = False

    def __init__(self, *outcomes: Outcome, room: int | None = None, before: Callable[[], None] | None = None) -> None:
        self.outcomes, self.room, self.before = list(outcomes), room, before
        self.started: list[Job] = []
        self.requeued = 0

    def capacity(self, accelerator: Accelerator) -> int | None:
        return self.room

    def start(self, job: Job, inherited: Sequence[int] = ()) -> Pretender:
        self.started.append(job)
        if self.before:
            self.before()
        return self

    def requeue(self) -> Fate:
        self.requeued += 1
        return Fate("job 7 is requeued", restarts=True)

    def poll(self) -> Outcome:
        return self.outcomes.pop(0) if self.outcomes else DONE

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    return run


def control(run: RunFolder, launcher: Launcher, only: Sequence[str] = (), text: str = QUICK) -> None:
    plan = plan_of(SMALL + text)
    with run.locked() as lease, open(os.devnull, "w") as nowhere, Progress(plan, stream=nowhere) as progress:
        Controller(run, plan, launcher, progress, lease, only).run()


def events(run: RunFolder, *names: str) -> list[dict[str, Any]]:
    return [event for event in run.journal.events() if event["event"] in names]


def test_phases_run_in_their_order(folder: RunFolder) -> None:
    launcher = Pretender()
    control(folder, launcher)
    names = [job.name for job in launcher.started]
    assert names == [f"{phase.name}-1" for phase in phases(small_plan(), folder)]
    assert [job.ranks for job in launcher.started] == [4, 1, 1, 4, 1, 1, 1]


def test_a_crash_is_retried_and_named_in_the_journal(folder: RunFolder) -> None:
    launcher = Pretender(CRASH, CRASH)
    control(folder, launcher)
    assert [job.name for job in launcher.started[:4]] == ["train-1", "train-2", "train-3", "consolidate-1"]
    failed = events(folder, "failed")
    assert len(failed) == 2 and failed[0]["message"].startswith("rank 3 on n2 ended with exit code 1")


def test_crashes_without_progress_end_the_run(folder: RunFolder) -> None:
    launcher = Pretender(*[CRASH] * 10)
    with pytest.raises(StackingError, match="rank 3 on n2"):
        control(folder, launcher)
    assert len(launcher.started) == 4 and launcher.requeued == 0


def test_the_recipe_sets_the_number_of_retries(folder: RunFolder) -> None:
    launcher = Pretender(*[CRASH] * 10)
    with pytest.raises(StackingError):
        control(folder, launcher, text="launch: {ranks: 4, retries: 0}\n")
    assert len(launcher.started) == 1


def test_at_a_terminal_a_crash_is_reported_without_a_retry(folder: RunFolder) -> None:
    launcher = Pretender(*[CRASH] * 10)
    launcher.unattended = False
    with pytest.raises(StackingError):
        control(folder, launcher)
    assert len(launcher.started) == 1


def test_a_user_error_is_not_retried(folder: RunFolder) -> None:
    launcher = Pretender(Outcome(exit_code=2))
    with pytest.raises(StackingError) as caught:
        control(folder, launcher)
    assert caught.value.exit_code == 2 and len(launcher.started) == 1


@pytest.mark.parametrize("stopped", [False, True])
def test_a_divergence_is_neither_retried_nor_requeued(folder: RunFolder, stopped: bool) -> None:
    log = folder.path / "rank.log"
    log.write_text("0-L2: the loss is nan\n")
    launcher = Pretender(
        Outcome(exit_code=3, rank=0, log=log),
        before=lambda: os.kill(os.getpid(), signal.SIGTERM) if stopped else None,
    )
    with pytest.raises(StackingError, match=r"^0-L2: the loss is nan$") as caught:
        control(folder, launcher)
    assert caught.value.exit_code == 3 and len(launcher.started) == 1 and launcher.requeued == 0
    assert [(e["message"], e["diverged"]) for e in events(folder, "failed")] == [("0-L2: the loss is nan", True)]


@pytest.mark.parametrize("outcome", [STOPPED, *(Outcome(exit_code=-n) for n in ASKED)])
def test_ranks_that_were_asked_to_stop_requeue_the_job(folder: RunFolder, outcome: Outcome) -> None:
    launcher = Pretender(outcome)
    with pytest.raises(Preempted, match="job 7 is requeued"):
        control(folder, launcher)
    assert launcher.requeued == 1 and events(folder, "preempted") and not events(folder, "failed")


@pytest.mark.parametrize("number", ASKED)
def test_a_signal_to_the_controller_requeues_the_job(folder: RunFolder, number: signal.Signals) -> None:
    launcher = Pretender(STOPPED, before=lambda: os.kill(os.getpid(), number))
    with pytest.raises(Preempted):
        control(folder, launcher)
    assert launcher.requeued == 1 and events(folder, "preempted")[0]["message"] == f"stopped by {number.name}"


@pytest.mark.parametrize("outcome", [STOPPED, *(Outcome(exit_code=-n) for n in ASKED)])
def test_a_signal_to_a_local_rank_is_a_stop_that_can_be_resumed(folder: RunFolder, outcome: Outcome) -> None:
    launcher = Pretender(DONE, outcome)
    launcher.unattended = False
    with pytest.raises(Preempted, match="a signal to its ranks stopped consolidate"):
        control(folder, launcher)


def test_under_nohup_closing_the_terminal_stops_nothing(folder: RunFolder) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        control(folder, launcher := Pretender(before=lambda: os.kill(os.getpid(), signal.SIGHUP)))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(launcher.started) == 7


def test_ctrl_c_does_not_requeue(folder: RunFolder) -> None:
    launcher = Pretender(STOPPED, before=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Preempted, match="stacking resume"):
        control(folder, launcher)
    assert launcher.requeued == 0


def test_a_crash_before_the_stop_is_in_the_journal_too(folder: RunFolder) -> None:
    launcher = Pretender(CRASH, before=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted):
        control(folder, launcher)
    message = events(folder, "preempted")[0]["message"]
    assert message.startswith("stopped by SIGTERM (rank 3 on n2 ended with exit code 1")


def test_only_the_requested_phases_run(folder: RunFolder) -> None:
    launcher = Pretender()
    control(folder, launcher, only=["train:0"])
    assert [job.name for job in launcher.started] == ["train-1"]


def test_a_requested_phase_must_be_the_next_one(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="--only grow:1: comes after train:0, which is not done"):
        control(folder, Pretender(), only=["grow:1", "train:1"])


def test_requested_phases_must_exist(folder: RunFolder) -> None:
    chain = phases(small_plan(), folder)
    assert parse_labels("consolidate:0,grow:1", chain) == ["consolidate:0", "grow:1"]
    with pytest.raises(UserError, match="'train:7' is not a phase of this run"):
        parse_labels("train:7", chain)


def test_an_elastic_stage_uses_the_available_ranks(folder: RunFolder) -> None:
    launcher = Pretender(room=3)
    control(folder, launcher, text="launch: {ranks: 4, elastic: true}\n")
    assert launcher.started[0].ranks == 2
    assert events(folder, "started")[0]["world_size"] == 2


def test_a_stage_that_is_not_elastic_is_refused_with_fewer_ranks(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="planned for 4 ranks, but only 3 are available"):
        control(folder, Pretender(room=3))


def test_a_controller_whose_lock_was_taken_over_stops_and_writes_nothing_more(folder: RunFolder) -> None:
    """If its lock file is removed and another controller locks a new one, both of them would train."""
    others: list[Lease] = []

    def take_over() -> None:
        if not others:
            folder.lock.unlink()
            others.append(Lease(folder.lock, patience=0))

    launcher = Pretender(before=take_over)
    with pytest.raises(LostLock, match="another controller has taken the run over"):
        control(folder, launcher)
    assert len(launcher.started) == 1 and [e["event"] for e in folder.journal.events()] == ["started"]
    others[0].renew()
    others[0].close()


@pytest.mark.parametrize(
    "content", [None, b"", b"[1]", b"\xff", b'{"pid": "x", "host": [], "token": 1}', b'{"pid": 1}']
)
def test_a_lock_that_was_removed_or_overwritten_is_restored(folder: RunFolder, content: bytes | None) -> None:
    def disturb() -> None:
        folder.lock.unlink()
        if content is not None:
            folder.lock.write_bytes(content)

    control(folder, launcher := Pretender(before=disturb))
    assert len(launcher.started) == 7


def test_logs_of_attempts_missing_from_the_journal_are_not_overwritten(folder: RunFolder) -> None:
    logs = folder.stage(small_plan().stages[0].name).logs
    logs.mkdir(parents=True)
    for attempt in (1, 2):
        (logs / f"train-{attempt}.rank0.log").touch()
    control(folder, launcher := Pretender())
    assert launcher.started[0].name == "train-3"


def test_ranks_know_the_token_of_their_controller(folder: RunFolder) -> None:
    control(folder, launcher := Pretender())
    assert len({job.environment[TOKEN_VARIABLE] for job in launcher.started}) == 1


def test_the_journal_is_plain_json(folder: RunFolder) -> None:
    control(folder, Pretender(CRASH))
    for line in folder.journal.path.read_text().splitlines():
        assert {"time", "event", "host", "pid"} <= json.loads(line).keys()


def small_plan() -> Plan:
    return plan_of(SMALL + QUICK)


ATTENTION = QUICK + "attention: {samples: 8}\n"


def fails(phase: str, exit_code: int = 1) -> Callable[[Job], Outcome]:
    return lambda job: Outcome(exit_code=exit_code) if job.name.startswith(phase) else DONE


class Selective(Pretender):
    """A launcher whose outcome depends on the job."""

    def __init__(self, decide: Callable[[Job], Outcome]) -> None:
        super().__init__()
        self.decide = decide

    def poll(self) -> Outcome:
        return self.decide(self.started[-1])


@pytest.mark.parametrize("exit_code", [1, 2, -9])
def test_a_run_continues_without_a_failed_measurement_and_reports_it(folder: RunFolder, exit_code: int) -> None:
    launcher = Selective(fails("attention-trained", exit_code))
    control(folder, launcher, text=ATTENTION)
    assert launcher.started[-1].name == "report-1"
    skipped = events(folder, "skipped")
    assert [(event["phase"], event["stage"]) for event in skipped] == [
        ("attention-trained", 0),
        ("attention-trained", 1),
    ]
    assert all(event["message"].startswith("left out: ") for event in skipped)
    assert {event["phase"] for event in events(folder, "failed")} == {"attention-trained"}
    labels = "consolidate:0,attention-trained:0,grow:1,attention-grown:1"
    assert phases_left(labels, folder.journal.events()) == []


def test_a_measurement_that_is_asked_to_stop_stops_the_run(folder: RunFolder) -> None:
    with pytest.raises(Preempted):
        control(folder, Selective(fails("attention-trained", -signal.SIGTERM)), text=ATTENTION)
    assert not events(folder, "skipped")


def test_a_missing_measurement_does_not_prevent_training(folder: RunFolder) -> None:
    plan = plan_of(SMALL + ATTENTION)
    chain = {phase.label: phase for phase in phases(plan, folder)}
    with new_folder(chain["grow:1"].output) as grown:
        (grown / "content").write_text("")
    launcher = Pretender()
    control(folder, launcher, ["train:1"], text=ATTENTION)
    assert [job.name for job in launcher.started] == ["train-1"]
