"""Runs inside one SLURM job: the batch script that `stacking submit` would write, without a site's settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from stacking.run.create import create_run
from stacking.run.folder import RunFolder
from stacking.run.journal import Journal
from tests.slurm_lab.lab import Lab

ROOT = Path(__file__).parent.parent.parent


def create(recipe: Path, run: Path, *overrides: str) -> Path:
    """A run that no controller has started yet."""
    create_run(str(recipe), RunFolder(run), overrides, elsewhere=True)
    return run


def submit(lab: Lab, run: Path, *options: str, arguments: str = "") -> int:
    """Submit the controller of ``run`` as one requeueable job on two nodes, one rank each; its id."""
    script = run / "job.sh"
    script.write_text(
        f"""#!/bin/bash
export PYTHONPATH={ROOT} OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu STACKING_RANKS_PER_NODE=1
exec {sys.executable} -m stacking resume {run} --launcher slurm {arguments}
"""
    )
    defaults = ["--nodes=2", "--exclusive", "--requeue", "--open-mode=append"]
    return lab.sbatch(*defaults, f"--output={run}/job.log", *options, script)


def events(run: Path) -> list[dict[str, Any]]:
    return Journal(run / "journal.jsonl").events()


def has(run: Path, event: str, phase: str, stage: int) -> bool:
    """Whether the journal has this event."""
    wanted = (event, phase, stage)
    return any((e["event"], e.get("phase"), e.get("stage")) == wanted for e in events(run))


def records(run: Path, stage: str) -> list[dict[str, Any]]:
    """The training records of a stage, without a line that is being written."""
    return list(latest_first(run, stage))[::-1]


def latest_first(run: Path, stage: str) -> Iterator[dict[str, Any]]:
    """The training records of a stage, each parsed only when it is asked for: some tests look many times a second."""
    path = run / stage / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    parsed = (json.loads(line) for line in reversed(lines) if line.endswith("\n"))
    return (record for record in parsed if record["kind"] == "train")


def steps(run: Path, stage: str) -> int:
    return next((int(record["step"]) for record in latest_first(run, stage)), 0)


def wait_for_updates(lab: Lab, run: Path, stage: str, updates: int) -> None:
    """Wait until ranks that have just been restarted have made some updates."""
    lab.wait_until(lambda: events(run)[-1]["event"] == "started")
    since = events(run)[-1]["time"]

    def made() -> int:
        return sum(1 for _ in takewhile(lambda record: record["time"] > since, latest_first(run, stage)))

    lab.wait_until(lambda: made() >= updates, every=0.05)


def processes(run: Path, module: str, stage: int | None = None) -> list[int]:
    """The processes that run ``python -m MODULE`` for ``run``: ranks, or a phase between two trainings.

    Args:
        stage: only ranks of this stage; those of the next one start before it ends.
    """
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else []
        except OSError:
            continue
        named = words[1:3] == [b"-m", module.encode()] and any(word.startswith(bytes(run)) for word in words)
        if named and (stage is None or words[4:5] == [str(stage).encode()]):
            found.append(int(folder.name))
    return sorted(found)
