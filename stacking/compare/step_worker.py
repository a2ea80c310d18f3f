"""Measures stages in turns; a launcher starts this process on every rank.

`stacking.compare.step_times` starts it as `python -m stacking.compare.step_worker FOLDER`.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from stacking.bench.contender import Stacking
from stacking.bench.measure import Course, Entrant, steps_for
from stacking.bench.worker import source
from stacking.compare.step_times import ROUND_TIMES, TURNS, Turns
from stacking.launch.mpi import log_to_file
from stacking.launch.rank import run_rank
from stacking.storage.files import write_json
from stacking.train.engine import connect


def measure(turns: Turns, device: torch.device) -> list[list[float]]:
    """Returns the median seconds of an update, per trial and round; all ranks call it together."""
    batches = source(turns.trials[0])
    runners = []
    for trial in turns.trials:
        course, entrant = Course(trial, batches, device, dist.get_rank()), Entrant("stacking", Stacking, trial, device)
        steps = steps_for(trial.model_copy(update={"least_seconds": turns.least_seconds}), course.warm_up(entrant))
        runners.append((course, entrant, steps))
    rounds: list[list[float]] = [[] for _ in runners]
    for number in range(turns.rounds):
        order = range(len(runners)) if number % 2 == 0 else reversed(range(len(runners)))
        for place in order:
            course, entrant, steps = runners[place]
            first = entrant.trial.warmup + number * steps
            rounds[place].append(median(course.window(entrant, first, steps).seconds))
    return rounds


def main(folder: Path) -> None:
    """Measures the trials in ``folder``; rank 0 writes the times there."""
    turns = Turns.model_validate_json((folder / TURNS).read_text())
    connect()
    rounds = measure(turns, torch.device(get_accelerator().current_device_name()))
    if dist.get_rank() == 0:
        write_json(folder / ROUND_TIMES, rounds)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    log_to_file(os.environ)
    run_rank(partial(main, Path(sys.argv[1])))
