"""Formats the results of the transition benchmark as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from tools.benchmarks.transition import OURS, Result, Wanted

_HEADER = ("", "seconds", "spread", "x cp", "x cp+fsync", "memory MB", "disk GB", "x state", "start-up s")
_TARGETS = "goals: transition at most 2.0 x cp; memory at most 400 MB; disk at most 1.0 x the state"


def as_text(results: Sequence[Result], wanted: Wanted) -> str:
    """Returns one table per shape, and the cost per byte over all shapes."""
    parts = [_shape(result, wanted) for result in results]
    if len(results) > 1:
        parts.append(_scaling(results))
    return "\n\n".join(parts)


def as_json(results: Sequence[Result], wanted: Wanted) -> dict[str, Any]:
    """Returns the content of `--json`, format 1."""
    shapes = []
    for result in results:
        measured = {
            name: {
                **asdict(found),
                "median_seconds": median(found.seconds),
                "ratio_to_cp": result.ratio(name),
                "ratio_to_cp_fsync": result.ratio(name, _FSYNC),
            }
            for name, found in result.measured.items()
        }
        shapes.append(
            {
                "shape": result.shape,
                "layers": list(result.layers),
                "parameters": list(result.parameters),
                "checkpoint_bytes": result.checkpoint_bytes,
                "checkpoint_made_by": result.made_by,
                "state_bytes": result.state_bytes,
                "measured": measured,
                "transition": {
                    "seconds": result.transition,
                    "median_seconds": median(result.transition),
                    "ratio_to_cp": result.ratio("transition"),
                    "ratio_to_cp_fsync": result.ratio("transition", _FSYNC),
                    "memory": result.memory,
                    "disk": result.disk,
                    "disk_to_state": result.disk / result.state_bytes,
                },
            }
        )
    return {"format": 1, "kind": "transition-bench", "wanted": asdict(wanted), "shapes": shapes}


_FSYNC = "cp, then fsync"


def _shape(result: Result, wanted: Wanted) -> str:
    title = (
        f"{result.shape}: {result.parameters[0] / 1e6:,.0f} M parameters,"
        f" {result.layers[0]} → {result.layers[1]} layers;"
        f" checkpoint {result.checkpoint_bytes / 1e9:.2f} GB, state {result.state_bytes / 1e9:.2f} GB;"
        f" ZeRO {wanted.zero_stage}, {wanted.ranks} ranks, {wanted.precision}, moments {wanted.optimizer_state};"
        f" page cache {wanted.cache};"
        f" {wanted.repeats} repeats, medians; checkpoint saved by {result.made_by}"
    )
    rows = [_row(result, name) for name in result.measured]
    position = 2 + len(OURS)
    total = (
        "transition",
        _seconds(result.transition),
        _spread(result.transition),
        f"{result.ratio('transition'):.2f}",
        f"{result.ratio('transition', _FSYNC):.2f}",
        f"{result.memory / 1e6:,.0f}",
        f"{result.disk / 1e9:.2f}",
        f"{result.disk / result.state_bytes:.2f}",
        "",
    )
    rows.insert(position, total)
    note = result.measured["load"].note
    return "\n".join([title, _grid([_HEADER, *rows]), _TARGETS, f"load: {note}"])


def _row(result: Result, name: str) -> tuple[str, ...]:
    found = result.measured[name]
    disk = (f"{found.disk / 1e9:.2f}", f"{found.disk / result.state_bytes:.2f}") if name != "load" else ("", "")
    return (
        f"  {name}" if name in OURS else name,
        _seconds(found.seconds),
        _spread(found.seconds),
        f"{result.ratio(name):.2f}",
        f"{result.ratio(name, _FSYNC):.2f}",
        f"{found.memory / 1e6:,.0f}",
        *disk,
        "" if name.startswith("cp") else f"{median(found.startup):.2f}",
    )


def _scaling(results: Sequence[Result]) -> str:
    header = ("by size", "checkpoint GB", "transition s", "s per GB", "consolidate MB", "grow MB")
    rows = [
        (
            result.shape,
            f"{result.checkpoint_bytes / 1e9:.2f}",
            _seconds(result.transition),
            f"{median(result.transition) / result.checkpoint_bytes * 1e9:.2f}",
            f"{result.measured['consolidate'].memory / 1e6:,.0f}",
            f"{result.measured['grow'].memory / 1e6:,.0f}",
        )
        for result in results
    ]
    return _grid([header, *rows])


def _seconds(values: Sequence[float]) -> str:
    return f"{median(values):.3f}"


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.2f}…{max(values):.2f}"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
