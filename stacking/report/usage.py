"""Counts the node-hours that a run's SLURM jobs have used, with those of requeued and failed parts."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from stacking.launch import slurm_client
from stacking.report.run import Run

_OF_JOBS = ("resumed", "started", "finished", "failed", "preempted")


@dataclass(frozen=True)
class NodeHours:
    """How many node-hours, and according to what."""

    hours: float
    source: str

    def as_text(self) -> str:
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
