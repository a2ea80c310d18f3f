"""Makes the tables of a comparison, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stacking.compare.curve import Measure, Spread
from stacking.compare.result import ArmResult, Level, Result
from stacking.report.tables import Table
from stacking.terminal.units import UNKNOWN, count, counted, duration, loss

_MEASURES: dict[Measure, tuple[str, Callable[[float], str]]] = {
    "wall": ("wall-clock", duration),
    "rebuilt": ("rebuilt", duration),
    "flops": ("FLOPs", count),
    "tokens": ("tokens", count),
}


def summary_table(result: Result) -> Table:
    """Lists every arm: its cost, its final loss, and its speed-up to the baseline's final loss."""
    head = ("arm", "wall-clock", "rebuilt", "FLOPs", "tokens", "final loss", "speed-up", "rebuilt", "FLOPs")
    rows = [_summary_row(arm, arm is result.baseline) for arm in result.arms]
    notes = [
        "Speed-up: what the baseline needs to its final loss, over what the arm needs to that loss. Means over"
        f" {counted(len(result.seeds), 'seed')} ± standard deviation.",
        "Wall-clock: everything but evaluations. Rebuilt: from each stage's median step time, measured in alternation,"
        " and measured launches and transitions.",
    ]
    return Table(head, rows, notes)


def _summary_row(arm: ArmResult, is_baseline: bool) -> tuple[str, ...]:
    totals = [_mean(arm.total(measure), form) for measure, (_, form) in _MEASURES.items()]
    speedups = [UNKNOWN] * 3 if is_baseline else [_speedup(arm.final, m) for m in ("wall", "rebuilt", "flops")]
    return (arm.arm.name, *totals, _spread(arm.final_loss, loss), *speedups)


def length_table(results: Sequence[Result]) -> Table:
    """Lists every arm at every length of training, with its final loss and its speed-ups."""
    head = ("tokens", "arm", "final loss", "speed-up", "rebuilt", "FLOPs")
    rows = []
    for result in results:
        for arm in result.arms:
            row = _summary_row(arm, arm is result.baseline)
            rows.append((row[4], arm.arm.name, *row[5:]))
    return Table(head, rows)


def level_table(arm: ArmResult) -> Table:
    """Lists an arm's speed-ups at the round losses and the baseline's final loss, and the depth that reached it."""
    head = ("held-out loss", *(f"{word} speed-up" for word, _ in _MEASURES.values()), "reached with")
    levels = [*((f"{level.loss[0]:.2f}", level) for level in arm.levels), ("the baseline's final loss", arm.final)]
    rows = [(name, *(_speedup(level, measure) for measure in _MEASURES), _depths(level)) for name, level in levels]
    return Table(head, rows)


def equal_time_table(result: Result) -> Table:
    """Lists the losses of each arm and the baseline after the same wall-clock, per seed."""
    rows = []
    for arm in result.arms[1:]:
        for run, equal in zip(arm.runs, arm.equal_time, strict=True):
            cells = (
                (
                    duration(equal.seconds),
                    loss(equal.loss),
                    loss(equal.baseline_loss),
                    f"{equal.loss - equal.baseline_loss:+.4f}",
                )
                if equal
                else (UNKNOWN,) * 4
            )
            rows.append((arm.arm.name, str(run.seed), *cells))
    note = "Wall-clock: where the first of the two ends. The other one may not have annealed its learning rate by then."
    return Table(("arm", "seed", "wall-clock", "loss", "baseline's loss", "difference"), rows, [note])


def tuning_table(result: Result) -> Table:
    """Lists the baseline's final loss at every learning rate of the search."""
    known = [value for value in result.rates.values() if value is not None]
    rows = [
        (f"{rate:g}", "diverged" if value is None else loss(value), "chosen" if value == min(known) else "")
        for rate, value in sorted(result.rates.items())
    ]
    return Table(("learning rate", "final loss", ""), rows, ["The baseline on its whole budget, first seed."])


def step_table(result: Result) -> Table:
    """Lists the seconds of an update for each kind of stage, measured in turns."""
    rows = [
        (
            f"{time.layers} {time.variant}",
            str(time.ranks),
            f"{1e3 * time.seconds:.1f} ms",
            f"{1e3 * min(time.rounds):.1f} ms",
            f"{1e3 * max(time.rounds):.1f} ms",
        )
        for time in sorted(result.step_times, key=lambda time: time.layers)
    ]
    note = "Medians of rounds in which all stages took turns; fastest and slowest round."
    return Table(("layers", "ranks", "update", "fastest", "slowest"), rows, [note])


def as_text(result: Result) -> str:
    """Returns the tables and warnings as plain text."""
    if not result.seeds:
        return "no seed is finished in every arm yet"
    tables = {f"{arm.arm.name}, speed-up at equal loss": level_table(arm) for arm in result.arms[1:]}
    tables["at equal time"] = equal_time_table(result)
    if result.step_times:
        tables["updates"] = step_table(result)
    named = (f"{name}\n{table.as_text()}" for name, table in tables.items())
    text = "\n\n".join([summary_table(result).as_text(), *named])
    return "\n".join([text, *(f"warning: {warning}" for warning in result.warnings)])


def _speedup(level: Level, measure: Measure) -> str:
    """Returns ``2.71 ± 0.10``, or why there is no number."""
    reached = sum(reached is not None for reached in level.reached)
    if reached < len(level.reached):
        return "not reached" if not reached else f"reached by {reached} of {len(level.reached)} seeds"
    return _spread(level.speedup[measure], lambda value: f"{value:.2f}")


def _spread(spread: Spread, form: Callable[[float], str]) -> str:
    if spread.mean is None:
        return UNKNOWN
    return form(spread.mean) + (f" ± {spread.deviation:.2g}" if spread.deviation is not None else "")


def _mean(spread: Spread, form: Callable[[float], str]) -> str:
    return UNKNOWN if spread.mean is None else form(spread.mean)


def _depths(level: Level) -> str:
    depths = sorted({reached.layers for reached in level.reached if reached})
    return f"{' or '.join(map(str, depths))} {'layer' if depths == [1] else 'layers'}" if depths else UNKNOWN
