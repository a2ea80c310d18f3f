"""One rank that trains the first stage of several runs, so that the ranks of all of them start only once."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from stacking.planning.plan import load_plan
from stacking.run.folder import RunFolder
from stacking.train import worker
from stacking.train.engine import connect


def main() -> None:
    connect()
    worker.connect = dist.destroy_process_group = lambda: None  # the runs share one process group
    for folder in sys.argv[1:]:
        run = RunFolder(Path(folder))
        worker.run_stage(run, load_plan(run.plan), 0, dist.get_world_size())
        dist.barrier()


if __name__ == "__main__":
    main()
