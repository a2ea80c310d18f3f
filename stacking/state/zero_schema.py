"""Defines schemas for the parts of a DeepSpeed checkpoint's pickles that are read; everything else is ignored.

The files are untrusted: values that have passed `checked` can safely be compared, counted and hashed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import Required, TypedDict  # pydantic needs these before Python 3.12

from stacking.errors import UserError
from stacking.storage.pickled import described
from stacking.storage.torch_file import StoredTensor

_Count = Annotated[int, Field(ge=0, lt=1 << 48)]
_Shapes = dict[str, Annotated[tuple[_Count, ...], Field(max_length=64)]]
_MOST_GROUPS = 1_000

_REMEDY = "give a folder written by engine.save_checkpoint"


class _Group(TypedDict, total=False):
    params: Required[list[int]]
    parameter_names: list[str]


class _Adam(TypedDict):
    """Describes the state dict of a torch optimizer."""

    state: dict[int, dict[str, Any]]
    param_groups: Annotated[list[_Group], Field(max_length=_MOST_GROUPS)]


class _Wrapped(TypedDict, total=False):
    """Describes the state that DeepSpeed's fp16 and bf16 wrappers save."""

    optimizer_state_dict: Required[_Adam]
    fp32_groups_flat: list[Any]
    fp32_groups: list[list[Any]]


class _Model(TypedDict, total=False):
    """Describes ``mp_rank_00_model_states.pt``."""

    module: Required[dict[str, Any]]
    buffer_names: Required[list[str] | None]
    optimizer: Required[dict[str, Any] | None]
    param_shapes: list[_Shapes] | None
    frozen_param_shapes: dict[str, Any] | None


class _OptimizerShard(TypedDict, total=False):
    """Describes ``optimizer_state_dict`` in ``…_optim_states.pt``."""

    zero_stage: int
    partition_count: int | list[int]
    param_alignment_paddings: list[list[_Count] | None] | None
    single_partition_of_fp32_groups: list[Any]
    fp32_flat_groups: list[Any]
    base_optimizer_state: _Adam | list[dict[str, Any]]
    optimizer_state_dict: _Adam


MODEL = TypeAdapter[Any](_Model)
SHARD = TypeAdapter[Any](_OptimizerShard)
ADAM = TypeAdapter[Any](_Adam)
WRAPPED = TypeAdapter[Any](_Wrapped)


def checked(schema: TypeAdapter[Any], value: Any, file: Path) -> Any:
    """Returns ``value`` after validating it against ``schema``.

    Raises:
        UserError: the value does not match; the message names the first invalid key.
    """
    try:
        schema.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part)[:80] for part in first["loc"])
        raise UserError(f"{file}: {place}" if place else file, f"cannot be read ({first['msg']})", _REMEDY) from None
    return value


def stored(value: Any, file: Path) -> StoredTensor:
    """Returns ``value``, which must be a contiguous tensor.

    Raises:
        UserError: it is something else; the message says what.
    """
    if not isinstance(value, StoredTensor):
        raise UserError(file, f"holds {described(value)} instead of a tensor", _REMEDY)
    if value.stride is not None:
        raise UserError(file, "holds a transposed tensor instead of a contiguous one", _REMEDY)
    return value


def number(value: Any, file: Path) -> int:
    """Returns the step count in ``value``, a number or a tensor with one element.

    Raises:
        UserError: the value is not a step count.
    """
    one = isinstance(value, StoredTensor) and value.numel == 1
    found = stored(value, file).read()[0].item() if one else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UserError(file, f"holds {described(found)} as the optimizer's step", _REMEDY)
    if not 0 <= found < 1 << 48:
        raise UserError(file, "holds an invalid step count", _REMEDY)
    return int(found)
