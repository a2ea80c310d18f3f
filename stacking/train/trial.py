"""Grows a model by the best of several operators: each candidate trains for some updates from the same state.

The candidate with the lowest held-out loss is grown again and begins the stage; what the trial has trained is dropped
(landscape-aware growing, Karp et al., 2024, arXiv 2406.02469). A launcher starts this process on every rank.

python -m stacking.train.trial RUN_DIR STAGE, by `stacking run`, srun or mpirun
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from functools import partial
from itertools import islice
from math import inf
from pathlib import Path

import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from stacking.errors import Diverged
from stacking.growth.apply import GrownState, grow
from stacking.growth.operators import optimizer_state_rule
from stacking.launch.mpi import log_to_file
from stacking.launch.rank import run_rank
from stacking.planning.plan import Plan, StagePlan, load_plan
from stacking.run.decisions import decisions, trial_losses
from stacking.run.folder import RunFolder
from stacking.run.lease import Watch
from stacking.run.metrics import MetricsWriter, truncate_after
from stacking.run.phases import previous_state
from stacking.state.format import State
from stacking.state.layers import LayerSource
from stacking.state.load import load
from stacking.train.allocator import keep_freed_memory
from stacking.train.checkpoint import Saver
from stacking.train.engine import connect, start_engine
from stacking.train.loader import updates
from stacking.train.loop import train
from stacking.train.plateau import Plateau
from stacking.train.rank_sync import Agreement
from stacking.train.recorder import Recorder
from stacking.train.validation import HeldOut, HeldOutLosses
from stacking.train.worker import fitted, open_sampler


class _NoCheckpoints(Saver):
    """Writes nothing: a trial that is interrupted repeats the candidate."""

    def is_due(self, step: int) -> bool:
        return False

    def save(
        self, step: int, seconds: float, tokens: int, window: Sequence[Sequence[float]], ended: bool = False
    ) -> None:
        return


def run_trial(run: RunFolder, plan: Plan, index: int, ranks: int) -> None:
    """Tries every candidate that has no result yet, and writes the state grown by the best one.

    Raises:
        Diverged: all candidates did.
        Preempted: a rank was asked to stop; candidates that are finished are not tried again.
    """
    fitted(plan, plan.stages[index], ranks)
    connect()
    keep_freed_memory()
    agreement = Agreement(Watch(run.lock, os.environ))
    plan = agreement.decided(lambda: decisions(run, plan)).applied_to(plan)
    stage = fitted(plan, plan.stages[index], ranks).model_copy(update={"until": None})
    assert stage.growth is not None
    assert stage.growth.trial is not None
    source = previous_state(plan, run, stage)
    assert source is not None  # else there would be nothing to grow
    known = agreement.decided(lambda: trial_losses(run, stage))
    for operator in stage.growth.trial.sources:
        if operator not in known:
            _try(run, plan, stage.grown_by(operator), State(source), agreement)
    losses = agreement.decided(lambda: trial_losses(run, stage))
    best = min(losses, key=lambda operator: losses[operator])
    if losses[best] == inf:
        raise Diverged(
            f"{stage.name}: every operator of the trial diverged; start a new run with a lower learning rate"
        )
    out, rule = run.stage(stage.name).start, stage.growth.optimizer_state
    agreement.decided(lambda: grow(source, out, stage.layers, best, rule, share=True).path)
    dist.barrier()
    dist.destroy_process_group()


def _try(run: RunFolder, plan: Plan, stage: StagePlan, source: State, agreement: Agreement) -> None:
    """Trains one candidate, grown out of ``source``, and records its held-out losses, the last one at the end."""
    growth, rank = stage.growth, dist.get_rank()
    assert growth is not None
    assert growth.trial is not None
    sources = tuple(map(LayerSource.parse, growth.sources))
    grown = GrownState(source, sources, optimizer_state_rule(growth.optimizer_state))
    engine = start_engine(plan, stage, drawn=False, source=grown)
    load(engine, grown)
    metrics = run.stage(stage.name).trial(growth.operator)
    writer = None
    if rank == 0:
        truncate_after(metrics, 0)
        writer = MetricsWriter(metrics)
    progress = {"step": 0, "seconds": 0.0, "tokens": (grown.progress or {}).get("tokens", 0)}
    recorder = Recorder(engine, plan, stage, writer, progress)
    held_out = HeldOut(open_sampler(plan, run, "held_out"), plan.evaluation, stage, rank)
    sampler, grouped = open_sampler(plan, run, "train"), engine.module.kernels.grouped
    trained = islice(updates(sampler, stage, 0, rank, engine.device, grouped), growth.trial.steps)
    saver = _NoCheckpoints(engine, plan, stage, run.stage(stage.name).checkpoints, agreement, held_out.is_finite)
    try:
        train(engine, plan, stage, trained, 0, agreement, recorder, held_out, saver, Plateau(plan, stage, []))
        losses = held_out.losses(engine)
    except Diverged:
        losses = HeldOutLosses(inf, inf, inf, 0.0)
    recorder.evaluation(growth.trial.steps, losses)
    engine.destroy()
    del engine, recorder, held_out, saver, trained
    gc.collect()
    get_accelerator().empty_cache()


def main(run_dir: str, stage: str) -> None:
    """Runs the trial before stage number ``stage`` on this rank."""
    run, index = RunFolder(Path(run_dir)), int(stage)
    run_trial(run, load_plan(run.plan), index, int(os.environ["WORLD_SIZE"]))


if __name__ == "__main__":
    log_to_file(os.environ)
    run_rank(partial(main, *sys.argv[1:]))
