"""From a DeepSpeed checkpoint to the canonical state, without GPUs, torch or DeepSpeed, in memory that stays flat.

A checkpoint of ours is read once: each block is compared with its checksum when it comes into memory, and what nothing
asked for (the model's own low-precision weights) at the end, before the state appears under its name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stacking.state.finite import CHECKED, FiniteState
from stacking.state.format import Progress, State, TrainingState, write_state
from stacking.state.zero import ZeroCheckpoint
from stacking.storage.files import MANIFEST, require_outside, verify_folder
from stacking.storage.threads import each
from stacking.storage.torch_file import verify_torch_file

_BLOCKS_A_FILE = 8
"""Kept in memory: of each kind of tensor, in each of two parameter groups, the block in use."""
_MOST_BLOCKS = 192
"""Kept in memory at most, in MiB."""


def consolidate(
    checkpoint: Path,
    out: Path,
    on_progress: Progress | None = None,
    describe: Callable[[ZeroCheckpoint], TrainingState] | None = None,
    allow_non_finite: bool = False,
) -> State:
    """Write the fp32 master weights, both moments, the step count and the buffers of a checkpoint as a state.

    Args:
        checkpoint: one checkpoint's folder, or the folder above it with a ``latest`` file. It is never changed.
        out: the state folder; it appears when it is complete.
        on_progress: called with the bytes written and those in all.
        describe: a view of a checkpoint that does not record its model as the state of one.

        allow_non_finite: take NaN and infinity as they are.

    Raises:
        UserError: ``checkpoint`` is not a checkpoint that can be read, is not one of the model that was described, or
            has a value that is not finite; names the tensor.
        DamagedFile: one of its files is missing, torn or altered; names it.
        NoSpace: the disk is full; nothing is left at ``out``.
    """
    source = ZeroCheckpoint(checkpoint)
    require_outside(out, source.path)
    described = describe(source) if describe else source
    files = source.verified
    if files is None or _BLOCKS_A_FILE * source.shards > _MOST_BLOCKS:
        verify(source)  # beforehand: it cannot be done, or would not be done once, while tensors are put together
        source.verified = None
    else:
        files.kept = max(files.kept, _BLOCKS_A_FILE * source.shards)
    rest = source.verified.verify_rest if source.verified else None
    provenance = {"checkpoint": source.path.name, CHECKED: not allow_non_finite}
    view = described if allow_non_finite else FiniteState(described, source.path)
    write_state(out, view, provenance, on_progress, rest)
    return State(out)


def verify(source: ZeroCheckpoint) -> None:
    """Compare every byte with the manifest's checksums, or, in a checkpoint that is not ours, with the archives' CRCs.

    Raises:
        DamagedFile: a file is missing, torn or altered.
    """
    if (source.path / MANIFEST).exists():
        verify_folder(source.path)
        return
    each(verify_torch_file, sorted(source.path.glob("*_states.pt")))
