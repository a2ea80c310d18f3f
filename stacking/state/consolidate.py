"""Converts a DeepSpeed checkpoint to the canonical state, without GPUs, torch or DeepSpeed, in constant memory.

A checkpoint of this project is read once: each block is verified as it is loaded, and blocks that are not needed (the
model's low-precision weights) are verified at the end, before the state gets its name.
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
"""Cached blocks: one for each kind of tensor in each of two parameter groups."""
_MOST_BLOCKS = 192
"""Maximum size of the cache, in MiB."""


def consolidate(
    checkpoint: Path,
    out: Path,
    on_progress: Progress | None = None,
    describe: Callable[[ZeroCheckpoint], TrainingState] | None = None,
    allow_non_finite: bool = False,
) -> State:
    """Writes the fp32 master weights, both moments, the step count and the buffers of a checkpoint as a state.

    Args:
        checkpoint: a checkpoint's folder, or its parent with a ``latest`` file. It is never changed.
        describe: views a checkpoint that does not record its model as the state of a given model.

    Raises:
        UserError: ``checkpoint`` cannot be read, does not match the described model, or has a non-finite value; the
            message names the tensor.
        DamagedFile: a file is missing, truncated or altered; the message names it.
        NoSpace: the disk is full; nothing is left at ``out``.
    """
    source = ZeroCheckpoint(checkpoint)
    require_outside(out, source.path)
    described = describe(source) if describe else source
    files = source.verified
    if files is None or _BLOCKS_A_FILE * source.shards > _MOST_BLOCKS:
        verify(source)  # such files cannot be verified once while tensors are assembled
        source.verified = None
    else:
        files.kept = max(files.kept, _BLOCKS_A_FILE * source.shards)
    rest = source.verified.verify_rest if source.verified else None
    provenance = {"checkpoint": source.path.name, CHECKED: not allow_non_finite}
    view = described if allow_non_finite else FiniteState(described, source.path)
    write_state(out, view, provenance, on_progress, rest)
    return State(out)


def verify(source: ZeroCheckpoint) -> None:
    """Verifies all files by the manifest's checksums or, in a checkpoint of another program, by the archives' CRCs.

    Raises:
        DamagedFile: a file is missing, truncated or altered.
    """
    if (source.path / MANIFEST).exists():
        verify_folder(source.path)
        return
    each(verify_torch_file, sorted(source.path.glob("*_states.pt")))
