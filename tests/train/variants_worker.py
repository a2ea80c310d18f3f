"""One rank that runs all phases of several runs, so that the ranks of many stages start only once."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from stacking.cli.main import cli
from stacking.planning.plan import load_plan
from stacking.run.folder import RunFolder
from stacking.run.phases import phases
from stacking.train import worker
from stacking.train.engine import connect


def main() -> None:
    connect()
    worker.connect = dist.destroy_process_group = lambda: None  # the stages share one process group
    for folder in sys.argv[1:]:
        run = RunFolder(Path(folder))
        plan = load_plan(run.plan)
        for phase in phases(plan, run):
            if phase.name == "train":
                worker.run_stage(run, plan, phase.stage, dist.get_world_size())
            elif dist.get_rank() == 0:
                cli(list(phase.arguments[1:]), standalone_mode=False)
            dist.barrier()


if __name__ == "__main__":
    main()
