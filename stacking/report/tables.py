"""Builds a report's tables, as rows for the page and as plain text for the terminal."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import stacking
from stacking.model.config import ModelConfig
from stacking.planning.plan import StagePlan
from stacking.report import timeline
from stacking.report.run import Event, Run
from stacking.run.metrics import Record
from stacking.terminal.units import UNKNOWN, count, counted, duration, loss

_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "numpy")


@dataclass(frozen=True)
class Table:
    """Holds a header and rows of equal length; ``notes`` explain how to read them."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def as_text(self) -> str:
        """Formats aligned columns: the first one left-aligned, the others right-aligned."""
        widths = [max(len(cell) for cell in column) for column in zip(self.head, *self.rows, strict=True)]
        return "\n".join(self._line(cells, widths) for cells in (self.head, ["─" * w for w in widths], *self.rows))

    @staticmethod
    def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def stage_table(run: Run) -> Table:
    """Lists the stages with their size, speed, times and held-out loss, and their sum."""
    head = (
        "stage",
        "layers",
        "parameters",
        "steps",
        "real tokens",
        "real tokens/s",
        "training",
        "evaluation",
        "transition",
        "held-out loss",
    )
    rows = [_stage_row(run, stage) for stage in run.plan.stages]
    if len(rows) > 1:
        rows.append(_sum_row(run))
    return Table(
        head, rows, ["A transition: consolidating the previous stage, growing it, and starting up to the first update."]
    )


def schedule_table(run: Run) -> Table:
    """Lists how each stage begins and trains."""
    head = ("stage", "grown by", "optimizer state", "learning rate", "sequences per update", "precision", "ZeRO")
    return Table(head, [_schedule_row(stage) for stage in run.plan.stages])


def transition_table(run: Run) -> Table:
    """Breaks down the time of each transition."""
    head = ("transition", "consolidate", "grow", "start-up", "total")
    rows = []
    for stage in run.plan.stages:
        spent = timeline.transition(run, stage.index)
        meanwhile = " meanwhile" if spent.ahead else ""
        states = [duration(seconds) + meanwhile for seconds in (spent.consolidate, spent.grow)]
        label = change_label(run, stage.index) if stage.index else "start-up of the first stage"
        rows.append((label, *states, duration(spent.start_up), duration(spent.total)))
    return Table(head, rows)


def account_table(run: Run) -> Table:
    """Breaks down the time of the whole run."""
    spent = timeline.account(run)
    parts = {
        "training": spent.training,
        "evaluation": spent.evaluation,
        **({"attention": spent.attention} if spent.attention else {}),
        "transitions": spent.transitions,
        "checkpoints, restarts, export": spent.other,
        "total": spent.total,
    }
    rows = [(name, duration(seconds), _share(seconds, spent.total)) for name, seconds in parts.items()]
    notes = [f"{duration(spent.idle)} between attempts are not counted."] if spent.idle else []
    if used := timeline.node_hours(run):
        notes.append(f"Node-hours: {used.as_text()}.")
    return Table(("", "time", "share"), rows, notes)


def incident_table(run: Run) -> Table:
    """Lists restarts, failures and damage from the journal; a killed attempt leaves no event."""
    rows = [(event["time"], _incident_row(run, event)) for event in run.events if event["event"] in _INCIDENTS]
    for attempt in timeline.attempts(run):
        if attempt.ending == "killed":
            event = {"event": "killed", "phase": attempt.phase, "stage": attempt.stage, "attempt": attempt.number}
            message = f"last activity {duration(attempt.span.seconds)} after its start"
            rows.append((attempt.span.end, _incident_row(run, {**event, "time": attempt.span.end, "message": message})))
    rows.sort(key=lambda row: row[0])
    return Table(("when", "what", "stage", "phase", "attempt", "message"), [row for _, row in rows])


def identity_table(run: Run) -> Table:
    """Lists what identifies the run: model, data, recipe and digests."""
    model, data = run.plan.model, run.plan.data
    rows = [
        ("model", _model_text(model)),
        ("started from", run.plan.start or "random weights"),
        ("data", data.path or UNKNOWN),
        ("samples", f"{data.samples}, {data.sequence_length:,} tokens each"),
        ("data digest", data.digest or UNKNOWN),
        ("plan digest", run.plan.digest),
        ("recipe", f"{run.plan.recipe}, seed {run.plan.seed}"),
    ]
    rows += [(f"{e['phase']} digest, stage {e.get('stage')}", str(e["digest"])) for e in _with_digest(run.events)]
    return Table(("", ""), rows)


def version_table() -> Table:
    """Lists the versions installed where the report is written."""
    rows = [("stacking", stacking.__version__), ("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((package, "not installed"))
    return Table(("", ""), rows)


def change_label(run: Run, stage: int) -> str:
    """Returns ``3 → 6 layers``, or ``3 layers`` for a stage that keeps the depth, such as the first."""
    layers = run.plan.stages[stage].layers
    before = run.plan.stages[max(stage - 1, 0)].layers
    return f"{before} → {counted(layers, 'layer')}" if layers != before else counted(layers, "layer")


_INCIDENTS = ("failed", "preempted", "damaged", "rewound", "resumed")


def _stage_row(run: Run, stage: StagePlan) -> tuple[str, ...]:
    trained, evaluated = (run.stage_records(stage.index, kind) for kind in ("train", "evaluation"))
    step = trained[-1]["step"] if trained else 0
    tokens, seconds = stage_tokens(run, stage.index), timeline.training_seconds(run, stage.index)
    return (
        str(stage.index + 1),
        str(stage.layers),
        count(stage.parameters),
        f"{step:,}" if step in (0, stage.steps) else f"{step:,} of {stage.steps:,}",
        count(tokens),
        count(tokens / seconds) if seconds else UNKNOWN,
        duration(seconds or None),
        duration(timeline.evaluation_seconds(run, stage.index) or None),
        duration(timeline.transition(run, stage.index).total),
        loss(evaluated[-1]["loss"] if evaluated else None),
    )


def _sum_row(run: Run) -> tuple[str, ...]:
    spent = timeline.account(run)
    trained, evaluated = run.records("train"), run.records("evaluation")
    tokens = sum(stage_tokens(run, stage.index) for stage in run.plan.stages)
    return (
        "all",
        "",
        "",
        f"{trained[-1]['global_step']:,}" if trained else "0",
        count(tokens),
        count(tokens / spent.training) if spent.training else UNKNOWN,
        duration(spent.training or None),
        duration(spent.evaluation or None),
        duration(spent.transitions or None),
        loss(evaluated[-1]["loss"] if evaluated else None),
    )


def stage_tokens(run: Run, stage: int) -> int:
    """Returns the number of tokens that the stage has trained on so far."""
    before: list[Record] = [r for earlier in range(stage) for r in run.stage_records(earlier, "train")]
    now = run.stage_records(stage, "train")
    return int(now[-1]["tokens"] - (before[-1]["tokens"] if before else 0)) if now else 0


def _schedule_row(stage: StagePlan) -> tuple[str, ...]:
    rates = [value for _, value in stage.learning_rate]
    peak = f" → {max(rates):.3g}" if max(rates) > max(rates[0], rates[-1]) else ""
    return (
        stage.name,
        stage.growth.operator if stage.growth else "",
        stage.growth.optimizer_state if stage.growth else "",
        f"{rates[0]:.3g}{peak} → {rates[-1]:.3g}",
        f"{stage.global_batch:,} = {stage.micro_batch:,} × {stage.accumulation} × {counted(stage.ranks, 'rank')}",
        stage.precision,
        str(stage.zero_stage),
    )


def _incident_row(run: Run, event: Event) -> tuple[str, ...]:
    names = {stage.index: stage.name for stage in run.plan.stages}
    return (
        f"{datetime.fromtimestamp(event['time']):%Y-%m-%d %H:%M:%S}",
        event["event"],
        names.get(event.get("stage", -1), ""),
        event.get("phase") or "",
        str(event.get("attempt") or ""),
        event.get("message") or "",
    )


def _model_text(model: ModelConfig) -> str:
    width = f"hidden {model.hidden:,}, {counted(model.heads, 'head')}, feed-forward {model.intermediate:,}"
    return f"{model.variant}, {width}, vocabulary {model.vocabulary:,}"


def _with_digest(events: list[Event]) -> list[Event]:
    """Returns the last finished event with an output digest, for each phase and stage."""
    made = {(e.get("phase"), e.get("stage")): e for e in events if e["event"] == "finished" and e.get("digest")}
    return list(made.values())


def _share(seconds: float, total: float) -> str:
    return f"{seconds / total:.1%}" if total else UNKNOWN
