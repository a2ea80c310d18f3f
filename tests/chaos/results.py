"""Results of events: one JSON line each, and the tables that sum them up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

GOOD = ("identical", "harmless", "not read again", "healed", "refused")
BAD = (
    "lost",
    "different",
    "wrong exit code",
    "wrong blame",
    "stopped",
    "not recoverable",
    "crash",
    "hang",
    "UNDETECTED",
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One event and its outcome."""

    kind: str
    """``kill``, ``damage``, ``disk``, ``clock`` or ``cluster``."""
    seed: int
    number: int
    """Of the chain or damage; with the seed it says everything that was drawn."""
    setting: str
    row: str
    """Of the table: the phase, or the kind of file."""
    what: str
    """The signal and its target, or the damage, its file and its place."""
    column: str
    """Of the table of signals: the signal."""
    outcome: str
    """One of `GOOD` or `BAD`."""
    message: str = ""
    details: list[str] = field(default_factory=list)


def read_results(path: Path) -> list[Result]:
    """All complete lines of ``path``; a torn last one is dropped."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [Result(**json.loads(line)) for line in lines]


def append_results(path: Path, results: Iterable[Result]) -> None:
    """Add ``results`` to the file, all in one write."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(asdict(result)) + "\n" for result in results))


def as_markdown(results: Sequence[Result]) -> str:
    """The tables of kills, damages, full disks and clocks, and a list of what went wrong."""
    sections = [
        _table("Signals by phase", "phase", _of(results, "kill"), by_signal=True),
        _table("Outcomes of the signals", "phase", _of(results, "kill")),
        _table("Damaged files", "file", _of(results, "damage")),
        _table("Full disks by phase", "phase", _of(results, "disk")),
        _table("Clock jumps by phase", "phase", _of(results, "clock")),
        _table("Disturbances of a cluster", "what", _of(results, "cluster")),
        _faults(results),
    ]
    return "\n".join(section for section in sections if section)


def _of(results: Sequence[Result], kind: str) -> list[Result]:
    return [result for result in results if result.kind == kind]


def _table(title: str, corner: str, results: Sequence[Result], by_signal: bool = False) -> str:
    if not results:
        return ""
    cells = Counter((result.row, result.column if by_signal else result.outcome) for result in results)
    present = {column for _, column in cells}
    columns = sorted(present) if by_signal else [outcome for outcome in (*GOOD, *BAD) if outcome in present]
    lines = [f"## {title}\n", _line([corner, *columns, "all"]), _line(["---", *["---:"] * (len(columns) + 1)])]
    for row in sorted({row for row, _ in cells}):
        counts = [cells[row, column] for column in columns]
        lines.append(_line([row, *counts, sum(counts)]))
    totals = [sum(cells[row, column] for row in {row for row, _ in cells}) for column in columns]
    lines.append(_line(["**all**", *[f"**{total}**" for total in (*totals, sum(totals))]]))
    return "\n".join(lines) + "\n"


def _faults(results: Sequence[Result]) -> str:
    bad = [result for result in results if result.outcome in BAD]
    if not bad:
        return "No event was lost, undetected or ended with a traceback.\n" if results else "No results yet.\n"
    lines = ["## Failures\n", _line(["event", "setting", "what", "outcome", "seen"]), _line(["---"] * 5)]
    for result in bad:
        seen = "; ".join([*result.details, result.message])[:300].replace("|", "\\|").replace("\n", " ")
        lines.append(
            _line([f"{result.kind} {result.seed}:{result.number}", result.setting, result.what, result.outcome, seen])
        )
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
