"""Implements the training loop of one stage."""

from __future__ import annotations

from collections.abc import Iterable

from deepspeed.runtime.engine import DeepSpeedEngine

from stacking.errors import Preempted
from stacking.planning.plan import Plan, StagePlan
from stacking.state.deepspeed_private import is_at_smallest_scale
from stacking.state.loss_scale import as_backward_takes_it
from stacking.train.checkpoint import Saver
from stacking.train.engine import set_learning_rates
from stacking.train.finite import PATIENCE
from stacking.train.loader import Update
from stacking.train.plateau import Plateau
from stacking.train.randomness import seed_dropout
from stacking.train.rank_sync import Agreement
from stacking.train.recorder import Recorder
from stacking.train.validation import HeldOut


def train(
    engine: DeepSpeedEngine,
    plan: Plan,
    stage: StagePlan,
    updates: Iterable[Update],
    first_step: int,
    agreement: Agreement,
    recorder: Recorder,
    held_out: HeldOut,
    saver: Saver,
    plateau: Plateau,
) -> None:
    """Trains from update ``first_step`` to the end of the stage, which writes a checkpoint.

    The loss is the mean over the masked positions of the global batch plus the mean over its sentence pairs, and
    therefore independent of the split into ranks and micro-batches.

    Raises:
        Preempted: a rank was asked to stop; the checkpoint of the current step is on disk.
        Diverged: losses or the training state are not finite; the last checkpoint is older.
    """
    # DeepSpeed divides by the accumulation steps and averages over the ranks; this undoes both to get a sum.
    share = stage.accumulation * stage.ranks
    for step, update in enumerate(updates, start=first_step):
        (predictions, tokens, lost), stop = agreement.exchange(update.predictions, update.tokens, recorder.lost)
        if lost:
            raise saver.diverged(f"the gradients or {PATIENCE} consecutive losses were not finite, up to update {step}")
        if stop:
            saver.save(step, recorder.seconds, recorder.tokens, recorder.window())
            raise Preempted(f"stage {stage.name} stopped after step {step} of {stage.steps} with a checkpoint")

        rates = stage.rates_at(step)
        set_learning_rates(engine, rates)
        for micro_step, micro in enumerate(update.micro_batches):
            seed_dropout(plan.seed, stage.first_step + step, micro_step, engine.global_rank)
            mlm, nsp = engine(*micro.inputs)
            loss = (mlm / predictions + nsp / stage.global_batch) * share
            engine.backward(as_backward_takes_it(engine, loss))
            try:
                engine.step()
            except Exception as error:
                if is_at_smallest_scale(error):
                    raise saver.diverged("gradients overflow in fp16 at the smallest loss scale") from error
                raise
            recorder.add(mlm, nsp)

        done = step + 1
        recorder.update_done(done, predictions, tokens, rates)
        if held_out.is_due(done):
            with recorder.paused():
                losses = held_out.losses(engine)
                recorder.evaluation(done, losses)
                plateau.note(done, losses.loss)
        ends = plateau.is_reached
        if ends:
            recorder.complete(done, rates)
        if ends or saver.is_due(done):
            with recorder.paused():
                saver.save(done, recorder.seconds, recorder.tokens, recorder.window(), ends)
        if ends:
            return
