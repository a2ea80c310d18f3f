"""What a job runs in place of the controller in tests about jobs rather than training.

It takes the run's lock, writes the journal and creates complete outputs, like the controller. ``script.json`` next to
the run says what happens to a job, by its ``--only``: ``fail`` ends it with 1, ``wait`` lets it run until a file
``go`` exists, ``requeue`` puts it back into the queue once,
``kill`` ends the controller with SIGKILL once. It records its environment.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from stacking.launch import slurm_client
from stacking.launch.slurm import allocation_facts
from stacking.planning.plan import load_plan
from stacking.run.checkpoints import tag
from stacking.run.folder import RunFolder
from stacking.run.phases import Phase, phases
from stacking.storage.files import new_folder


def main(arguments: list[str]) -> int:
    run = RunFolder(Path(arguments[arguments.index("resume") + 1]))
    only = arguments[arguments.index("--only") + 1] if "--only" in arguments else "all"
    todo = [p for p in phases(load_plan(run.plan), run) if only == "all" or f"{p.name}:{p.stage}" in only.split(",")]
    (run.path.parent / f"environment.{todo[0].name}{todo[0].stage}.json").write_text(json.dumps(dict(os.environ)))
    script = run.path.parent / "script.json"
    act = json.loads(script.read_text()).get(only) if script.exists() else None
    with run.locked(patience=30):
        run.journal.append("resumed", **allocation_facts(os.environ))
        for phase in todo:
            run.journal.append("started", phase=phase.name, stage=phase.stage, attempt=1, job=only)
            if act == "fail":
                run.journal.append("failed", phase=phase.name, stage=phase.stage, attempt=1, message="as it was told")
                return 1
            if act == "kill" and "SLURM_RESTART_COUNT" not in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            while act == "wait" and not (run.path.parent / "go").exists():
                time.sleep(0.1)
            if act == "requeue" and "SLURM_RESTART_COUNT" not in os.environ:
                run.journal.append("preempted", phase=phase.name, stage=phase.stage, attempt=1)
                slurm_client.requeue(int(os.environ["SLURM_JOB_ID"]))
                return 75
            make(phase)
            run.journal.append("finished", phase=phase.name, stage=phase.stage, attempt=1, seconds=0.1)
    return 0


def make(phase: Phase) -> None:
    if phase.name == "report":
        phase.output.write_text("report")
        return
    output = phase.output / tag(phase.last_step) if phase.name == "train" else phase.output
    with new_folder(output) as folder:
        (folder / "content").write_text("made up")


sys.exit(main(sys.argv))
