"""A plan explained to a person: one column a stage, then what the whole costs, then what to look out for."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from stacking.plan import Plan, Stage
from stacking.schedule import learning_rate_at


def explain(plan: Plan) -> RenderableType:
    """What ``stacking plan`` shows."""
    return Group(Text(_headline(plan)), _stages(plan), *(Text(line) for line in _cost(plan) + _warnings(plan)))


def explain_text(plan: Plan, width: int = 120) -> str:
    """The same as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(explain(plan))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def number(value: float) -> str:
    """``50,000``, ``5.12 G``: exact while it is short."""
    if value < 1e6:
        return f"{value:,.0f}"
    for unit, size in (("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15), ("E", 1e18)):
        if value < 1000 * size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.3g}"


def _headline(plan: Plan) -> str:
    model, data = plan.model, plan.data
    heads = f"{model.heads} head{'s' * (model.heads > 1)}"
    where = f"{max(s.ranks for s in plan.stages)} ranks on {plan.launch.device} ({plan.launch.launcher})"
    return (
        f"{plan.name}: {model.variant} BERT, hidden {model.hidden}, {heads}, {model.vocabulary:,} tokens; "
        f"{data.samples} samples of {data.sequence_length}; {where}"
    )


def _learning_rate(stage: Stage) -> str:
    points = stage.learning_rate
    first, last = points[0][1], learning_rate_at(points, stage.steps)
    peak = max(value for _, value in points)
    middle = f" → {peak:.3g}" if peak > max(first, last) else ""
    return f"{first:.3g}{middle} → {last:.3g}"


def _growth(stage: Stage) -> str:
    return f"{stage.growth.operator}, moments {stage.growth.optimizer_state}" if stage.growth else "-"


_ROWS: dict[str, Callable[[Stage], str]] = {
    "layers": lambda s: str(s.layers),
    "grown by": _growth,
    "parameters": lambda s: number(s.parameters),
    "steps": lambda s: f"{s.steps:,}",
    "tokens": lambda s: number(s.tokens),
    "epochs": lambda s: "-" if s.epochs is None else f"{s.epochs:.2f}",
    "batch, sequences": lambda s: f"{s.global_batch:,} = {s.micro_batch} x {s.accumulation} x {s.ranks}",
    "batch, tokens": lambda s: f"{s.tokens // s.steps:,}",
    "learning rate": _learning_rate,
    "precision, ZeRO": lambda s: f"{s.precision}, {s.zero_stage}",
    "memory per rank": lambda s: f"{s.memory_per_rank / 2**30:.2f} GiB",
    "FLOPs": lambda s: number(s.flops),
}

_TOTALS: dict[str, Callable[[Plan], str]] = {
    "steps": lambda p: f"{sum(s.steps for s in p.stages):,}",
    "tokens": lambda p: number(sum(s.tokens for s in p.stages)),
    "epochs": lambda p: "-" if p.stages[0].epochs is None else f"{sum(s.epochs or 0 for s in p.stages):.2f}",
    "memory per rank": lambda p: f"{max(s.memory_per_rank for s in p.stages) / 2**30:.2f} GiB",
    "FLOPs": lambda p: number(p.cost.flops),
}


def _stages(plan: Plan) -> Table:
    table = Table("stage", *(stage.name for stage in plan.stages), "whole run")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cell in _ROWS.items():
        total = _TOTALS[name](plan) if name in _TOTALS else ""
        table.add_row(name, *(cell(stage) for stage in plan.stages), total)
    return table


def _cost(plan: Plan) -> list[str]:
    cost, deepest = plan.cost, max(stage.layers for stage in plan.stages)
    lines = [
        "batch = micro-batch x accumulation x ranks; memory and FLOPs are estimates",
        f"{deepest} layers from the start, the same steps: {number(cost.baseline_flops)}FLOPs; "
        f"this run: {cost.flops / cost.baseline_flops:.1%} of that",
    ]
    if cost.hours is not None and cost.baseline_hours is not None:
        lines.append(f"time: about {_hours(cost.hours)} beside {_hours(cost.baseline_hours)}, at {cost.assumption}")
    return lines


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def _warnings(plan: Plan) -> list[str]:
    return [f"note: {warning}" for warning in plan.warnings]
