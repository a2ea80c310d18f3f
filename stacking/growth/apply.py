"""Applies growth operators: streams the state of a shallow model into that of a deep one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from stacking.errors import UserError
from stacking.growth.operators import layer_sources, optimizer_state_rule
from stacking.model.config import MOST_LAYERS, ModelConfig
from stacking.state.finite import CHECKED, FiniteState, require_finite, was_checked
from stacking.state.format import BUFFERS, MOMENTS, Progress, Readable, State, manifest_of, write_state
from stacking.state.layers import LayerSource, composed, layer_of, origins
from stacking.storage.files import new_folder, require_outside, verify_folder
from stacking.storage.partition import Shape
from stacking.storage.safetensors_file import TensorSpec


class _NoLinks(Exception):
    """Raised if the file system does not support hard links."""


class GrownState(Readable):
    """Views ``source`` as the deeper model's state, reading lazily."""

    def __init__(self, source: State, sources: tuple[LayerSource, ...], moments: bool, keeps_step: bool) -> None:
        self._source = source
        self._origins = origins(source.names, sources)
        self._buffer_origins = origins(source.buffers, sources)
        self.names = tuple(self._origins)
        self.buffers: dict[str, TensorSpec] = {n: source.buffers[o.name] for n, o in self._buffer_origins.items()}
        self.moments = moments and source.moments
        self.optimizer_step = source.optimizer_step if keeps_step else 0
        self.model: ModelConfig | None = source.model and source.model.with_layers(len(sources))
        self.progress: dict[str, Any] | None = source.progress

    def shape(self, name: str) -> Shape:
        return self._source.shape(self._origins[name].name)

    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None:
        origin = (self._buffer_origins if kind == BUFFERS else self._origins)[name]
        if origin.zero:
            into[:] = 0
        else:
            self._source.fill(kind, origin.name, start, into)


def grow(
    source: State | Path,
    out: Path,
    layers: int,
    operator: str = "stack",
    optimizer_state: str = "reset",
    on_progress: Progress | None = None,
    share: bool = False,
    allow_non_finite: bool = False,
) -> State:
    """Writes the state of a model with ``layers`` layers, copied from ``source`` by ``operator``.

    Args:
        source: a state; it is never changed. Without ``share``, every tensor of the result is a copy.
        out: the new state folder; it gets its name when it is complete.
        operator: a key of `OPERATORS`.
        optimizer_state: a key of `OPTIMIZER_STATES`. With ``reset`` the result has no moments, and loading sets them
            to zero.
        on_progress: called with the bytes written and the total.
        share: hard-link the files of ``source`` and record the source of each layer in the manifest, which takes
            neither time nor space. The checksums are kept, and tensors are verified when they are read. On a file
            system without hard links, files are copied.
        allow_non_finite: accept NaN and infinity. Otherwise a shared state is read for the check, unless its manifest
            records that it was checked when it was written.

    Raises:
        UserError: the depth cannot be reached, the state has no layers, or a value is not finite.
        DamagedFile: a file of ``source`` is altered.
        NoSpace: the disk is full; nothing is left at ``out``.
    """
    if layers > MOST_LAYERS:
        raise UserError("--layers", f"{layers:,} are more than any model has", f"give {MOST_LAYERS:,} or fewer")
    source = State(source.path if isinstance(source, State) else source)
    require_outside(out, source.path)
    depth = 1 + max((layer_of(name) or 0 for name in source.names if layer_of(name) is not None), default=-1)
    if depth == 0:
        raise UserError(source.path, "has no layers to grow", "give a state of one of this project's models")
    try:
        sources = layer_sources(operator, depth, layers)
        rule = optimizer_state_rule(optimizer_state)
    except ValueError as error:
        raise UserError(source.path, str(error), "choose one of these") from None
    grown = GrownState(source, sources, rule.copies_moments, rule.keeps_step)
    provenance = {
        "operator": operator,
        "optimizer_state": optimizer_state,
        "sources": [str(source) for source in sources],
        "parent": source.digest,
        CHECKED: not allow_non_finite or was_checked(source.manifest),
    }
    if share and not allow_non_finite and not was_checked(source.manifest):
        require_finite(source, source.path)
    if share and _share(out, source, grown, sources, provenance):
        return State(out)
    if source.verified is None:
        verify_folder(source.path)
    view = grown if allow_non_finite else FiniteState(grown, source.path)
    write_state(out, view, provenance, on_progress, source.verified.verify_rest if source.verified else None)
    return State(out)


def _share(
    out: Path, source: State, grown: GrownState, sources: tuple[LayerSource, ...], provenance: dict[str, Any]
) -> bool:
    """Creates the state ``out`` from links to the files of ``source``; returns False if links are not supported."""
    together = sources if source.sources is None else composed(sources, source.sources)
    manifest = manifest_of(
        grown.moments,
        grown.optimizer_step,
        grown.model,
        grown.progress,
        provenance,
        [str(source) for source in together],
    )
    left_out = () if grown.moments else MOMENTS
    files = {name: entry for name, entry in source.manifest["files"].items() if name.split(".")[0] not in left_out}
    try:
        with new_folder(out, manifest, files) as folder:
            for name in files:
                _link(source.path / name, folder / name)
    except _NoLinks:
        return False
    return True


def _link(file: Path, name: Path) -> None:
    if file.is_symlink():
        raise _NoLinks  # a link to its target would refer to a file outside the state
    try:
        os.link(file, name)
    except OSError:  # another file system, or no support; copying reports any other error
        raise _NoLinks from None
