"""Formats a plan for users: a table with one column per stage, then assumptions, then warnings."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from stacking.estimate.prediction import Prediction, StagePrediction
from stacking.estimate.scaling import Scaling, ScalingRow
from stacking.growth.operators import LISTED
from stacking.model.size import executed_flops, training_flops
from stacking.planning.plan import Plan, StagePlan
from stacking.planning.schedule import learning_rate_at
from stacking.terminal.units import counted, duration


def explain_text(plan: Plan, prediction: Prediction | None = None, notes: Sequence[str] = (), width: int = 120) -> str:
    """Returns the output of ``stacking plan``.

    Args:
        prediction: None if the devices' speed is unknown.
        notes: measurements on this machine, shown with the plan's own warnings.
    """
    said = [f"note: {note}" for note in (*plan.warnings, *notes)]
    lines = [*_comparison(plan, prediction), *_assumptions(prediction), *said]
    return _as_text(Group(Text(_headline(plan)), _stages(plan, prediction), *(Text(line) for line in lines)), width)


def explain_scaling(plan: Plan, scaling: Scaling, memory: int, width: int = 120) -> str:
    """Returns what ``stacking plan --scaling`` adds.

    Args:
        memory: bytes of one device; 0: unknown.
    """
    priced = scaling.rows[0].cost is not None
    names = [stage.name for stage in plan.stages]
    last = [f"{_unit(plan)} h", *(["cost"] if priced else []), "GiB/rank"]
    table = Table("ranks", "idle", *names, "whole run", "eff.", "comm.", *last, padding=(0, 0))
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for row in scaling.rows:
        table.add_row(*_scaling_cells(row, priced, memory))
    legend = "eff.: time on one rank / (ranks x time); comm.: share of the training time; *: more than a device has"
    notes = [Text(f"- {assumption}") for assumption in scaling.assumptions]
    return _as_text(Group(table, Text(legend), *notes), width)


def _as_text(shown: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _scaling_cells(row: ScalingRow, priced: bool, memory: int) -> list[str]:
    too_much = "*" if memory and row.memory_per_rank > memory else ""
    return [
        f"{row.ranks:,}",
        f"{row.idle:,}" if row.idle else "-",
        *(_short(seconds) for seconds in row.stage_seconds),
        _short(row.seconds),
        f"{row.efficiency:.0%}",
        f"{row.communication_share:.0%}",
        _hours(row.gpu_hours),
        *([f"{row.cost:,.2f}"] if priced else []),
        f"{row.memory_per_rank / 2**30:.1f}{too_much}",
    ]


def number(value: float) -> str:
    """Formats a number: exactly if that is short, such as ``50,000``, otherwise as ``5.12 G``."""
    if value < 1e6:
        return f"{value:,.0f}"
    for unit, size in (("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15), ("E", 1e18)):
        if value < 1000 * size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.3g}"


def _headline(plan: Plan) -> str:
    model, data = plan.model, plan.data
    heads = counted(model.heads, "head")
    where = f"{counted(max(s.ranks for s in plan.stages), 'rank')} on {plan.launch.device} ({plan.launch.launcher})"
    return (
        f"{plan.name}: {model.variant} BERT, hidden {model.hidden}, {heads}, {model.vocabulary:,} tokens; "
        f"{data.samples} samples of {data.sequence_length}; {where}"
    )


def _learning_rate(stage: StagePlan) -> str:
    points = stage.learning_rate
    first, last = points[0][1], learning_rate_at(points, stage.steps)
    peak = max(value for _, value in points)
    middle = f" → {peak:.3g}" if peak > max(first, last) else ""
    return f"{first:.3g}{middle} → {last:.3g}"


def _growth(stage: StagePlan) -> str:
    if stage.growth is None:
        return "-"
    growth, new = stage.growth, stage.growth.new_layers
    sources = " ".join(source.removesuffix(" copy") for source in growth.sources)
    mapping = f"layers {sources}" if growth.operator == LISTED else growth.operator
    if growth.trial is not None:
        mapping = f"the best of {', '.join(growth.trial.sources)} after {growth.trial.steps:,} steps each"
    alone = [f"new layers alone for {new.alone_steps:,} steps"] if new.alone_steps else []
    warmed = new.rewarmup_steps or new.peak_factor != 1
    rise = [f"new layers to {new.peak_factor:g}x the rate in {new.rewarmup_steps:,}"] if warmed else []
    return ", ".join([mapping, f"moments {growth.optimizer_state}", *alone, *rise])


_ROWS: dict[str, Callable[[StagePlan], str]] = {
    "layers": lambda s: str(s.layers),
    "grown by": _growth,
    "parameters": lambda s: number(s.parameters),
    "steps": lambda s: f"{s.steps:,}",
    "tokens, padded": lambda s: number(s.tokens),
    "epochs": lambda s: "-" if s.epochs is None else f"{s.epochs:.2f}",
    "batch, sequences": lambda s: f"{s.global_batch:,} = {s.micro_batch} x {s.accumulation} x {s.ranks}",
    "batch, tokens padded": lambda s: f"{s.tokens // s.steps:,}",
    "learning rate": _learning_rate,
    "precision, ZeRO": lambda s: f"{s.precision}, {s.zero_stage}",
    "memory per rank": lambda s: f"{s.memory_per_rank / 2**30:.2f} GiB",
    "model FLOPs": lambda s: number(s.flops),
}

_TOTALS: dict[str, Callable[[Plan], str]] = {
    "steps": lambda p: f"{sum(s.steps for s in p.stages):,}",
    "tokens, padded": lambda p: number(sum(s.tokens for s in p.stages)),
    "epochs": lambda p: "-" if p.stages[0].epochs is None else f"{sum(s.epochs or 0 for s in p.stages):.2f}",
    "memory per rank": lambda p: f"{max(s.memory_per_rank for s in p.stages) / 2**30:.2f} GiB",
    "model FLOPs": lambda p: number(p.cost.flops),
}


_TIMES: dict[str, Callable[[StagePrediction | Prediction], str]] = {
    "training": lambda p: duration(p.training_seconds),
    "with overheads": lambda p: duration(p.seconds),
}


def _stages(plan: Plan, prediction: Prediction | None) -> Table:
    table = Table("stage", *(stage.name for stage in plan.stages), "whole run")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cell in _ROWS.items():
        total = _TOTALS[name](plan) if name in _TOTALS else ""
        table.add_row(name, *(cell(stage) for stage in plan.stages), total)
    if prediction is None:
        return table
    table.add_row("update", *(_milliseconds(stage.update.seconds) for stage in prediction.stages), "")
    for name, time in _TIMES.items():
        table.add_row(name, *(time(stage) for stage in prediction.stages), time(prediction))
    hours = [*(stage.gpu_hours for stage in prediction.stages), prediction.gpu_hours]
    table.add_row(f"{_unit(plan)} hours", *map(_hours, hours))
    if prediction.price is not None:
        price = prediction.price
        table.add_row(f"cost, {price:g} an hour", *(f"{price * number_of:,.2f}" for number_of in hours))
    return table


def _executed(plan: Plan, stage: StagePlan) -> float:
    model, length = plan.model.with_layers(stage.layers), plan.data.sequence_length
    masked = plan.data.mask_probability * length
    return executed_flops(model, length, masked) / training_flops(model, length, masked)


def _comparison(plan: Plan, prediction: Prediction | None) -> list[str]:
    cost, deepest = plan.cost, max(stage.layers for stage in plan.stages)
    lines = [
        "batch = micro-batch x accumulation x ranks; memory, FLOPs and times are estimates",
        f"{counted(deepest, 'layer')} from the start would take {number(cost.baseline_flops)}FLOPs for the same steps; "
        f"this run takes {cost.flops / cost.baseline_flops:.1%} of it",
    ]
    lines += _late_growth(plan)
    executed = ", ".join(f"{_executed(plan, stage):.0%} in {stage.name}" for stage in plan.stages)
    lines.append(f"of the model FLOPs are executed: {executed}; the last layer skips what no head needs")
    if prediction is not None:
        times = f"{duration(prediction.training_seconds)} instead of {duration(prediction.baseline_seconds)}"
        lines.append(f"training: {times}, {prediction.communication_share:.0%} of it communication")
    return lines


_LATE_LAYERS, _LATE_SHARE = 2, 0.8
"""The cheapest schedule that kept the quality in docs/results: this many layers for this share of the sequences."""


def _late_growth(plan: Plan) -> list[str]:
    """Returns what one late growth would take, for a run that grows and takes much more."""
    deepest = max(stage.layers for stage in plan.stages)
    if len(plan.stages) == 1 or deepest % _LATE_LAYERS:
        return []
    masked = plan.data.mask_probability * plan.data.sequence_length
    shallow, deep = (
        training_flops(plan.model.with_layers(layers), plan.data.sequence_length, masked)
        for layers in (_LATE_LAYERS, deepest)
    )
    share = _LATE_SHARE * shallow / deep + 1 - _LATE_SHARE
    if plan.cost.flops < 1.25 * share * plan.cost.baseline_flops:
        return []
    return [
        f"{_LATE_LAYERS} layers for {_LATE_SHARE:.0%} of the sequences, then {deepest}, would take {share:.0%} of it; "
        "docs/results says where that paid off"
    ]


def _assumptions(prediction: Prediction | None) -> list[str]:
    if prediction is None:
        return ["no times: this device's speed is unknown; give --measured"]
    return [f"- {assumption}" for assumption in prediction.assumptions]


def _unit(plan: Plan) -> str:
    return "GPU" if plan.launch.accelerator == "cuda" else "rank"


def _short(seconds: float) -> str:
    """Formats a duration for narrow columns with at least two digits: ``154 s``, ``25 min``, ``7.6 h``, ``15 d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 3 * size:
            return f"{seconds / size:,.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds:.{0 if seconds >= 10 else 1}f} s"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
