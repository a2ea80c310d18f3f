"""What the results of `tools/gpu_bench` on the null GPU must hold: every case and contender; times say nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stacking.doctor.compatibility import TRITON_LEAST
from tools.benchmarks.gpu import NAMES
from tools.benchmarks.gpu_cases import CASES
from tools.benchmarks.gpu_page import OPERATORS
from tools.benchmarks.gpu_programs import PROGRAMS
from tools.null_gpu.card import CARDS


def missing(card: str, cases: Mapping[str, Any]) -> list[str]:
    """Returns what was not measured although it can be on ``card``, each with the reason that the results give."""
    absent = [f"no row of {name}" for name in NAMES if name not in cases]
    steps = (problem for name in CASES if name in cases for problem in _steps(card, name, cases[name]))
    failed = (
        f"{name}: {cases[name]['message']}"
        for name in PROGRAMS
        if name in cases and cases[name]["outcome"] != "measured"
    )
    return [*absent, *steps, *_kernels(card, cases.get(OPERATORS, {"rows": [], "message": ""})), *failed]


def _compiles(card: str) -> bool:
    """Returns whether Triton makes code for ``card``."""
    return CARDS[card].capability >= TRITON_LEAST


def _steps(card: str, name: str, found: Mapping[str, Any]) -> Iterator[str]:
    if found["outcome"] != "measured":
        yield f"{name}: {found['outcome']}: {found['message']}"
        return
    for contender in ("stacking", *CASES[name].against):
        excused = contender == "hugging-face-compiled" and not _compiles(card)
        if contender not in found["measurements"] and not excused:
            yield f"{name}: no {contender}: {found['lost'].get(contender, 'without a reason')}"


def _kernels(card: str, found: Mapping[str, Any]) -> Iterator[str]:
    if found["message"]:
        yield f"{OPERATORS}: {found['message']}"
    for row in found["rows"]:
        excused = row["name"].endswith("compiled") and not _compiles(card)
        if row["seconds"] is None and not excused:
            yield f"{row['group']}, {row['name']}: {row['message']}"
