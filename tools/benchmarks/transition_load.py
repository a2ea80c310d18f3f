"""One rank of the transition benchmark's loading: an engine of the next stage, and the grown state put into it.

python -m tools.benchmarks.transition_load FOLDER STATE: writes FOLDER/load.RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

from stacking.launch.rendezvous import rendezvous
from stacking.model.size import count_parameters
from stacking.planning.plan import load_plan
from stacking.state.format import State
from stacking.state.load import load
from stacking.train.engine import connect, start_engine
from tools.benchmarks.process_watch import back_memory, forget_peak, peak_memory, resident_memory
from tools.benchmarks.transition import STATE_BYTES


def main(folder: Path, state: Path) -> None:
    os.environ.update(rendezvous(os.environ))
    plan = load_plan(folder / "plan.json")
    connect()
    engine = start_engine(plan, plan.stages[1], drawn=False)
    back_memory(
        STATE_BYTES * count_parameters(plan.model.with_layers(plan.stages[1].layers)) // dist.get_world_size(),
        dist.get_world_size(),
    )
    dist.barrier()
    forget_peak()
    started = time.monotonic()
    load(engine, State(state))
    dist.barrier()
    seconds = time.monotonic() - started
    said = {"seconds": seconds, "memory": max(0, peak_memory() - resident_memory())}
    (folder / f"load.{dist.get_rank()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)
