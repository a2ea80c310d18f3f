"""Renders the results of an examination as text and JSON."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stacking.doctor.checks.gpus import class_of, dotted, known_gpus
from stacking.doctor.examine import Visit
from stacking.doctor.facts import Collectives, Facts
from stacking.doctor.finding import LEVELS, Finding
from stacking.terminal.units import counted

_WIDTH = 120
"""Maximum width of a line."""
_MARK = {"error": "ERROR", "warning": "warning", "note": "note", "ok": "ok"}


def as_text(visit: Visit) -> str:
    """Renders the findings, worst first, each with its advice; then the measured collectives and a count."""
    ordered = sorted(visit.findings, key=lambda finding: LEVELS.index(finding.level))
    width = max(60, min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns))
    lines = [line for finding in ordered for line in _lines(finding, width)]
    if visit.facts.collectives and visit.facts.collectives.transfers:
        lines += ["", *_table(visit.facts.collectives)]
    return "\n".join([*lines, "", summary(visit)]) + "\n"


def summary(visit: Visit) -> str:
    """Returns one line, such as ``gpu7: 1 error, 2 warnings, 3 notes``."""
    counts = [(level, sum(finding.level == level for finding in visit.findings)) for level in LEVELS[:3]]
    said = ", ".join(counted(count, level) for level, count in counts if count)
    return f"{visit.facts.host.name or 'this machine'}: {said or 'no complaints'}"


def as_json(visit: Visit) -> dict[str, Any]:
    """Returns the content of ``--json``, format 1, in bytes, seconds and bytes/s."""
    facts = visit.facts
    collectives = facts.collectives
    return {
        "format": 1,
        "kind": "doctor",
        "time": time.time(),
        "findings": [asdict(finding) for finding in visit.findings],
        "devices": _devices(facts),
        "collectives": [transfer.model_dump() for transfer in collectives.transfers] if collectives else [],
        "latency_seconds": collectives.latency_seconds if collectives else None,
        "backend": collectives.backend if collectives else None,
        "clocks": [skew.model_dump() for skew in collectives.skews] if collectives else [],
        "nodes": sorted({member.host for member in collectives.members}) if collectives else [facts.host.name],
        "host": facts.host.model_dump(),
        "folder": facts.folder.model_dump() if facts.folder else None,
        "packages": dict(facts.packages),
        "tools": facts.tools.model_dump(),
        "ops": dict(facts.deepspeed.ops) if facts.deepspeed else {},
        "failures": dict(facts.failures),
    }


def _devices(facts: Facts) -> list[dict[str, Any]]:
    """Returns the GPUs, or the CPU as one device."""
    if gpus := known_gpus(facts):
        return [
            {"name": g.name, "class": class_of(g).name, "memory": g.memory, "capability": dotted(g.capability)}
            for g in gpus
        ]
    cpu = {"name": "cpu", "class": "cpu", "memory": facts.host.memory, "capability": None}
    return [{**cpu, "cores": facts.host.affinity}]


def _lines(finding: Finding, width: int) -> list[str]:
    head, indent = f"{_MARK[finding.level]:<8} {finding.what:<18} ", " " * 28
    lines = textwrap.wrap(finding.found, width, initial_indent=head, subsequent_indent=indent)
    if finding.advice:
        lines += textwrap.wrap(finding.advice, width, initial_indent=f"{indent}→ ", subsequent_indent=f"{indent}  ")
    return lines


def _table(found: Collectives) -> list[str]:
    """Tabulates time and bus bandwidth: sizes down, operations across."""
    operations = list(dict.fromkeys(transfer.operation for transfer in found.transfers))
    by_size: dict[str, dict[str, str]] = {}
    for transfer in found.transfers:
        cell = f"{transfer.seconds * 1e3:9.3f} ms {transfer.bandwidth / 1e9:7.2f} GB/s"
        by_size.setdefault(_size(transfer.bytes), {})[transfer.operation] = cell
    head = f"{'':<10}" + "".join(f"{name:>26}" for name in operations)
    return [head, *(f"{size:>10}{_cells(row, operations)}" for size, row in by_size.items())]


def _cells(row: dict[str, str], operations: Sequence[str]) -> str:
    return "".join(f"{row.get(name, ''):>26}" for name in operations)


def _size(number: int) -> str:
    size, unit = next(
        ((s, u) for s, u in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")) if number >= s), (1, "B")
    )
    return f"{number / size:.4g} {unit}"
