"""Determines a run's status from its journal, metrics and lock and from SLURM's queue, wherever it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from stacking.errors import printable
from stacking.launch.slurm_client import LIVE, NEVER, SlurmJob
from stacking.report.run import Event, Run, read_run
from stacking.report.timeline import NodeHours, attempts, node_hours
from stacking.run.folder import command, is_locked
from stacking.run.metrics import Record
from stacking.run.progress import Speedometer, TimeLeft
from stacking.run.rewind import divergence
from stacking.slurm.chain import WATCHER
from stacking.slurm.ledger import Queue, is_done, known_jobs, phases_left, queue
from stacking.terminal.units import count, counted, duration, loss

State = Literal["running", "queued", "finished", "failed", "preempted", "stopped", "unknown", "cancelled"]
_LAST_PHASE = "report"
_QUEUE_SECONDS = 10.0
"""Minimum seconds between queries of `--watch` to SLURM's controller, which all users share."""
UNKNOWN = "UNKNOWN"
"""The state of a submitted job while SLURM does not answer and has never been asked about it."""
_FAILED = ("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "BOOT_FAIL", "DEADLINE", "LAUNCH_FAILED")
_ENDED_AS: dict[str, State] = {"failed": "failed", "preempted": "preempted"}


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """Describes one SLURM job of a run."""

    id: int
    name: str
    """The job's name: ``0-L3`` trains that stage, ``0-L3-to-1-L6`` is the transition between two stages."""
    state: str | None
    """SLURM's state, such as PENDING or COMPLETED; null: SLURM no longer knows the job."""
    reason: str | None
    """Why the job is pending, or why it ended."""
    nodes: str
    """Such as ``n[1-2]``; empty while the job is pending."""
    partition: str
    elapsed: str
    start: str | None
    """Actual or expected start time, ISO 8601."""
    log: str | None = None
    """Its log, if it failed."""
    reached_controller: bool = True
    """False: the job failed before its controller started, for example because a node was lost or out of memory."""

    def as_text(self) -> str:
        state = self.state.lower() if self.state else "no longer known to SLURM"
        reason = f" ({self.reason})" if self.reason else ""
        where = f" on {self.nodes}" if self.nodes else ""
        took = f", {self.elapsed}" if self.nodes and self.elapsed else ""
        begins = f", expected {self.start.replace('T', ' ')}" if self.start and self.state == "PENDING" else ""
        early = " before its controller started" if not self.reached_controller else ""
        log = f", log {self.log}" if self.log else ""
        return f"{self.id}  {self.name:<16}  {state}{early}{reason}{where}{took}{begins}{log}"


@dataclass(frozen=True, kw_only=True)
class Status:
    """Describes a run at one moment: the content of `stacking status --json`."""

    run_dir: str
    name: str
    state: State
    """``queued``: a SLURM job is pending. ``stopped``: no process is running, for an unknown reason. ``unknown``: SLURM
    does not answer, and has never been asked about a job that is needed."""
    phase: str | None
    """The current or last phase: ``train``, ``consolidate``, ``grow``, ``export``, ``report``."""
    stage: int
    """The current or last stage, from 0."""
    stages: int
    layers: int
    step: int
    """Updates done in the stage."""
    steps: int
    tokens: int
    """Tokens of the whole run so far, without padding; the same holds for ``tokens_per_second``."""
    loss: float | None
    held_out_loss: float | None
    tokens_per_second: float | None
    restarts: int
    """Number of times that a phase was restarted."""
    last_error: str | None
    last_stop: str | None
    """The last requested stop and its cause: a preemption, a time limit, a user."""
    seconds_left: float | None
    """Remaining training time in seconds, excluding evaluations and transitions."""
    estimated_end: float | None
    """Estimated end as unix time; only while the run is active."""
    node_hours: float | None = None
    """Of all SLURM jobs so far, with requeued and failed parts; null: not submitted, or unknown."""
    node_hours_source: str | None = None
    """``SLURM's accounting`` or ``the journal``."""
    jobs: tuple[JobStatus, ...] = ()
    """In the order of the chain; empty if the run was not submitted to SLURM."""
    queue_error: str | None = None
    """Why SLURM could not be queried; the jobs are then in the states of ``queue_asked``."""
    queue_asked: float | None = None
    """When SLURM last answered, as unix time; null: never."""
    warning: str | None = None
    """The latest warning from training, such as overflowing fp16 gradients."""
    damage: tuple[str, ...] = ()
    """What is wrong with the metrics: missing files, altered lines, updates without a record."""
    diverged: bool = False
    """Training left the finite numbers: a plain resume would repeat it, and ``last_error`` says what helps."""
    journal_damage: str | None = None
    """Damage to ``journal.jsonl``; the run can still be resumed."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for ``--json``; non-finite numbers become null, since JSON has none."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }

    def as_text(self) -> str:
        rows = [
            ("run", f"{self.name} ({self.run_dir})"),
            ("state", self._state_text()),
            ("stage", f"{self.stage + 1} of {self.stages}, {counted(self.layers, 'layer')}"),
            ("step", f"{self.step:,} of {self.steps:,} ({self.step / self.steps:.0%})"),
            ("loss", f"{loss(self.loss)}, held-out {loss(self.held_out_loss)}"),
            ("speed", f"{count(self.tokens_per_second)} tokens/s, {count(self.tokens)} so far, without padding"),
        ]
        used = NodeHours(self.node_hours, self.node_hours_source or "") if self.node_hours else None
        where_known = {
            "left": self._left_text() if self.seconds_left and self.state != "finished" else None,
            "warning": self.warning,
            "restarts": str(self.restarts) if self.restarts else None,
            "last stop": self.last_stop,
            "last error": self.last_error,
            "journal": self.journal_damage,
            "node-hours": used.as_text() if used else None,
        }
        rows += [(name, text) for name, text in where_known.items() if text]
        rows += [("" if number else "jobs", job.as_text()) for number, job in enumerate(self.jobs)]
        rows += [("" if number else "metrics", problem) for number, problem in enumerate(self.damage)]
        if self.queue_error:
            rows.append(("queue", f"{self._asked_text()}: {self.queue_error}"))
        return "\n".join(f"{name:<10}  {printable(value)}" for name, value in rows)

    def _state_text(self) -> str:
        doing = f": {self.phase}" if self.phase and self.state != "finished" else ""
        resumable = self.state not in ("running", "queued", "finished", "unknown") and not self.diverged
        hint = f" (run `{self._command()}` to continue)" if resumable else ""
        return f"{self.state}{doing}{hint}"

    def _command(self) -> str:
        return command("submit --resume" if self.jobs else "resume", Path(self.run_dir))

    def _asked_text(self) -> str:
        if not self.queue_asked:
            return "unknown"
        return f"as of {datetime.fromtimestamp(self.queue_asked):%a %d %b %H:%M:%S}, since SLURM does not answer"

    def _left_text(self) -> str:
        end = f", until {datetime.fromtimestamp(self.estimated_end):%a %d %b %H:%M}" if self.estimated_end else ""
        return f"about {duration(self.seconds_left)} of training{end}"


def status(run_dir: Path) -> Status:
    """Returns the status of the run in ``run_dir``.

    Raises:
        UserError: ``run_dir`` is not a run directory.
        DamagedFile: its plan or journal is damaged.
    """
    run = read_run(run_dir)
    found = queue(run.folder, run.events)
    jobs = _jobs(run, found)
    state = _state(run.events, is_locked(run.folder.lock), jobs)
    at_work = _last_event(run.events, "started", "finished", "failed", "preempted")
    last = (_waiting_phase(run, jobs) if state == "queued" else None) or at_work
    stage = run.plan.stages[last["stage"] if last else _last_measured(run)]
    trained = run.stage_records(stage.index, "train")
    left = _time_left(run, trained) if state != "finished" else None
    failure = _last_event(run.events, "failed", "damaged") or {}
    used = node_hours(run)
    return Status(
        run_dir=str(run_dir),
        name=run.plan.name,
        state=state,
        phase=last["phase"] if last else None,
        stage=stage.index,
        stages=len(run.plan.stages),
        layers=stage.layers,
        step=_last(trained, "step") or 0,
        steps=stage.steps,
        tokens=_last(run.records("train"), "tokens") or 0,
        loss=_last(trained, "loss"),
        held_out_loss=_last(run.records("evaluation"), "loss"),
        tokens_per_second=_last(trained, "tokens_per_second"),
        restarts=_restarts(run),
        last_error=None if state == "finished" else _early_end(jobs) or failure.get("message"),
        last_stop=None if state == "finished" else _last_stop(run),
        seconds_left=left.run if left else None,
        estimated_end=time.time() + left.run if left and state == "running" else None,
        node_hours=used.hours if used else None,
        node_hours_source=used.source if used else None,
        jobs=tuple(jobs),
        queue_error=found.error,
        queue_asked=found.asked or None,
        warning=trained[-1].get("warning") if trained else None,
        damage=run.damage,
        diverged=divergence(run.events) is not None,
        journal_damage=_journal_damage(run),
    )


def watch(run_dir: Path, every: float = 2.0) -> Iterator[Status]:
    """Yields the status now and every ``every`` seconds while the run is active.

    Raises:
        UserError: ``run_dir`` is not a run directory.
    """
    while True:
        now = status(run_dir)
        yield now
        if now.state not in ("running", "queued") and (now.queue_error is None or now.state == "finished"):
            return
        time.sleep(max(every, _QUEUE_SECONDS) if now.jobs else every)


def _jobs(run: Run, found: Queue) -> list[JobStatus]:
    """Returns the run's SLURM jobs in the order of the chain; the watcher only while it waits or works."""
    reached = {event.get("job") for event in run.events if event["event"] == "resumed"}
    jobs = [
        _job(run, name, event, found.jobs.get(name), found, event["job"] in reached)
        for name, event in known_jobs(run.events).items()
    ]
    return [job for job in jobs if job.name != WATCHER or job.state in (*LIVE, UNKNOWN)]


def _job(run: Run, name: str, event: Mapping[str, Any], job: SlurmJob | None, found: Queue, reached: bool) -> JobStatus:
    if job is None or job.id != event["job"]:
        unheard = UNKNOWN if found.error else ""
        job = SlurmJob(id=event["job"], state="COMPLETED" if is_done(event, run.events) else unheard)
    failed = job.state in _FAILED
    return JobStatus(
        id=job.id,
        name=name,
        state=job.state or None,
        reason=job.reason,
        nodes=job.nodes,
        partition=job.partition,
        elapsed=job.elapsed,
        start=job.start,
        log=str(run.folder.scripts / f"{name}.{job.id}.log") if failed else None,
        reached_controller=reached or not failed,
    )


def _state(events: list[Event], locked: bool, jobs: list[JobStatus]) -> State:
    if locked or any(job.state == "RUNNING" and job.name != WATCHER for job in jobs):
        return "running"
    # Resuming a finished run does nothing, and it stays finished.
    last = next((event for event in reversed(events) if event["event"] != "resumed"), {"event": "created"})
    if last["event"] == "finished" and last["phase"] == _LAST_PHASE:
        return "finished"
    if any(job.state in LIVE and job.reason != NEVER for job in jobs):
        return "queued"
    if _early_end(jobs):
        return "failed"
    if _was_cancelled(events, jobs):
        return "cancelled"
    if any(job.state == UNKNOWN for job in jobs) and last["event"] not in ("failed", "cancelled"):
        return "unknown"
    return _ENDED_AS.get(last["event"], "stopped")


def _was_cancelled(events: list[Event], jobs: list[JobStatus]) -> bool:
    """Returns whether `stacking cancel` or scancel ended the run, and nothing has happened since."""
    last = _last_event(events, "started", "failed", "submitted", "cancelled") or {"event": "created"}
    first_left = next((job.state for job in jobs if job.state != "COMPLETED"), None)
    return last["event"] == "cancelled" or (first_left == "CANCELLED" and last["event"] != "failed")


def _waiting_phase(run: Run, jobs: list[JobStatus]) -> Event | None:
    """Returns the phase and stage with which the first waiting job will begin."""
    waiting = {job.name for job in jobs if job.state in LIVE}
    labels = (event["phases"] for name, event in known_jobs(run.events).items() if name in waiting)
    left = (phase for some in labels for phase in phases_left(some, run.events))
    return next(({"phase": phase, "stage": stage} for phase, stage in left), None)


def _early_end(jobs: list[JobStatus]) -> str | None:
    """Describes a job that failed before its controller could write to the journal."""
    job = next((job for job in jobs if not job.reached_controller), None)
    if job is None:
        return None
    reason = f", {job.reason}" if job.reason and job.reason != job.state else ""
    return f"job {job.id} ({job.name}) ended as {job.state}{reason} before its controller started; see {job.log}"


def _last_event(events: list[Event], *kinds: str) -> Event | None:
    return next((event for event in reversed(events) if event["event"] in kinds), None)


def _last_measured(run: Run) -> int:
    """Returns the last stage with metrics, for runs whose journal does not name the stage."""
    return max((index for index, records in enumerate(run.metrics) if records), default=0)


def _journal_damage(run: Run) -> str | None:
    lines = run.folder.journal.damaged_lines()
    if lines:
        which = ", ".join(map(str, lines[:5])) + (", …" if len(lines) > 5 else "")
        return f"altered lines are ignored: {which}"
    return None if run.events else "is empty or missing; resuming the run recreates it"


def _time_left(run: Run, trained: list[Record]) -> TimeLeft | None:
    speed = Speedometer(run.plan)
    for record in trained or run.records("train"):
        speed.update(record)
    return speed.time_left()


def _restarts(run: Run) -> int:
    seen = [(attempt.phase, attempt.stage) for attempt in attempts(run)]
    return len(seen) - len(set(seen))


def _last_stop(run: Run) -> str | None:
    event = _last_event(run.events, "preempted")
    if event is None:
        return None
    when = datetime.fromtimestamp(event["time"])
    stage = run.plan.stages[event["stage"]].name
    return f"{event['phase']} of {stage}, {event.get('message', 'on request')} ({when:%a %d %b %H:%M})"


def _last(records: list[Record], key: str) -> Any:
    return records[-1][key] if records else None
