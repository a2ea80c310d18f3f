"""Checks the run's folder."""

from __future__ import annotations

from collections.abc import Iterator

from stacking.deepspeed_config import ds_config
from stacking.doctor.facts import Facts
from stacking.doctor.finding import Finding
from stacking.hardware.presets import VALUE_BYTES
from stacking.planning.plan import Plan, StagePlan

GB = 1e9
_SLOW = 100e6
"""Bytes/s: slower than an ordinary hard disk."""
_LONG = 60.0
"""Seconds; a checkpoint should take less."""
_STATE = 12
"""Bytes per parameter of a state: weights and two moments in fp32."""


def speed(facts: Facts) -> Iterator[Finding]:
    """Estimates how long a checkpoint takes."""
    folder = facts.folder
    if folder is None or folder.write is None:
        return
    read = f", reads {folder.read / GB:.2f}" if folder.read else ""
    found = f"writes {folder.write / GB:.2f} GB/s{read}{' (partly from memory)' if folder.cached else ''}"
    seconds = max(map(checkpoint_bytes, facts.plan.stages)) / folder.write if facts.plan else 0.0
    if seconds > _LONG:
        advice = "raise checkpoint.every_steps, or choose a faster file system"
        yield Finding("warning", "disk speed", f"{found}: a checkpoint takes about {seconds:.0f} s", advice)
    elif folder.write < _SLOW:
        yield Finding("warning", "disk speed", found, "choose a faster file system for --run-dir")
    else:
        each = f"; a checkpoint takes about {seconds:.0f} s" if seconds >= 1 else ""
        yield Finding("ok", "disk speed", f"{found}{each}")


def space(facts: Facts) -> Iterator[Finding]:
    """Checks that there is room for everything the run keeps."""
    folder = facts.folder
    if folder is None:
        return
    found = f"{folder.free / GB:.1f} GB free in {folder.path}"
    if facts.plan is None:
        scarce = folder.free < 2 * GB
        advice = "free some space, or choose another --run-dir" if scarce else ""
        yield Finding("warning" if scarce else "ok", "disk space", found, advice)
        return
    need = run_bytes(facts.plan) - folder.used
    least = max(map(checkpoint_bytes, facts.plan.stages))
    if folder.free < least and need > 0:
        problem = f"{found}, but one checkpoint takes {least / GB:.1f}"
        yield Finding("error", "disk space", problem, "free some space, or choose another --run-dir")
    elif folder.free < need:
        problem = f"{found}, but the run will take {need / GB:.1f} more"
        yield Finding("warning", "disk space", problem, "free some space, or set a smaller checkpoint.keep")
    else:
        yield Finding("ok", "disk space", f"{found}; the run takes at most {max(0.0, need) / GB:.1f} more")


def filesystem(facts: Facts) -> Iterator[Finding]:
    """Checks that files can be locked and survive a restart of the machine."""
    folder = facts.folder
    if folder is None:
        return
    if folder.lock_error:
        advice = "on Lustre: mount with -o flock; else choose another --run-dir"
        yield Finding("error", "file system", f"{folder.filesystem} cannot lock files ({folder.lock_error})", advice)
    elif folder.filesystem in ("tmpfs", "ramfs"):
        problem = f"{folder.filesystem}: in memory, lost when the machine restarts"
        yield Finding("warning", "file system", problem, "choose a folder on a disk for --run-dir")
    else:
        yield Finding("ok", "file system", f"{folder.filesystem}, files can be locked")


def checkpoint_bytes(stage: StagePlan) -> float:
    """Returns the size of one checkpoint: fp32 master weights and moments, and weights in the training precision."""
    weights = VALUE_BYTES[ds_config.precision(stage.ds_config)]
    return float(stage.parameters * (_STATE + weights))


def run_bytes(plan: Plan) -> float:
    """Returns an upper bound of what a run keeps: checkpoints, one more being written, states and the export."""
    total = 4.0 * plan.stages[-1].parameters
    for stage in plan.stages:
        total += (plan.checkpoint.keep + 1) * checkpoint_bytes(stage) + _STATE * stage.parameters
        total += _STATE * stage.parameters if stage.growth else 0
    return total
