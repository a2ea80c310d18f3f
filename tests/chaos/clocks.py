"""Clock jumps: the clock of all processes jumps forwards and backwards while they work, and between two starts."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from tests.chaos.compare import different_files, leftovers, set_aside
from tests.chaos.processes import Controller, begun
from tests.chaos.results import Result
from tests.chaos.workshop import PATIENCE, SETTINGS, Workshop, environment

_LIBRARIES = tuple(
    Path(folder) / "faketime" / "libfaketime.so.1" for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib", "/usr/lib64")
)
_SHIM = Path(__file__).parent / "clock"
_JUMPS = (-315_360_000, -86_400, -3600, -2, 2, 3600, 86_400, 315_360_000)
"""Seconds."""
_MOST_JUMPS = 12


def how() -> str:
    """The means of falsifying the clock on this machine."""
    found = next((path for path in _LIBRARIES if path.exists()), None)
    return "libfaketime" if found else "a replacement of Python's time.time (libfaketime is not installed)"


def play(workshop: Workshop, seed: int, number: int) -> list[Result]:
    """Let the clock of chain ``number`` of ``seed`` jump, and stop the chain once to resume it at another time."""
    draw = random.Random(f"clock {seed} {number}")
    setting = draw.choice(SETTINGS)
    workshop.fresh_data()
    reference, recipe, run = workshop.reference(setting), workshop.recipe(setting), workshop.scratch()
    clock = workshop.folder / "clock"
    jumps: list[tuple[str, int]] = []
    _set(clock, 0)
    for limit in (draw.uniform(3, 8), PATIENCE):
        arguments: list[str | Path] = ["resume", run] if begun(run) else ["run", recipe, "--run-dir", run]
        controller = Controller(run, arguments, workshop.folder / "output", **wrong(clock))
        while controller.running and time.monotonic() - controller.started < limit:
            time.sleep(draw.uniform(0.2, 1.5))
            if len(jumps) < _MOST_JUMPS and controller.running:
                jumps.append((controller.phase(), jump := draw.choice(_JUMPS)))
                _set(clock, jump)
        if controller.running:
            controller.end()
        ended = controller.wait()
    last = (ended.output.strip().splitlines() or [""])[-1]
    details = different_files(run, reference) + leftovers(run) + set_aside(run)
    outcome = "different" if details else "identical"
    if ended.exit_code != 0:
        outcome, details = ("crash" if ended.traceback else "lost"), [f"exit code {ended.exit_code}"]
    return [
        Result(
            kind="clock",
            seed=seed,
            number=number,
            setting=str(setting),
            row=phase,
            what=f"clock {jump:+,} s, {phase}",
            column="jump",
            outcome=outcome,
            message=last if outcome != "identical" else "",
            details=details,
        )
        for phase, jump in jumps
    ]


def wrong(clock: Path) -> dict[str, str]:
    """The environment of a process with a wrong clock."""
    for library in _LIBRARIES:
        if library.exists():
            return {
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
    return {"CHAOS_CLOCK": str(clock), "PYTHONPATH": os.pathsep.join([str(_SHIM), environment()["PYTHONPATH"]])}


def _set(clock: Path, seconds: int) -> None:
    clock.write_text(f"{seconds:+d}")
