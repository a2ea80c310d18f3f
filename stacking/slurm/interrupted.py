"""Records that a signal ended a job before its controller could say so, and has SLURM start the job again.

The job scripts run ``python -m stacking.slurm.interrupted RUN BEGAN SIGNAL``; BEGAN is the unix time of their start.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stacking.launch.slurm import Slurm
from stacking.run.decisions import settled_plan
from stacking.run.folder import RunFolder, continuation
from stacking.slurm.submission import reported_left


def record(run: RunFolder, began: float, name: str) -> str:
    """Appends the event to the journal unless a controller did, and requeues the job unless it was cancelled.

    Returns:
        The line for the job's log; empty if the controller has written it.
    """
    ours = [event for event in run.journal.events() if event["time"] >= began]
    told = any(event["event"] in ("preempted", "failed") for event in ours)
    left = reported_left(run, settled_plan(run))
    if left and not told:
        message = f"stopped by {name} before the controller was ready"
        run.journal.append("preempted", phase=left[0].name, stage=left[0].stage, message=message)
    fate = Slurm().requeue()
    if told and fate.restarts:
        return ""
    advice = "" if fate.restarts else f"; run `{continuation(run)}` to continue"
    return f"{name} came before the controller was ready; {fate.text}{advice}"


if __name__ == "__main__":
    folder, began, name = sys.argv[1:]
    if line := record(RunFolder(Path(folder)), float(began), name):
        print(f"stacking: {line}", file=sys.stderr)
