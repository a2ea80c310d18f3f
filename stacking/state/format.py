"""The canonical training state: a folder that no ZeRO stage, world size or precision can be seen in.

    manifest.json             kind, format, model, optimizer_step, progress, moments, provenance; sizes and checksums
    weights.safetensors       fp32 master weights
    exp_avg.safetensors       Adam's first moment      } absent where there are none
    exp_avg_sq.safetensors    Adam's second moment     }
    buffers.safetensors       persistent buffers, if the model has any

All keys are parameter names; a tied parameter appears once, under its first name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stacking.errors import DamagedFile, UserError
from stacking.files import MANIFEST, disk_errors, new_folder, verify_folder
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.partition import Shape, numel
from stacking.state.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec

WEIGHTS, MOMENTS, BUFFERS = "weights", ("exp_avg", "exp_avg_sq"), "buffers"
FORMAT = 1
_SLICE = 1 << 20
_MAKERS = "give a folder that consolidate, grow or import wrote"

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class TrainingState(Protocol):
    """What consolidating, growing and loading read: a `State`, a `ZeroCheckpoint`, or a view of one."""

    @property
    def names(self) -> Sequence[str]:
        """The parameters, in the model's order."""

    @property
    def buffers(self) -> Mapping[str, TensorSpec]:
        """The persistent buffers."""

    @property
    def moments(self) -> bool:
        """Whether there are Adam moments."""

    @property
    def optimizer_step(self) -> int:
        """Updates that Adam's bias correction has counted."""

    @property
    def model(self) -> ModelConfig | None:
        """What the weights belong to, where it is known."""

    @property
    def progress(self) -> dict[str, Any] | None:
        """How far training had come, where it is known."""

    def shape(self, name: str) -> Shape:
        """The shape of a parameter."""

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Elements ``start … stop`` of a flattened tensor of ``kind`` weights, exp_avg, exp_avg_sq (all fp32), buffers.

        Raises:
            DamagedFile: its file is torn or missing.
        """


class _Description(BaseModel):
    """What a state's manifest says beside its files."""

    model_config = ConfigDict(frozen=True, strict=True)

    model: ModelConfig | None
    optimizer_step: int = Field(ge=0)
    progress: dict[str, Any] | None
    moments: bool


def _description(path: Path, manifest: Mapping[str, Any]) -> _Description:
    if manifest.get("kind") != "state":
        raise UserError(path.parent, f"holds {manifest.get('kind', 'something else')!r}, not a state", _MAKERS)
    if manifest.get("format") != FORMAT:
        problem = f"has format {manifest.get('format')!r} where this version reads {FORMAT}"
        raise UserError(path.parent, problem, "make it again")
    try:
        return _Description.model_validate(dict(manifest))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DamagedFile(path, f"does not describe a state: {key}: {first['msg']}") from None


class State:
    """A state folder, opened for reading; every tensor stays in its file.

    Raises:
        UserError: the folder does not exist or is something else.
        DamagedFile: a file is missing or has another size than the manifest says (or, with ``checksums``, other bytes).
    """

    def __init__(self, path: Path, checksums: bool = False) -> None:
        self.path = Path(path)
        if self.path.is_dir() and not (self.path / MANIFEST).exists():
            raise UserError(self.path, "is not a state folder", _MAKERS)
        self.manifest = verify_folder(self.path, checksums)
        self._description = _description(self.path / MANIFEST, self.manifest)
        kinds = [WEIGHTS, *(MOMENTS if self.moments else ()), *([BUFFERS] if self._file(BUFFERS).exists() else ())]
        self._files = {kind: SafetensorsFile.open(self._file(kind)) for kind in kinds}
        self.names = tuple(self._files[WEIGHTS].specs)
        self.buffers: Mapping[str, TensorSpec] = self._files[BUFFERS].specs if BUFFERS in self._files else {}
        self._check_weights()
        self._check_moments()

    @property
    def moments(self) -> bool:
        return self._description.moments

    @property
    def optimizer_step(self) -> int:
        return self._description.optimizer_step

    @property
    def model(self) -> ModelConfig | None:
        return self._description.model

    @property
    def progress(self) -> dict[str, Any] | None:
        return self._description.progress

    @property
    def digest(self) -> str:
        """Identifies the tensors: two states with the same digest hold the same bytes."""
        files = self.manifest["files"]
        checksums = " ".join(f"{name} {files[name]['checksum']}" for name in sorted(files))
        return xxhash.xxh3_128(checksums.encode()).hexdigest()

    def shape(self, name: str) -> Shape:
        return self._files[WEIGHTS].specs[name].shape

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._files[kind].read(name, start, stop)

    def _file(self, kind: str) -> Path:
        return self.path / f"{kind}.safetensors"

    def _check_weights(self) -> None:
        """Compare the weights with the model that the manifest describes, if it does."""
        path, specs = self._file(WEIGHTS), self._files[WEIGHTS].specs
        expected = {} if self.model is None else parameter_shapes(self.model)
        for name in expected.keys() - specs.keys():
            raise DamagedFile(path, f"lacks the parameter {name}")
        for name, spec in specs.items():
            if spec.dtype != "float32":
                raise DamagedFile(path, f"has {name} in {spec.dtype} where a state is float32")
            if expected and name not in expected:
                raise DamagedFile(path, f"has the parameter {name}, which the model of its manifest has not")
            if expected and spec.shape != expected[name]:
                needed = list(expected[name])
                raise DamagedFile(path, f"has {name} as {list(spec.shape)} where the model needs {needed}")

    def _check_moments(self) -> None:
        for kind in MOMENTS if self.moments else ():
            if self._files[kind].specs != self._files[WEIGHTS].specs:
                raise DamagedFile(self._file(kind), "does not hold the parameters that the weights do")


class StateWriter:
    """Writes a state folder as a stream: it appears, complete and sealed, when the ``with`` block ends.

    Args:
        path: the folder; one that stands there is replaced.
        shapes: the parameters, in order; their tensors must be appended in it, kind by kind.
        buffers: the persistent buffers.
        moments: whether both moments will be written.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Shape],
        *,
        buffers: Mapping[str, TensorSpec] | None = None,
        moments: bool = True,
        optimizer_step: int = 0,
        model: ModelConfig | None = None,
        progress: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = Path(path)
        parameters = {name: TensorSpec("float32", tuple(shape)) for name, shape in shapes.items()}
        self._specs: dict[str, Mapping[str, TensorSpec]] = dict.fromkeys((WEIGHTS, *MOMENTS), parameters)
        if not moments:
            self._specs = {WEIGHTS: parameters}
        if buffers:
            self._specs[BUFFERS] = buffers
        self._manifest = {
            "kind": "state",
            "format": FORMAT,
            "model": None if model is None else model.model_dump(),
            "optimizer_step": optimizer_step,
            "progress": None if progress is None else dict(progress),
            "moments": moments,
            "provenance": dict(provenance or {}),
        }
        self._stack = ExitStack()

    def __enter__(self) -> StateWriter:
        with ExitStack() as stack:
            folder = stack.enter_context(new_folder(self._path, self._manifest))
            self._files = {
                kind: stack.enter_context(SafetensorsWriter(folder / f"{kind}.safetensors", specs))
                for kind, specs in self._specs.items()
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        with disk_errors(self._path):
            self._stack.__exit__(*error)

    def append(self, kind: str, name: str, values: np.ndarray) -> None:
        """Write the next elements of the flattened tensor ``name`` of ``kind``."""
        with disk_errors(self._path):
            self._files[kind].append(name, values)


def write_state(
    path: Path, source: TrainingState, provenance: Mapping[str, Any], on_progress: Progress | None = None
) -> None:
    """Write what ``source`` holds as a state folder, slice by slice: memory does not depend on its size.

    Raises:
        DamagedFile: a file of the source is torn or missing; nothing is left at ``path``.
        NoSpace: the disk is full; nothing is left at ``path``.
    """
    writer = StateWriter(
        path,
        {name: source.shape(name) for name in source.names},
        buffers=source.buffers,
        moments=source.moments,
        optimizer_step=source.optimizer_step,
        model=source.model,
        progress=source.progress,
        provenance=provenance,
    )
    kinds = (WEIGHTS, *MOMENTS) if source.moments else (WEIGHTS,)
    total = len(kinds) * sum(4 * numel(source.shape(name)) for name in source.names)
    done = 0
    with writer:
        for kind in kinds:
            for name in source.names:
                for values in slices(source, kind, name, numel(source.shape(name))):
                    writer.append(kind, name, values)
                    done += values.nbytes
                    if on_progress:
                        on_progress(done, total)
        for name, spec in source.buffers.items():
            for values in slices(source, BUFFERS, name, numel(spec.shape)):
                writer.append(BUFFERS, name, values)


def slices(source: TrainingState, kind: str, name: str, count: int) -> Iterator[np.ndarray]:
    """The flattened tensor in slices of at most 4 MiB."""
    for start in range(0, count, _SLICE):
        yield source.read(kind, name, start, min(start + _SLICE, count))
