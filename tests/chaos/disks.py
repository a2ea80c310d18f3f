"""A full disk: the run's file system is filled at a random moment, freed when the controller has ended, and resumed."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.compare import different_files, leftovers
from tests.chaos.processes import Controller
from tests.chaos.results import Result
from tests.chaos.workshop import SETTINGS, Workshop, stacking

_MOMENTS = ("before the run", "train, before its first update", "train", "consolidate", "grow", "export", "report")
_LEFT = (0, 0, 4096, 65536)
"""Bytes that stay free."""


def possible() -> bool:
    """Whether small file systems can be mounted here, which requires root."""
    return os.geteuid() == 0


def play(workshop: Workshop, seed: int, number: int) -> list[Result]:
    """Fill the disk of chain ``number`` of ``seed``."""
    draw = random.Random(f"disk {seed} {number}")
    setting, moment, left = draw.choice(SETTINGS), draw.choice(_MOMENTS), draw.choice(_LEFT)
    workshop.fresh_data()
    reference = workshop.reference(setting)
    with _small_disk(workshop.folder / "disk") as disk:
        run, filler = disk / "run", disk / "filler"
        if moment == "before the run":
            _fill(filler, left)
        controller = Controller(run, ["run", workshop.recipe(setting), "--run-dir", run], workshop.folder / "output")
        if moment != "before the run" and controller.wait_for(moment, patience=60):
            _fill(filler, left)
        ended = controller.wait()
        filler.unlink(missing_ok=True)
        last = (ended.output.strip().splitlines() or [""])[-1]
        outcome, details = "refused", [f"exit code {ended.exit_code}"]
        if ended.exit_code is None:
            outcome = "hang"
        elif ended.traceback:
            outcome = "crash"
        elif ended.exit_code == 0:
            outcome = "harmless"
        elif ended.exit_code != 2:
            outcome = "wrong exit code"
        elif "space" not in last or str(disk) not in last:
            outcome = "wrong blame"
        begun = (run / "journal.jsonl").exists()
        again = stacking("resume", run) if begun else stacking("run", workshop.recipe(setting), "--run-dir", run)
        different = different_files(run, reference) + leftovers(run)
        if again.exit_code != 0 or different:
            outcome = "lost"
            details += [f"freed and resumed: exit code {again.exit_code}", again.output.strip()[-200:], *different]
    return [
        Result(
            kind="disk",
            seed=seed,
            number=number,
            setting=str(setting),
            row=moment,
            what=f"full but for {left} bytes, {moment}",
            column="full",
            outcome=outcome,
            message=last,
            details=details,
        )
    ]


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(filler: Path, left: int) -> None:
    """Leave ``left`` bytes on the disk."""
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        for block in (1 << 16, 1 << 10, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * block) == block:
                    pass
    os.truncate(filler, max(0, filler.stat().st_size - left))
