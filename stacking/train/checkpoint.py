"""Saving and restoring a stage's training: DeepSpeed's own checkpoint files, made complete or absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine

from stacking.errors import NoSpace, UserError
from stacking.planning.plan import Plan, Stage
from stacking.run.checkpoints import SAVING, checkpoints, latest, point_latest, tag
from stacking.state.format import State
from stacking.state.load import begin, load
from stacking.state.loss_scale import loss_scale, set_loss_scale
from stacking.state.zero import ZeroCheckpoint
from stacking.storage.files import disk_errors, move_folder, read_sealed, seal_folder, verify_folder, write_sealed

PROGRESS = "progress.json"


class Saver:
    """Writes the checkpoints of one stage and keeps the newest few."""

    def __init__(self, engine: DeepSpeedEngine, plan: Plan, stage: Stage, folder: Path) -> None:
        self._engine, self._plan, self._stage, self._folder = engine, plan, stage, folder

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after update ``step`` (from 1); the last one always is."""
        every = self._plan.checkpoint.every_steps
        return step == self._stage.steps or step % every == 0

    def save(self, step: int, seconds: float) -> None:
        """Write the checkpoint after update ``step``; all ranks call this together.

        DeepSpeed writes into a folder beside; rank 0 then adds ``progress.json`` and checksums, renames it and lets
        ``latest`` name it. Killed at any point, the previous checkpoint is still the latest.

        Raises:
            NoSpace: the disk is full; the unfinished checkpoint is removed.
        """
        if (self._folder / tag(step)).is_dir():
            return
        saving = self._folder / SAVING
        if dist.get_rank() == 0:
            shutil.rmtree(saving, ignore_errors=True)
        dist.barrier()
        try:
            with disk_errors(self._folder):
                self._engine.save_checkpoint(str(saving), tag=tag(step), save_latest=False)
        except NoSpace:
            shutil.rmtree(saving, ignore_errors=True)
            raise
        except RuntimeError as error:  # torch reports a failed write of its zip file in this form, without an errno
            shutil.rmtree(saving, ignore_errors=True)
            raise _as_disk_error(self._folder, error) from error
        dist.barrier()
        if dist.get_rank() == 0:
            self._publish(saving, step, seconds)
        dist.barrier()

    def _publish(self, saving: Path, step: int, seconds: float) -> None:
        with disk_errors(self._folder):
            write_sealed(saving / tag(step) / PROGRESS, self._progress(step, seconds))
            seal_folder(saving / tag(step), {"kind": "checkpoint", "format": 1})
            move_folder(saving / tag(step), self._folder / tag(step))
            for script in saving.glob("*.py"):
                os.replace(script, self._folder / script.name)
            point_latest(self._folder, self._folder / tag(step))
        shutil.rmtree(saving)
        for old in checkpoints(self._folder)[: -self._plan.checkpoint.keep]:
            shutil.rmtree(old)

    def _progress(self, step: int, seconds: float) -> dict[str, Any]:
        stage, samples = self._stage, self._stage.first_sample + step * self._stage.global_batch
        return {
            "model": self._plan.model.with_layers(stage.layers).model_dump(),
            "stage": stage.index,
            "step": step,
            "samples": samples,
            "tokens": sum(s.tokens for s in self._plan.stages[: stage.index])
            + step * stage.global_batch * self._plan.data.sequence_length,
            "stages": [_summary(s, s.steps) for s in self._plan.stages[: stage.index]] + [_summary(stage, step)],
            "seconds": seconds,
            "world_size": stage.ranks,
            "zero_stage": stage.zero_stage,
            "precision": stage.precision,
            "loss_scale": loss_scale(self._engine),
        }


def restore(engine: DeepSpeedEngine, plan: Plan, stage: Stage, folder: Path, start: Path | None) -> dict[str, Any]:
    """Load the latest checkpoint of the stage or, where there is none, the state ``start`` that it begins from.

    Returns:
        The checkpoint's ``progress.json``; ``{"step": 0, "seconds": 0.0}`` at the beginning of a stage.

    Raises:
        UserError: the checkpoint belongs to another model or stage.
        DamagedFile: a file of it is missing or cut.
    """
    checkpoint = latest(folder)
    if checkpoint is None:
        if start is not None:
            load(engine, State(start))
        else:
            begin(engine)
        return {"step": 0, "seconds": 0.0}
    verify_folder(checkpoint, checksums=False)
    progress: dict[str, Any] = read_sealed(checkpoint / PROGRESS)
    expected = plan.model.with_layers(stage.layers).model_dump()
    if progress["model"] != expected or progress["stage"] != stage.index:
        raise UserError(checkpoint, "belongs to another model or stage than the plan", "use the run's own folder")
    load(engine, ZeroCheckpoint(checkpoint))
    set_loss_scale(engine, progress["loss_scale"])
    engine.global_steps = progress["step"]
    engine.global_samples = progress["step"] * stage.global_batch
    return progress


def _summary(stage: Stage, steps: int) -> dict[str, Any]:
    """What a model card says of a stage after ``steps`` updates of it."""
    growth = stage.growth.model_dump() if stage.growth else None
    return {"layers": stage.layers, "steps": steps, "global_batch": stage.global_batch, "growth": growth}


def _as_disk_error(folder: Path, error: Exception) -> Exception:
    return NoSpace(folder) if shutil.disk_usage(folder).free < 1 << 24 else error
