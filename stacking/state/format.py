"""Defines the canonical training state: a folder independent of ZeRO stage, world size and precision.

    manifest.json             kind, format, model, optimizer_step, progress, moments, provenance; sizes and checksums
    weights.safetensors       fp32 master weights
    exp_avg.safetensors       Adam's first moment      } absent without moments
    exp_avg_sq.safetensors    Adam's second moment     }
    buffers.safetensors       persistent buffers, if the model has any

All keys are parameter names; a tied parameter appears once, under its first name.

A state grown with shared files has hard links to the shallow model's files and lists in its manifest, under
``layer_sources``, the source of every layer, so that it takes no space of its own. ``fresh_layers`` are its layers
whose moments are zero, whatever the files hold.

``optimizer_step`` counts the updates that Adam's bias correction has seen; ``parameter_steps`` names the parameters
with another count, such as those of layers that were added later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from reprlib import repr as short_repr
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stacking.errors import DamagedFile, UserError
from stacking.model.config import MOST_LAYERS, ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.layers import LayerSource, layer_of, origins
from stacking.storage.block_writer import write_kinds
from stacking.storage.blocks import Entry, digest
from stacking.storage.files import MANIFEST, block_digests, new_folder, verify_folder
from stacking.storage.partition import Shape, numel
from stacking.storage.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec
from stacking.storage.verified_files import VerifiedFiles

WEIGHTS, MOMENTS, BUFFERS = "weights", ("exp_avg", "exp_avg_sq"), "buffers"
FORMAT = 1
MOST_STEPS = 10**12
"""Upper limit, far beyond any training."""
_MAKERS = "give a folder written by consolidate, grow or import"

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total)."""


class TrainingState(ABC):
    """The source of consolidating, growing and loading: a `State`, a `ZeroCheckpoint`, or a view of one."""

    names: Sequence[str]
    """The parameters, in the model's order."""
    buffers: Mapping[str, TensorSpec]
    """The persistent buffers."""
    moments: bool
    """Whether there are Adam moments."""
    optimizer_step: int
    """Updates that Adam's bias correction has counted, except for `parameter_steps`."""
    parameter_steps: Mapping[str, int] = {}
    """The counts of the parameters that differ from `optimizer_step`."""
    model: ModelConfig | None
    """The model of the weights, if known."""
    progress: dict[str, Any] | None
    """The progress of training, if known."""

    @abstractmethod
    def shape(self, name: str) -> Shape:
        """Returns the shape of a parameter."""

    @abstractmethod
    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None:
        """Fills ``into`` with elements of a flattened tensor, beginning at ``start``.

        Args:
            kind: weights, exp_avg or exp_avg_sq (all fp32), or buffers.

        Raises:
            DamagedFile: the file is truncated, missing or altered.
        """

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns elements ``start … stop`` of a flattened tensor; arguments, dtypes and errors as for `fill`."""
        buffer = kind == BUFFERS
        count = numel(self.buffers[name].shape if buffer else self.shape(name)) if stop is None else stop
        values = np.empty(count - start, self.buffers[name].dtype if buffer else np.float32)
        self.fill(kind, name, start, values)
        return values


def step_of(source: TrainingState, name: str) -> int:
    """Returns the updates that Adam's bias correction has counted for the parameter ``name``."""
    return source.parameter_steps.get(name, source.optimizer_step)


_Steps = Annotated[int, Field(ge=0, le=MOST_STEPS)]


class _Description(BaseModel):
    """Holds the entries of a state's manifest apart from its files."""

    model_config = ConfigDict(frozen=True, strict=True)

    model: ModelConfig | None
    optimizer_step: _Steps
    parameter_steps: dict[str, _Steps] = {}
    progress: dict[str, Any] | None
    moments: bool
    layer_sources: list[str] | None = Field(default=None, max_length=MOST_LAYERS)
    """For each layer "NUMBER TREATMENT", if the files are those of a shallower model."""
    fresh_layers: list[Annotated[int, Field(ge=0, lt=MOST_LAYERS)]] = Field(default=[], max_length=MOST_LAYERS)
    """Layers whose moments are zero, whatever the files hold."""


def _description(path: Path, manifest: Mapping[str, Any]) -> _Description:
    if manifest.get("kind") != "state":
        raise UserError(
            path.parent, f"holds {short_repr(manifest.get('kind', 'something else'))}, not a state", _MAKERS
        )
    if manifest.get("format") != FORMAT:
        problem = f"has format {short_repr(manifest.get('format'))}, but this version reads {FORMAT}"
        raise UserError(path.parent, problem, "recreate the state")
    try:
        return _Description.model_validate(dict(manifest))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DamagedFile(path, f"does not describe a state: {key}: {first['msg']}") from None


class State(TrainingState):
    """Opens a state folder for reading; tensors stay in their files and are verified as they are read.

    Raises:
        UserError: the folder does not exist or is not a state.
        DamagedFile: a file is missing or its size (or, with ``checksums``, its content) contradicts the manifest.
    """

    def __init__(self, path: Path, checksums: bool = False) -> None:
        self.path = Path(path)
        if self.path.is_dir() and not (self.path / MANIFEST).exists():
            raise UserError(self.path / MANIFEST, "is missing, so this is not a state folder", _MAKERS)
        self.manifest = verify_folder(self.path, checksums)
        about = _description(self.path / MANIFEST, self.manifest)
        self.moments, self.model, self.progress = about.moments, about.model, about.progress
        self.optimizer_step, self.parameter_steps = about.optimizer_step, about.parameter_steps
        self.fresh_layers = frozenset(about.fresh_layers)
        self.sources = self._parsed(about.layer_sources)
        self._check_names()
        listed = (WEIGHTS, *(MOMENTS if self.moments else ()), BUFFERS)
        kinds = [kind for kind in listed if kind != BUFFERS or self._file(BUFFERS).name in self.manifest["files"]]
        self._files = {kind: SafetensorsFile.open(self._file(kind)) for kind in kinds}
        self.verified = VerifiedFiles(block_digests(self.path, self.manifest["files"]))
        self._origins = {
            kind: origins(self._files[kind].specs, self.sources) if kind in self._files else {}
            for kind in (WEIGHTS, BUFFERS)
        }
        self.names = tuple(self._origins[WEIGHTS])
        self.buffers = {name: self._files[BUFFERS].specs[o.name] for name, o in self._origins[BUFFERS].items()}
        self._check_weights()
        self._check_moments()
        self._check_steps()

    @property
    def digest(self) -> str:
        """Identifies the tensors: states with equal digests hold the same bytes."""
        files = self.manifest["files"]
        checksums = [f"{name} {files[name]['checksum']}" for name in sorted(files)]
        fresh = [f"fresh {layer}" for layer in sorted(self.fresh_layers)]
        return digest(" ".join([*checksums, *map(str, self.sources or ()), *fresh]).encode())

    def shape(self, name: str) -> Shape:
        return self._files[WEIGHTS].specs[self._origins[WEIGHTS][name].name].shape

    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None:
        origin = self._origins[BUFFERS if kind == BUFFERS else WEIGHTS][name]
        if origin.zero or (kind in MOMENTS and layer_of(name) in self.fresh_layers):
            into[:] = 0
        else:
            self._files[kind].fill(origin.name, start, into, self.verified)

    def _parsed(self, texts: Sequence[str] | None) -> tuple[LayerSource, ...] | None:
        try:
            return None if texts is None else tuple(map(LayerSource.parse, texts))
        except ValueError as error:
            raise DamagedFile(self.path / MANIFEST, f"does not describe a state: layer_sources: {error}") from None

    def _check_names(self) -> None:
        """Checks that the manifest lists only files of a state, and all that it needs."""
        listed, path = set(self.manifest["files"]), self.path / MANIFEST
        for name in sorted(listed - {f"{kind}.safetensors" for kind in (WEIGHTS, *MOMENTS, BUFFERS)}):
            raise DamagedFile(path, f"lists {name!r}, which is not a file of a state")
        for kind in (WEIGHTS, *(MOMENTS if self.moments else ())):
            if f"{kind}.safetensors" not in listed:
                raise DamagedFile(path, f"does not list {kind}.safetensors")

    def _file(self, kind: str) -> Path:
        return self.path / f"{kind}.safetensors"

    def _check_weights(self) -> None:
        """Checks the weights against the manifest's model, if it has one."""
        path, files = self._file(WEIGHTS), self._files[WEIGHTS].specs
        specs = {name: files[origin.name] for name, origin in self._origins[WEIGHTS].items()}
        expected = {} if self.model is None else parameter_shapes(self.model)
        for name in expected.keys() - specs.keys():
            raise DamagedFile(path, f"lacks the parameter {name}")
        for name, spec in specs.items():
            if spec.dtype != "float32":
                raise DamagedFile(path, f"has {name} in {spec.dtype}, but states are float32")
            if expected and name not in expected:
                raise DamagedFile(path, f"has the parameter {name}, which the model in its manifest does not have")
            if expected and spec.shape != expected[name]:
                needed = list(expected[name])
                raise DamagedFile(path, f"has {name} as {list(spec.shape)} where the model needs {needed}")

    def _check_moments(self) -> None:
        for kind in MOMENTS if self.moments else ():
            if self._files[kind].specs != self._files[WEIGHTS].specs:
                raise DamagedFile(self._file(kind), "does not hold the same parameters as the weights")

    def _check_steps(self) -> None:
        for name in sorted(self.parameter_steps.keys() - set(self.names)):
            raise DamagedFile(self.path / MANIFEST, f"counts the steps of {name!r}, which is not a parameter")


@contextmanager
def new_state(
    path: Path,
    shapes: Mapping[str, Shape],
    *,
    buffers: Mapping[str, TensorSpec] | None = None,
    moments: bool = True,
    optimizer_step: int = 0,
    model: ModelConfig | None = None,
    progress: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[str, str, np.ndarray], None]]:
    """Writes a state folder as a stream; it gets its name, complete and sealed, when the ``with`` block ends.

    Args:
        path: the folder; an existing one is replaced.
        shapes: the parameters, in order; their tensors must be appended in this order, kind by kind.
        buffers: the persistent buffers.
        moments: whether both moments will be written.

    Yields:
        A function that appends the next elements of a flattened tensor, given its kind, its name and the elements.
    """
    manifest = manifest_of(moments, optimizer_step, model, progress, provenance or {})
    sealed: dict[str, Entry] = {}
    with new_folder(path, manifest, sealed) as folder, ExitStack() as stack:
        files = {
            kind: stack.enter_context(SafetensorsWriter(folder / f"{kind}.safetensors", specs))
            for kind, specs in _specs(shapes, buffers or {}, moments).items()
        }
        yield lambda kind, name, values: files[kind].append(name, values)
        sealed.update({f"{kind}.safetensors": file.entry for kind, file in files.items()})


def manifest_of(
    moments: bool,
    optimizer_step: int,
    model: ModelConfig | None,
    progress: Mapping[str, Any] | None,
    provenance: Mapping[str, Any],
    parameter_steps: Mapping[str, int] | None = None,
    layer_sources: Sequence[str] | None = None,
    fresh_layers: Iterable[int] = (),
) -> dict[str, Any]:
    """Returns the entries of a state's manifest apart from its files."""
    return {
        "kind": "state",
        "format": FORMAT,
        "model": None if model is None else model.model_dump(),
        "optimizer_step": optimizer_step,
        **({"parameter_steps": dict(parameter_steps)} if parameter_steps else {}),
        "progress": None if progress is None else dict(progress),
        "moments": moments,
        **({} if layer_sources is None else {"layer_sources": list(layer_sources)}),
        **({"fresh_layers": fresh} if (fresh := sorted(fresh_layers)) else {}),
        "provenance": dict(provenance),
    }


def _specs(
    shapes: Mapping[str, Shape], buffers: Mapping[str, TensorSpec], moments: bool
) -> dict[str, Mapping[str, TensorSpec]]:
    parameters = {name: TensorSpec("float32", tuple(shape)) for name, shape in shapes.items()}
    kinds = (WEIGHTS, *MOMENTS) if moments else (WEIGHTS,)
    return {**dict.fromkeys(kinds, parameters), **({BUFFERS: buffers} if buffers else {})}


def write_state(
    path: Path,
    source: TrainingState,
    provenance: Mapping[str, Any],
    on_progress: Progress | None = None,
    verify_rest: Callable[[], None] | None = None,
) -> None:
    """Writes ``source`` as a state folder, block by block, with several threads and constant memory.

    Args:
        verify_rest: called when everything is written, before the state gets its name.

    Raises:
        DamagedFile: a file of the source is truncated, altered or missing; nothing is left at ``path``.
        NoSpace: the disk is full; nothing is left at ``path``.
    """
    manifest = manifest_of(
        source.moments, source.optimizer_step, source.model, source.progress, provenance, source.parameter_steps
    )
    shapes = {name: source.shape(name) for name in source.names}
    sealed: dict[str, Entry] = {}
    with new_folder(path, manifest, sealed) as folder:
        specs = _specs(shapes, source.buffers, source.moments)
        kinds = [kind for kind in specs if kind != BUFFERS]
        sealed.update(write_kinds(folder, kinds, specs[WEIGHTS], source.fill, on_progress))
        if BUFFERS in specs:
            with SafetensorsWriter(folder / f"{BUFFERS}.safetensors", specs[BUFFERS]) as writer:
                for name in source.buffers:
                    writer.append(name, source.read(BUFFERS, name))
        if verify_rest:
            verify_rest()
