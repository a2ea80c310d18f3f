"""Reconstructs how a run spent its time and node-hours from the journal's events and the times of the metrics.

A report's wall-clock runs only while the run is active. The time from an attempt's last activity (an event or a record)
until the run resumes is a gap, and gaps are excluded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from stacking.launch import slurm_client
from stacking.report.run import Event, Run
from stacking.run.metrics import Record

Ending = Literal["finished", "failed", "preempted", "killed"]
_OF_JOBS = ("resumed", "started", "finished", "failed", "preempted")


@dataclass(frozen=True)
class Span:
    """An interval in unix seconds."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Attempt:
    """One attempt at one phase of one stage."""

    phase: str
    stage: int | None
    number: int
    span: Span
    """For an attempt without an ending: until its last activity."""
    ending: Ending | None
    """``killed``: the run resumed later, without an ending in the journal. ``None``: it may still be running."""
    seconds: float
    """The duration of the phase itself if the journal has it, otherwise the length of the span."""


class WallClock:
    """Counts the seconds since the run began, excluding gaps."""

    def __init__(self, origin: float, gaps: list[Span]) -> None:
        self.origin, self.gaps = origin, gaps

    def __call__(self, time: float) -> float:
        """Returns the wall-clock at the unix time ``time``; it stops during gaps."""
        idle = sum(min(gap.end, time) - gap.start for gap in self.gaps if gap.start < time)
        return time - self.origin - idle

    @property
    def idle(self) -> float:
        return sum(gap.seconds for gap in self.gaps)


@dataclass(frozen=True, kw_only=True)
class TransitionTimes:
    """Breaks down the seconds between the training of two stages; None: not happened yet, or unknown."""

    consolidate: float | None
    grow: float | None
    start_up: float | None
    """To the first update, from the start of the train phase or, if that is earlier, from the end of the one before."""
    ahead: bool = False
    """Whether the stage trained while its state was consolidated and grown, which then delayed nothing."""

    @property
    def total(self) -> float | None:
        """The seconds in which nothing trained."""
        parts = (self.start_up,) if self.ahead else (self.consolidate, self.grow, self.start_up)
        known = [part for part in parts if part is not None]
        return sum(known) if known else None


@dataclass(frozen=True, kw_only=True)
class Account:
    """Breaks down the seconds of the whole run; ``other`` is checkpoints, restarts, export and the rest."""

    training: float
    evaluation: float
    transitions: float
    other: float
    idle: float
    """Between attempts; not part of ``total``."""
    attention: float = 0.0
    """Measurements of attention."""

    @property
    def total(self) -> float:
        return self.training + self.evaluation + self.attention + self.transitions + self.other


def wall_clock(run: Run) -> WallClock:
    """Returns the wall-clock of the run; it begins with the first event or record."""
    times = _signs_of_life(run)
    if not times:
        return WallClock(0.0, [])
    gaps = [Span(_last_before(times, event["time"]), event["time"]) for event in _new_beginnings(run.events)]
    return WallClock(times[0], [gap for gap in gaps if gap.seconds > 0])


def attempts(run: Run) -> list[Attempt]:
    """Returns all attempts at phases, in the order of their starts."""
    times = _signs_of_life(run)
    found: list[Attempt] = []
    current: Event | None = None
    for event in run.events:
        if event["event"] in ("started", "resumed") and current is not None:
            found.append(_attempt(current, _last_before(times, event["time"]), "killed"))
            current = None
        if event["event"] == "started":
            current = event
        elif event["event"] in ("finished", "failed", "preempted") and current is not None:
            found.append(_attempt(current, event["time"], event["event"], event.get("seconds")))
            current = None
    if current is not None:
        found.append(_attempt(current, max(times[-1], current["time"]), None))
    return found


def transition(run: Run, stage: int) -> TransitionTimes:
    """Returns the transition from the previous stage's training to the first update of ``stage``."""
    first, begun = _first_update(run, stage), _times_of(run, "started", stage)
    ahead = first is not None and bool(begun) and first < begun[0]
    since = _times_of(run, "finished", stage - 1) if ahead else begun
    return TransitionTimes(
        consolidate=_finished_seconds(run, "consolidate", stage - 1),
        grow=_finished_seconds(run, "grow", stage),
        start_up=None if first is None else next((first - time for time in reversed(since) if time <= first), None),
        ahead=ahead,
    )


def training_seconds(run: Run, stage: int) -> float:
    """Returns the seconds spent on updates, excluding evaluations and checkpoints."""
    records = run.stage_records(stage, "train")
    return float(records[-1]["seconds"]) if records else 0.0


def evaluation_seconds(run: Run, stage: int) -> float:
    """Returns the seconds that the stage spent on held-out losses."""
    return float(sum(record["seconds"] for record in run.stage_records(stage, "evaluation")))


def attention_spans(run: Run) -> list[Span]:
    """Returns when attention was measured; training does not need it, so the run is not charged for it."""
    return [attempt.span for attempt in attempts(run) if attempt.phase.startswith("attention-")]


def account(run: Run) -> Account:
    """Breaks down the time of the whole run; the parts add up to the wall-clock at the last activity."""
    clock, times = wall_clock(run), _signs_of_life(run)
    stages = range(len(run.plan.stages))
    training = sum(training_seconds(run, stage) for stage in stages)
    evaluation = sum(evaluation_seconds(run, stage) for stage in stages)
    transitions = sum(transition(run, stage).total or 0.0 for stage in stages)
    attention = sum(span.seconds for span in attention_spans(run))
    total = clock(times[-1]) if times else 0.0
    return Account(
        training=training,
        evaluation=evaluation,
        transitions=transitions,
        other=max(total - training - evaluation - attention - transitions, 0.0),
        idle=clock.idle,
        attention=attention,
    )


def _attempt(started: Event, end: float, ending: Ending | None, seconds: float | None = None) -> Attempt:
    span = Span(started["time"], max(end, started["time"]))
    return Attempt(
        phase=started["phase"],
        stage=started.get("stage"),
        number=started.get("attempt", 1),
        span=span,
        ending=ending,
        seconds=span.seconds if seconds is None else seconds,
    )


def _new_beginnings(events: list[Event]) -> Iterator[Event]:
    """Yields the events with which the run resumes after an unfinished attempt or a stop."""
    unfinished = False
    for event in events:
        kind = event["event"]
        if kind == "resumed" or (kind == "started" and unfinished):
            yield event
        if kind in ("started", "failed", "preempted"):
            unfinished = True
        elif kind in ("finished", "resumed"):
            unfinished = False


def _signs_of_life(run: Run) -> list[float]:
    """Returns the unix times of all events and records, ascending."""
    records: list[Record] = [record for stage in run.metrics for record in stage]
    return sorted([event["time"] for event in run.events] + [record["time"] for record in records])


def _last_before(times: list[float], time: float) -> float:
    return times[max(bisect_left(times, time) - 1, 0)]


def _finished_seconds(run: Run, phase: str, stage: int) -> float | None:
    done = [a.seconds for a in attempts(run) if (a.phase, a.stage, a.ending) == (phase, stage, "finished")]
    return done[-1] if done else None


def _first_update(run: Run, stage: int) -> float | None:
    """Returns when the first recorded update of the stage began; None: it has none yet."""
    records = run.stage_records(stage, "train")
    if not records:
        return None
    first = records[0]
    evaluated = sum(r["seconds"] for r in run.stage_records(stage, "evaluation") if r["time"] <= first["time"])
    return float(first["time"] - first["seconds"] - evaluated)


def _times_of(run: Run, event: str, stage: int) -> list[float]:
    """Returns when the stage's training started, or finished, each time."""
    wanted = (event, "train", stage)
    return [e["time"] for e in run.events if (e["event"], e.get("phase"), e.get("stage")) == wanted]


@dataclass(frozen=True)
class NodeHours:
    """Holds a number of node-hours and the source that reports it."""

    hours: float
    source: str

    def as_text(self) -> str:
        """Returns the number and its source as a phrase."""
        return f"{self.hours:,.2f} with all restarts, according to {self.source}"


def node_hours(run: Run) -> NodeHours | None:
    """Returns the node-hours of all jobs of the run so far.

    They come from SLURM's accounting, or without it from the journal, which knows a job from its controller's start to
    its last event or record. None: the run was not submitted, or its journal does not name the nodes.
    """
    submitted = [event for event in run.events if event["event"] == "submitted"]
    if not submitted:
        return None
    hours = slurm_client.node_hours([event["job"] for event in submitted], submitted[0]["time"])
    if hours is not None:
        return NodeHours(hours, "SLURM's accounting")
    hours = _from_journal(run)
    return None if hours is None else NodeHours(hours, "the journal")


def _from_journal(run: Run) -> float | None:
    starts = [event for event in run.events if event["event"] == "resumed"]
    if any("job" in event and "nodes" not in event for event in starts):
        return None
    signs = [event["time"] for event in run.events if event["event"] in _OF_JOBS]
    signs = sorted(signs + [record["time"] for stage in run.metrics for record in stage])
    ends = [signs[bisect_left(signs, start["time"]) - 1] for start in starts[1:]] + signs[-1:]
    spans = zip(starts, ends[: len(starts)], strict=True)
    return float(sum(max(end - start["time"], 0) * start.get("nodes", 0) for start, end in spans) / 3600)
