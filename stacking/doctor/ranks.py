"""Starts the ranks that measure collectives, with the run's own launcher and a time limit."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stacking.errors import StackingError
from stacking.launch.job import Accelerator, Job, Launcher, Outcome
from stacking.launch.outcome import describe
from stacking.launch.rendezvous import NoAddress
from stacking.storage.files import read_json
from stacking.terminal.units import counted

ASK, FOUND = "ask.json", "found.json"

_KiB, _MiB = 1 << 10, 1 << 20
SIZES: dict[Accelerator, Sequence[int]] = {
    "cpu": [_KiB * 4**power for power in range(9)],
    "cuda": [_KiB * 4**power for power in range(11)],
}
"""Buffer sizes in bytes: up to 64 MiB on CPUs, up to 1 GiB on GPUs."""
_PAUSES = (0.0, 5.0, 15.0)
"""Seconds before each try: what fails once may pass."""
QUICK: dict[Accelerator, Sequence[int]] = {"cpu": [_KiB, _MiB], "cuda": [_KiB, _MiB, 64 * _MiB]}

INTERRUPTED = "collectives interrupted"
"""Names the failure of a measurement whose ranks were killed or not started."""


class TimeIsUp(StackingError):
    """The ranks did not end in time, possibly because of a slow file server."""


class Interrupted(StackingError):
    """The ranks were killed, or not started at all: that proves nothing about the nodes."""


def measure(
    launcher: Launcher, ranks: int, accelerator: Accelerator, folder: Path, sizes: Sequence[int], patience: float
) -> dict[str, Any]:
    """Measures collectives with ``ranks`` and returns the fields of `facts.Collectives`.

    Args:
        folder: the run's folder, visible to all nodes. A temporary folder in it, or in its nearest existing parent, is
            used and removed.
        patience: seconds after which all ranks are stopped.

    Raises:
        TimeIsUp: the ranks did not end in time.
        Interrupted: each try was interrupted from outside.
        StackingError: they failed at each try; names the first failed rank and its last words.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    work = there / f".stacking-doctor.{time.time_ns():x}"
    work.mkdir()
    try:
        (work / ASK).write_text(json.dumps(list(sizes)))
        argv = [sys.executable, "-m", "stacking.doctor.collectives", str(work), json.dumps(list(sizes))]
        job = Job(name="doctor", argv=argv, ranks=ranks, logs=work / "logs", accelerator=accelerator)
        for number, pause in enumerate(_PAUSES):
            time.sleep(pause)
            outcome = _wait(launcher, replace(job, name=f"doctor-{number}"), patience)
            if outcome.exit_code == 0:
                break
        else:
            words = describe(outcome).rpartition(" (log: ")[0]
            raise Interrupted(words) if _is_interrupted(outcome) else StackingError(words)
        found: dict[str, Any] = read_json(work / FOUND)
        return found
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_interrupted(outcome: Outcome) -> bool:
    """Returns whether a rank was killed, the launcher failed or the first host had no address."""
    return outcome.exit_code < 0 or outcome.rank is None or outcome.exit_code == NoAddress.exit_code


def _wait(launcher: Launcher, job: Job, patience: float) -> Outcome:
    running = launcher.start(job)
    deadline = time.monotonic() + patience
    try:
        while (outcome := running.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeIsUp(f"{counted(job.ranks, 'rank')} did not end in {patience:.0f} s")
            time.sleep(0.05)
        return outcome
    finally:
        running.kill()
