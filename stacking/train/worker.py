"""Trains one stage of a plan; a launcher starts this process on every rank.

python -m stacking.train.worker RUN_DIR STAGE [when-ready], by `stacking run`, srun or mpirun
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

import torch.distributed as dist

from stacking.data.arrays import mapped_array
from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS, Sampler
from stacking.errors import Preempted, UserError
from stacking.launch.mpi import log_to_file
from stacking.launch.rank import run_rank
from stacking.planning.elastic import resized
from stacking.planning.plan import Plan, StagePlan, load_plan
from stacking.run.decisions import decisions
from stacking.run.early import WHEN_READY
from stacking.run.folder import RunFolder
from stacking.run.lease import Watch
from stacking.run.metrics import MetricsWriter, read_metrics, truncate_after
from stacking.run.phases import starting_state
from stacking.terminal.units import counted
from stacking.train.allocator import keep_freed_memory
from stacking.train.checkpoint import Saver, open_source, restore
from stacking.train.engine import connect, start_engine
from stacking.train.loader import updates
from stacking.train.loop import train
from stacking.train.plateau import Plateau
from stacking.train.rank_sync import Agreement
from stacking.train.recorder import Recorder
from stacking.train.selection import agreed_checkpoint, require_same_view
from stacking.train.validation import HeldOut

_LOOK_SECONDS = 1.0
"""Seconds for which rank 0 looks for a state before the ranks agree whether to stop."""


def open_sampler(plan: Plan, run: RunFolder, split: str) -> Sampler:
    """Opens the samples of ``split``, memory-mapped."""
    rows = mapped_array(run.samples(split))
    data = plan.data
    corpus = Corpus(Path(str(data.path)), split=split)
    return SAMPLERS[data.samples](corpus, rows, data.sequence_length, plan.seed, data.mask_probability)


def run_stage(run: RunFolder, plan: Plan, index: int, ranks: int, waits: bool = False) -> None:
    """Trains stage ``index`` from its latest checkpoint, or from its beginning, to its end.

    Args:
        plan: as it was made, without what was decided since.
        waits: the state that the stage starts from is still being made.
    """
    fitted(plan, plan.stages[index], ranks)
    connect()
    keep_freed_memory()
    agreement = Agreement(Watch(run.lock, os.environ))
    if waits:
        _await_start(run, plan, plan.stages[index], agreement)
    plan = agreement.decided(lambda: decisions(run, plan)).applied_to(plan)
    stage = fitted(plan, plan.stages[index], ranks)
    folder, start = run.stage(stage.name), starting_state(plan, run, stage)
    checkpoint = agreed_checkpoint(agreement, folder.checkpoints)
    if checkpoint is None and start is not None:
        require_same_view(agreement, start)
    source = open_source(plan, stage, checkpoint, start)
    engine = start_engine(plan, stage, source is None, source)
    progress = restore(engine, stage, source)
    writer = None
    if dist.get_rank() == 0:
        truncate_after(folder.metrics, progress["step"])
        writer = MetricsWriter(folder.metrics)
    records = agreement.decided(lambda: read_metrics(folder.metrics)) if stage.until else []
    sampler, grouped = open_sampler(plan, run, "train"), engine.module.kernels.grouped
    held_out = HeldOut(open_sampler(plan, run, "held_out"), plan.evaluation, stage, dist.get_rank())
    train(
        engine,
        plan,
        stage,
        updates(sampler, stage, progress["step"], dist.get_rank(), engine.device, grouped),
        progress["step"],
        agreement,
        Recorder(engine, plan, stage, writer, progress),
        held_out,
        Saver(engine, plan, stage, folder.checkpoints, agreement, held_out.is_finite),
        Plateau(plan, stage, records),
    )
    dist.barrier()
    dist.destroy_process_group()


def _await_start(run: RunFolder, plan: Plan, stage: StagePlan, agreement: Agreement) -> None:
    """Waits on all ranks until rank 0 sees the state that the stage starts from.

    Raises:
        Preempted: a rank was asked to stop.
    """
    state = starting_state(plan, run, stage)
    assert state is not None  # else there is nothing to wait for
    ready = False
    while not ready:
        seen = dist.get_rank() == 0 and _appears(state, _LOOK_SECONDS)
        (count,), stop = agreement.exchange(seen)
        if stop:
            raise Preempted(f"stage {stage.name} stopped before its first step")
        ready = count > 0


def _appears(state: Path, seconds: float) -> bool:
    """Returns whether the state has its name, or gets it within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return state.exists()


def fitted(plan: Plan, stage: StagePlan, ranks: int) -> StagePlan:
    """Returns ``stage`` adapted to the actual number of ranks.

    Raises:
        UserError: the number differs from the plan and the recipe is not elastic, or the batch is not divisible.
    """
    where = f"{plan.recipe}: launch.elastic"
    if ranks != stage.ranks and not plan.launch.elastic:
        problem = f"is false: {stage.name} is planned for {counted(stage.ranks, 'rank')} but was started with {ranks}"
        raise UserError(where, problem, f"start {counted(stage.ranks, 'rank')}, or set it to true")
    return resized(stage, ranks, where)


def main(run_dir: str, stage: str, *when: str) -> None:
    """Trains stage number ``stage`` on this rank.

    Args:
        when: `WHEN_READY` if the state that the stage starts from is still being made.
    """
    run, index = RunFolder(Path(run_dir)), int(stage)
    run_stage(run, load_plan(run.plan), index, int(os.environ["WORLD_SIZE"]), waits=when == (WHEN_READY,))


if __name__ == "__main__":
    log_to_file(os.environ)
    run_rank(partial(main, *sys.argv[1:]))
