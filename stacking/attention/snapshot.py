"""Measures the attention of one stage of a run; the controller starts this process.

python -m stacking.attention.snapshot RUN_DIR STAGE grown|trained
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from stacking.attention.command import AttentionRequest, write_snapshot
from stacking.launch.mpi import log_to_file
from stacking.launch.rank import run_rank
from stacking.planning.plan import load_plan
from stacking.run.folder import RunFolder
from stacking.run.phases import MOMENTS


def main(run_dir: str, stage: str, moment: str) -> None:
    """Writes ``attention.json`` for the state that a stage starts from (``grown``) or ends with (``trained``).

    Raises:
        UserError: the state or the data cannot be measured.
    """
    run = RunFolder(Path(run_dir))
    plan = load_plan(run.plan)
    assert plan.attention is not None and plan.data.path is not None and moment in MOMENTS
    folder = run.stage(plan.stages[int(stage)].name)
    wanted = AttentionRequest(
        data=Path(plan.data.path),
        kind=plan.data.samples,
        sequence_length=plan.data.sequence_length,
        samples=plan.attention.samples,
    )
    write_snapshot(folder.start if moment == "grown" else folder.state, folder.attention(moment), wanted)


if __name__ == "__main__":
    log_to_file(os.environ)
    run_rank(partial(main, *sys.argv[1:]))
