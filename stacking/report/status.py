"""Where a run is: read from its journal, its metrics, its lock and SLURM's queue, whoever runs it and wherever."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from stacking.errors import StackingError, printable
from stacking.launch.slurm_client import LIVE, NEVER, SlurmJob
from stacking.report.run import Event, Run, read_run
from stacking.report.timeline import attempts
from stacking.run.folder import command, is_locked
from stacking.run.metrics import Record
from stacking.run.progress import Speedometer, TimeLeft
from stacking.run.rewind import divergence
from stacking.slurm.ledger import is_done, known_jobs, slurm_jobs
from stacking.terminal.units import count, duration, loss

State = Literal["running", "queued", "finished", "failed", "preempted", "stopped"]
_LAST_PHASE = "report"
_QUEUE_SECONDS = 10.0
"""SLURM's controller serves everybody: `--watch` does not ask it more often."""
_ENDED_AS: dict[str, State] = {"failed": "failed", "preempted": "preempted"}


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """One job of a run that was submitted to SLURM."""

    id: int
    name: str
    """What it does: ``0-L3`` trains that stage, ``0-L3-to-1-L6`` is what lies between two."""
    state: str | None
    """SLURM's word, such as PENDING or COMPLETED; null: SLURM does not know it any more."""
    reason: str | None
    """Why it waits, or what ended it."""
    nodes: str
    """Such as ``n[1-2]``; empty while it waits."""
    partition: str
    elapsed: str
    start: str | None
    """When it began or, as far as SLURM can tell, will begin; ISO 8601."""

    def as_text(self) -> str:
        state = self.state.lower() if self.state else "not known to SLURM any more"
        reason = f" ({self.reason})" if self.reason else ""
        where = f" on {self.nodes}" if self.nodes else ""
        took = f", {self.elapsed}" if self.nodes and self.elapsed else ""
        begins = f", expected {self.start.replace('T', ' ')}" if self.start and self.state == "PENDING" else ""
        return f"{self.id}  {self.name:<16}  {state}{reason}{where}{took}{begins}"


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a run is."""

    run_dir: str
    name: str
    state: State
    """``queued``: a job waits in SLURM. ``stopped``: nobody is at work and nothing says why."""
    phase: str | None
    """What is, or was last, at work: ``train``, ``consolidate``, ``grow``, ``export``, ``report``."""
    stage: int
    """The stage that is, or was last, at work; from 0."""
    stages: int
    layers: int
    step: int
    """Updates done in the stage."""
    steps: int
    tokens: int
    """Real ones, without padding, over the whole run so far; so does ``tokens_per_second`` count."""
    loss: float | None
    held_out_loss: float | None
    tokens_per_second: float | None
    restarts: int
    """Phases that had to be started again."""
    last_error: str | None
    last_stop: str | None
    """What was asked to stop last and by whom: a preemption, a time limit, a user."""
    seconds_left: float | None
    """Training still to come, in seconds; evaluations and transitions not included."""
    estimated_end: float | None
    """Unix time; only of a run that is at work."""
    jobs: tuple[JobStatus, ...] = ()
    """In the order of the chain; none of a run that was not submitted."""
    queue_error: str | None = None
    """Why SLURM could not be asked about the jobs."""
    warning: str | None = None
    """What training warned of last, such as gradients that overflow in fp16."""
    damage: tuple[str, ...] = ()
    """What is wrong with the metrics: missing files, altered lines, updates without a record."""
    diverged: bool = False
    """Training left the finite numbers: a plain resume would repeat it, and ``last_error`` says what helps."""
    journal_damage: str | None = None
    """What is wrong with ``journal.jsonl``; the run can be resumed all the same."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: a number that is not finite becomes null, as JSON has none."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }

    def as_text(self) -> str:
        """A few lines for a terminal."""
        rows = [
            ("run", f"{self.name} ({self.run_dir})"),
            ("state", self._state_text()),
            ("stage", f"{self.stage + 1} of {self.stages}, {self.layers} layers"),
            ("step", f"{self.step:,} of {self.steps:,} ({self.step / self.steps:.0%})"),
            ("loss", f"{loss(self.loss)}, held-out {loss(self.held_out_loss)}"),
            ("speed", f"{count(self.tokens_per_second)} tokens/s, {count(self.tokens)} so far, without padding"),
        ]
        if self.seconds_left and self.state != "finished":
            rows.append(("left", self._left_text()))
        if self.warning:
            rows.append(("warning", self.warning))
        if self.restarts:
            rows.append(("restarts", str(self.restarts)))
        if self.last_stop:
            rows.append(("last stop", self.last_stop))
        if self.last_error:
            rows.append(("last error", self.last_error))
        if self.journal_damage:
            rows.append(("journal", self.journal_damage))
        rows += [("" if number else "jobs", job.as_text()) for number, job in enumerate(self.jobs)]
        rows += [("" if number else "metrics", problem) for number, problem in enumerate(self.damage)]
        if self.queue_error:
            rows.append(("queue", f"unknown: {self.queue_error}"))
        return "\n".join(f"{name:<10}  {printable(value)}" for name, value in rows)

    def _state_text(self) -> str:
        doing = f": {self.phase}" if self.phase and self.state != "finished" else ""
        resumable = self.state not in ("running", "queued", "finished") and not self.diverged
        hint = f" (`{self._command()}` resumes)" if resumable else ""
        return f"{self.state}{doing}{hint}"

    def _command(self) -> str:
        return command("submit --resume" if self.jobs else "resume", Path(self.run_dir))

    def _left_text(self) -> str:
        end = f", until {datetime.fromtimestamp(self.estimated_end):%a %d %b %H:%M}" if self.estimated_end else ""
        return f"about {duration(self.seconds_left)} of training{end}"


def status(run_dir: Path) -> Status:
    """Where the run in ``run_dir`` is.

    Raises:
        UserError: ``run_dir`` is not a run directory.
        DamagedFile: its plan or journal is damaged.
    """
    run = read_run(run_dir)
    jobs, queue_error = _jobs(run.events)
    state = _state(run.events, is_locked(run.folder.lock), jobs)
    last = _last_at_work(run.events)
    stage = run.plan.stages[last["stage"] if last else _last_measured(run)]
    trained = run.stage_records(stage.index, "train")
    left = _time_left(run, trained) if state != "finished" else None
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
        last_error=_last_error(run.events),
        last_stop=_last_stop(run),
        seconds_left=left.run if left else None,
        estimated_end=time.time() + left.run if left and state == "running" else None,
        jobs=tuple(jobs),
        queue_error=queue_error,
        warning=trained[-1].get("warning") if trained else None,
        damage=run.damage,
        diverged=divergence(run.events) is not None,
        journal_damage=_journal_damage(run),
    )


def watch(run_dir: Path, every: float = 2.0) -> Iterator[Status]:
    """The status now and every ``every`` seconds, until nobody is at work on the run.

    Raises:
        UserError: ``run_dir`` is not a run directory.
    """
    while True:
        now = status(run_dir)
        yield now
        if now.state not in ("running", "queued"):
            return
        time.sleep(max(every, _QUEUE_SECONDS) if now.jobs else every)


def _jobs(events: list[Event]) -> tuple[list[JobStatus], str | None]:
    """The jobs of a run that was submitted, and why SLURM could not be asked."""
    known = known_jobs(events)
    try:
        found, error = slurm_jobs(events), None
    except StackingError as refusal:
        found, error = {}, str(refusal)
    unknown = SlurmJob(id=0, state="")
    jobs = []
    for name, event in known.items():
        job = found.get(name, unknown)
        state = job.state or ("COMPLETED" if is_done(event, events) else None)
        jobs.append(
            JobStatus(
                id=event["job"],
                name=name,
                state=state,
                reason=job.reason,
                nodes=job.nodes,
                partition=job.partition,
                elapsed=job.elapsed,
                start=job.start,
            )
        )
    return jobs, error


def _state(events: list[Event], locked: bool, jobs: list[JobStatus]) -> State:
    if locked or any(job.state == "RUNNING" for job in jobs):
        return "running"
    # A finished run that is resumed has nothing to do and stays finished.
    last = next((event for event in reversed(events) if event["event"] != "resumed"), {"event": "created"})
    if last["event"] == "finished" and last["phase"] == _LAST_PHASE:
        return "finished"
    if any(job.state in LIVE and job.reason != NEVER for job in jobs):
        return "queued"
    return _ENDED_AS.get(last["event"], "stopped")


def _last_at_work(events: list[Event]) -> Event | None:
    """The last event of a phase of a stage; the journal also has events of the run as a whole."""
    ours = ("started", "finished", "failed", "preempted")
    return next((event for event in reversed(events) if event["event"] in ours), None)


def _last_measured(run: Run) -> int:
    """The last stage with metrics: where a run is whose journal does not say."""
    return max((index for index, records in enumerate(run.metrics) if records), default=0)


def _journal_damage(run: Run) -> str | None:
    lines = run.folder.journal.damaged_lines()
    if lines:
        which = ", ".join(map(str, lines[:5])) + (", …" if len(lines) > 5 else "")
        return f"altered lines count for nothing: {which}"
    return None if run.events else "is empty or missing; the next resume begins it again"


def _time_left(run: Run, trained: list[Record]) -> TimeLeft | None:
    speed = Speedometer(run.plan)
    for record in trained or run.records("train"):
        speed.update(record)
    return speed.time_left()


def _restarts(run: Run) -> int:
    seen = [(attempt.phase, attempt.stage) for attempt in attempts(run)]
    return len(seen) - len(set(seen))


def _last_error(events: list[Event]) -> str | None:
    return next((e.get("message") for e in reversed(events) if e["event"] in ("failed", "damaged")), None)


def _last_stop(run: Run) -> str | None:
    event = next((e for e in reversed(run.events) if e["event"] == "preempted"), None)
    if event is None:
        return None
    when = datetime.fromtimestamp(event["time"])
    stage = run.plan.stages[event["stage"]].name
    return f"{event['phase']} of {stage}, {event.get('message', 'on request')} ({when:%a %d %b %H:%M})"


def _last(records: list[Record], key: str) -> Any:
    return records[-1][key] if records else None
