"""Trains one stage of a plan; a launcher starts this process on every rank.

python -m stacking.train.worker RUN_DIR STAGE [ATTEMPT], by `stacking run`, srun or mpirun
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import torch.distributed as dist

from stacking.data.arrays import mapped_array
from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS, Sampler
from stacking.errors import UserError
from stacking.growth.apply import GrownState
from stacking.launch.mpi import log_to_file
from stacking.launch.rank import run_rank
from stacking.planning.elastic import resized
from stacking.planning.plan import Plan, StagePlan, load_plan
from stacking.run.decisions import decisions
from stacking.run.folder import RunFolder
from stacking.run.lease import Watch
from stacking.run.metrics import MetricsWriter, read_metrics, truncate_after
from stacking.run.phases import last_checkpoint, starting_state
from stacking.state.format import State, TrainingState
from stacking.terminal.units import counted
from stacking.train.ahead import await_end, grown_ahead
from stacking.train.allocator import keep_freed_memory
from stacking.train.checkpoint import Saver, open_checkpoint, restore
from stacking.train.engine import connect, start_engine
from stacking.train.loader import updates
from stacking.train.loop import train
from stacking.train.plateau import Plateau
from stacking.train.rank_sync import Agreement
from stacking.train.recorder import Recorder
from stacking.train.selection import agreed_checkpoint, require_same_view
from stacking.train.validation import HeldOut


def open_sampler(plan: Plan, run: RunFolder, split: str) -> Sampler:
    """Opens the samples of ``split``, memory-mapped."""
    rows = mapped_array(run.samples(split))
    data = plan.data
    corpus = Corpus(Path(str(data.path)), split=split)
    return SAMPLERS[data.samples](corpus, rows, data.sequence_length, plan.seed, data.mask_probability)


def run_stage(run: RunFolder, plan: Plan, index: int, ranks: int, after: int | None = None) -> None:
    """Trains stage ``index`` from its latest checkpoint, or from its beginning, to its end.

    Args:
        plan: as it was made, without what was decided since.
        after: the attempt of the stage before that is still training.
    """
    fitted(plan, plan.stages[index], ranks)
    if after is not None:
        await_end(run.journal, index - 1, after)
    connect()
    keep_freed_memory()
    agreement = Agreement(Watch(run.lock, os.environ))
    plan = agreement.decided(lambda: decisions(run, plan)).applied_to(plan)
    stage = fitted(plan, plan.stages[index], ranks)
    folder = run.stage(stage.name)
    source = _source(run, plan, stage, agreement)
    engine = start_engine(plan, stage, source is None, source)
    progress = restore(engine, stage, source)
    awaited = starting_state(plan, run, stage) if isinstance(source, GrownState) else None
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
        Saver(engine, plan, stage, folder.checkpoints, agreement, held_out.is_finite, awaited),
        Plateau(plan, stage, records),
    )
    dist.barrier()
    dist.destroy_process_group()


def _source(run: RunFolder, plan: Plan, stage: StagePlan, agreement: Agreement) -> TrainingState | None:
    """Opens what the stage continues from: its latest checkpoint, or what it starts from; None: random weights.

    The state that it starts from may still be in the making; then it is seen in the checkpoint that it is made of.
    """
    checkpoint = agreed_checkpoint(agreement, run.stage(stage.name).checkpoints)
    if checkpoint is not None:
        return open_checkpoint(plan, stage, checkpoint)
    start = starting_state(plan, run, stage)
    if start is None:
        return None
    if stage.index and not agreement.decided(start.exists):
        last = last_checkpoint(run, plan.stages[stage.index - 1])
        require_same_view(agreement, last)
        return grown_ahead(last, stage)
    require_same_view(agreement, start)
    return State(start)


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


def main(run_dir: str, stage: str, after: str | None = None) -> None:
    """Trains stage number ``stage`` on this rank.

    Args:
        after: the attempt of the stage before that must finish first.
    """
    run, index = RunFolder(Path(run_dir)), int(stage)
    run_stage(run, load_plan(run.plan), index, int(os.environ["WORLD_SIZE"]), None if after is None else int(after))


if __name__ == "__main__":
    log_to_file(os.environ)
    run_rank(partial(main, *sys.argv[1:]))
