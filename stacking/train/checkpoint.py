"""Saves and restores a stage's training atomically, in DeepSpeed's own checkpoint files."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine

from stacking.errors import DamagedFile, Diverged, NoSpace, UserError
from stacking.planning.plan import Plan, StagePlan
from stacking.run.checkpoints import SAVING, checkpoints, point_latest, tag
from stacking.run.decisions import ENDED
from stacking.state.format import TrainingState
from stacking.state.load import begin, load
from stacking.state.loss_scale import loss_scale, set_loss_scale
from stacking.state.zero import ZeroCheckpoint
from stacking.storage.blocks import Entry, hash_files
from stacking.storage.files import disk_errors, fsync, move_folder, seal_folder, write_sealed
from stacking.storage.threads import each
from stacking.train.ahead import await_state
from stacking.train.finite import diverged, first_not_finite
from stacking.train.rank_sync import Agreement

PROGRESS = "progress.json"
_OF_A_RANK = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_\d+_(?:optim|model)_states\.pt")


class Saver:
    """Writes the checkpoints of one stage and keeps the newest ones.

    Args:
        works: returns whether the model's loss is finite on this rank; called on all ranks before each checkpoint.
        awaited: a state that must exist before the first checkpoint.
    """

    def __init__(
        self,
        engine: DeepSpeedEngine,
        plan: Plan,
        stage: StagePlan,
        folder: Path,
        agreement: Agreement,
        works: Callable[[DeepSpeedEngine], bool],
        awaited: Path | None = None,
    ) -> None:
        self._engine, self._plan, self._stage, self._folder = engine, plan, stage, folder
        self._agreement, self._works, self._awaited = agreement, works, awaited

    def is_due(self, step: int) -> bool:
        """Returns whether a checkpoint is due after update ``step`` (from 1); the last update always has one."""
        every = self._plan.checkpoint.every_steps
        return step == self._stage.steps or step % every == 0

    def save(
        self, step: int, seconds: float, tokens: int, window: Sequence[Sequence[float]], ended: bool = False
    ) -> None:
        """Writes the checkpoint after update ``step``; all ranks must call this together.

        DeepSpeed writes into a temporary folder, and each rank hashes the files that it wrote; rank 0 then adds
        ``progress.json`` and the manifest, renames the folder and updates ``latest``. If the process is killed at any
        point, the previous checkpoint is still the latest.

        Args:
            step: the update, from 1.
            seconds: training time in this stage so far.
            tokens: tokens seen in the whole run so far, without padding.
            window: the losses of the latest updates, which no record of the metrics covers yet.
            ended: the stage ends here, before its planned last update.

        Raises:
            Diverged: the training state or its loss is not finite; the previous checkpoint stays.
            NoSpace: the disk is full; the unfinished checkpoint is removed.
            Preempted: a rank was asked to stop before there may be a checkpoint.
        """
        if self._awaited is not None:
            await_state(self._awaited, self._stage, self._agreement)
            self._awaited = None
        if self._agreement.decided((self._folder / tag(step)).is_dir):
            return
        self._require_finite(step)
        saving = self._folder / SAVING
        self._agreement.decided(lambda: shutil.rmtree(saving, ignore_errors=True))
        try:
            entries = self._write(saving, step)
            progress = self._progress(step, seconds, tokens) | {"window": window} | ({ENDED: True} if ended else {})
            self._agreement.decided(lambda: self._publish(saving, step, progress, entries))
        except BaseException:
            shutil.rmtree(saving, ignore_errors=True)
            raise

    def _require_finite(self, step: int) -> None:
        names = [name for name, _ in self._engine.module.named_parameters()]
        mine = first_not_finite(self._engine)
        first = self._agreement.least(len(names) if mine is None else mine)
        if first < len(names):
            problem = f"{names[first]} or its Adam moments are not finite after update {step}; it was not saved"
            raise self.diverged(problem)
        if not self._agreement.least(self._works(self._engine)):
            raise self.diverged(f"the held-out loss is not finite after update {step}; no checkpoint was written")

    def diverged(self, problem: str) -> Diverged:
        """Returns the error that ends training and names the last good checkpoint."""
        return diverged(problem, self._stage, self._folder)

    def _write(self, saving: Path, step: int) -> dict[str, Entry]:
        """Lets DeepSpeed write the files; returns the manifest entries of all ranks."""
        try:
            with disk_errors(self._folder):
                self._engine.save_checkpoint(str(saving), tag=tag(step), save_latest=False)
        except RuntimeError as error:  # torch reports a failed write of its zip file this way, without an errno
            raise _as_disk_error(self._folder, error) from error
        with disk_errors(self._folder):
            mine = sealed_by(saving / tag(step), dist.get_rank())
        return {name: entry for entries in self._agreement.gathered(mine) for name, entry in entries.items()}

    def _publish(self, saving: Path, step: int, progress: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
        folder = saving / tag(step)
        for name in entries:
            if not (folder / name).is_file():
                raise DamagedFile(folder / name, "was written by another rank and is not visible to rank 0")
        with disk_errors(self._folder):
            write_sealed(folder / PROGRESS, progress)
            seal_folder(folder, {"kind": "checkpoint", "format": 1}, entries)
            move_folder(folder, self._folder / tag(step))
            for script in saving.glob("*.py"):
                os.replace(script, self._folder / script.name)
            point_latest(self._folder, self._folder / tag(step))
        shutil.rmtree(saving)
        for old in checkpoints(self._folder)[: -self._plan.checkpoint.keep]:
            shutil.rmtree(old)

    def _progress(self, step: int, seconds: float, tokens: int) -> dict[str, Any]:
        stage, samples = self._stage, self._stage.first_sample + step * self._stage.global_batch
        return {
            "model": self._plan.model.with_layers(stage.layers).model_dump(),
            "stage": stage.index,
            "step": step,
            "samples": samples,
            "tokens": tokens,
            "padded_tokens": padded_tokens(self._plan, stage, step),
            "stages": [_summary(s, s.steps) for s in self._plan.stages[: stage.index]] + [_summary(stage, step)],
            "seconds": seconds,
            "world_size": stage.ranks,
            "zero_stage": stage.zero_stage,
            "precision": stage.precision,
            "loss_scale": loss_scale(self._engine),
        }


def sealed_by(folder: Path, rank: int) -> dict[str, Entry]:
    """Makes the checkpoint files of ``rank`` durable; returns their manifest entries by name.

    Files without a rank in their name belong to rank 0.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _writer_of(path.name) == rank]
    each(fsync, files)
    return {path.name: entry for path, entry in zip(files, hash_files(files), strict=True)}


def _writer_of(name: str) -> int:
    match = _OF_A_RANK.fullmatch(name)
    return int(match[1]) if match else 0


def padded_tokens(plan: Plan, stage: StagePlan, step: int) -> int:
    """Returns the tokens, including padding, from the beginning of the run to update ``step`` of ``stage``."""
    before = sum(earlier.tokens for earlier in plan.stages[: stage.index])
    return before + step * stage.global_batch * plan.data.sequence_length


def open_checkpoint(plan: Plan, stage: StagePlan, checkpoint: Path) -> ZeroCheckpoint:
    """Opens a checkpoint of ``stage``.

    Raises:
        UserError: the checkpoint belongs to another model or stage.
        DamagedFile: a file is missing or truncated.
    """
    source = ZeroCheckpoint(checkpoint)
    if source.model != plan.model.with_layers(stage.layers) or (source.progress or {}).get("stage") != stage.index:
        raise UserError(checkpoint, "does not belong to the plan's model and stage", "use the run's own folder")
    step, samples = (source.progress or {}).get("step", 0), (source.progress or {}).get("samples")
    if samples != stage.first_sample + step * stage.global_batch:
        problem = f"has seen {samples} samples where the plan has {stage.first_sample + step * stage.global_batch}"
        raise UserError(checkpoint, problem, "restore the journal and the folders of the stages before")
    return source


def restore(engine: DeepSpeedEngine, stage: StagePlan, source: TrainingState | None) -> dict[str, Any]:
    """Loads a checkpoint of ``stage``, or the state that it starts from.

    Returns:
        The checkpoint's ``progress.json``; at the beginning of a stage only ``step``, ``seconds`` and ``tokens``.

    Raises:
        UserError: the state is of another model.
        DamagedFile: a file is truncated or altered.
    """
    if source is None:
        begin(engine)
        return {"step": 0, "seconds": 0.0, "tokens": 0}
    load(engine, source)
    progress = source.progress or {}
    if not isinstance(source, ZeroCheckpoint):
        return {"step": 0, "seconds": 0.0, "tokens": progress.get("tokens", 0) if stage.index else 0}
    set_loss_scale(engine, progress["loss_scale"])
    engine.global_steps = progress["step"]
    engine.global_samples = progress["step"] * stage.global_batch
    return progress


def _summary(stage: StagePlan, steps: int) -> dict[str, Any]:
    """Returns the model card's summary of a stage after ``steps`` updates."""
    growth = stage.growth.model_dump() if stage.growth else None
    return {"layers": stage.layers, "steps": steps, "global_batch": stage.global_batch, "growth": growth}


def _as_disk_error(folder: Path, error: Exception) -> Exception:
    return NoSpace(folder) if shutil.disk_usage(folder).free < 1 << 24 else error
