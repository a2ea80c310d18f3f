"""Defines what a SLURM job may request, in the recipe per stage and in the site file for all stages and transitions."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from stacking.config.reading import Section, Word, complaint, shown


def whole(value: Any) -> Any:
    """Converts ``1e9`` to a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(whole), Field(gt=0, le=10**12)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_PLACEHOLDER = "{gpus}"
NO_GPUS = "none"
_NAME = re.compile(r"--[A-Za-z][\w-]*|-[A-Za-z]")
OWNED = {
    **dict.fromkeys(("--array", "-a"), "each job must run once"),
    **dict.fromkeys(("--begin", "-b", "--dependency", "-d", "--hold", "-H"), "the order of the chain depends on it"),
    **dict.fromkeys(("--chdir", "-D", "--output", "-o", "--error", "-e", "--open-mode"), "logs belong in RUN/slurm"),
    **dict.fromkeys(("--job-name", "-J"), "jobs are found by their names"),
    **dict.fromkeys(("--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node"), "give `nodes` in the recipe's resources"),
    **dict.fromkeys(("--cpus-per-task", "-c"), "give `cores_per_rank`"),
    **dict.fromkeys(("--requeue", "--no-requeue"), "give `requeue: false` if the site never requeues jobs"),
    **dict.fromkeys(("--time", "-t"), "give `hours`"),
    **dict.fromkeys(("--wait", "-W"), "sbatch would wait for the job's end"),
    **dict.fromkeys(("--parsable", "--quiet", "-Q", "--test-only", "--wrap"), "sbatch's answer would be another"),
    **dict.fromkeys(("--clusters", "-M"), "run `export SLURM_CLUSTERS=NAME` instead, which every command reads"),
    **dict.fromkeys(("--signal", "--kill-on-invalid-dep"), "the chain depends on it"),
}
"""Options that the job scripts set, with the reason or the key to use instead."""
_OWNED_BY_THE_LAUNCHER = {
    **dict.fromkeys(("--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node", "--multi-prog"), "ranks are placed by it"),
    **dict.fromkeys(("--output", "-o", "--error", "-e", "--open-mode"), "each rank has a log of its own"),
    **dict.fromkeys(("--export", "--job-name", "-J", "--kill-on-bad-exit", "-K"), "the launcher depends on it"),
}
KEYED = {
    **dict.fromkeys(("--account", "-A"), "account"),
    **dict.fromkeys(("--partition", "-p"), "partition"),
    **dict.fromkeys(("--qos", "-q"), "qos"),
    **dict.fromkeys(("--constraint", "-C"), "constraint"),
    **dict.fromkeys(("--exclude", "-x"), "exclude"),
    "--reservation": "reservation",
    "--exclusive": "exclusive",
    "--mem": "memory",
    "--comment": "comment",
    "--mail-user": "mail",
    "--mail-type": "mail",
    **dict.fromkeys(("--gres", "--gpus-per-node", "--gpus-per-task"), "gpu_option"),
}
"""Options with a key of their own; giving both would silently override one of them."""


def option_name(option: str) -> str:
    """Returns the name of ``--name=value``, ``-n value`` or ``-nvalue``."""
    found = _NAME.match(option)
    return found.group() if found else option


def _text(value: Any) -> Any:
    """Converts numbers to text: in ``account: 20231`` and ``memory: 0`` YAML reads a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _memory(value: str) -> str:
    if not re.fullmatch(r"[0-9]+([KMGT]B?)?", value, re.IGNORECASE):
        raise complaint(f"is {shown(value)}, not a size of memory", "write it like 16G; SLURM knows K, M, G and T")
    return value


def _one_line(value: str) -> str:
    if not value or re.search(r"[\x00-\x1f\x7f]", value):
        raise complaint("is not one line of text", "write one line, without control characters")
    return value


def _option(value: str, owned: dict[str, str], setter: str) -> str:
    if _NAME.match(value) is None:
        raise complaint(f"is {shown(value)}, not an option", "write it like --nice=100")
    name = option_name(value)
    # Like SLURM's own parser, which accepts abbreviated names.
    known = next((own for own in owned if own == name or (len(name) > 3 and own.startswith(name))), None)
    if known is not None:
        raise complaint(f"is {shown(value)}, which {setter} sets itself", f"leave it out: {owned[known]}")
    return value


def _gpu_option(value: str) -> str:
    name, held = option_name(value), re.findall(r"{[^}]*}", value)
    if name in ("--gpus", "-G"):
        raise complaint(f"is {shown(value)}, which counts the GPUs of all nodes", "write --gpus-per-node={gpus}")
    per_task = name == "--gpus-per-task" and not held
    if value != NO_GPUS and (not value.startswith("--") or not (per_task or held == [_PLACEHOLDER])):
        remedy = "write --gres=gpu:{gpus}, --gpus-per-task=1, or none"
        raise complaint(f"is {shown(value)}, not an option with {_PLACEHOLDER} once", remedy)
    return value


_SbatchOption = AfterValidator(partial(_option, owned=OWNED, setter="`stacking submit`"))
SrunOption = AfterValidator(partial(_option, owned=_OWNED_BY_THE_LAUNCHER, setter="the launcher"))
Line = Annotated[str, BeforeValidator(_text), AfterValidator(_one_line)]
Lines = Annotated[tuple[Line, ...], Field(strict=False)]
Name = Annotated[Word, BeforeValidator(_text)]
Memory = Annotated[Name, AfterValidator(_memory)]
Options = Annotated[tuple[Annotated[Line, _SbatchOption], ...], Field(strict=False)]
GpuOption = Annotated[Name, AfterValidator(_gpu_option)]


class Requests(Section):
    """Defines what sbatch is asked for, and the job's setup. Null: the default that the subclass names."""

    account: Name | None = None
    partition: Name | None = None
    qos: Name | None = None
    constraint: Name | None = None
    """Features of the nodes, such as ``v100&nvlink``."""
    reservation: Name | None = None
    exclude: Name | None = None
    """Nodes to avoid, such as ``n[1-3],n7``."""
    exclusive: bool | None = None
    """Whether the job gets whole nodes."""
    memory: Memory | None = None
    """Memory per node in SLURM's format, such as 180G; a number alone is MiB, 0 is all of the node's memory."""
    options: Options | None = None
    """Additional sbatch options."""
    modules: Lines | None = None
    """The arguments of ``module load``."""
    prelude: Lines | None = None
    """Lines of bash that run first, on the first node; the job ends at the first one that fails."""
    modules_first: bool | None = None
    """Whether modules are loaded before the prelude runs; null: in the order of the two keys in the file."""

    @model_serializer(mode="wrap")
    def _without_nulls(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in written(self).items() if value is not None}

    @model_validator(mode="before")
    @classmethod
    def _in_the_order_of_the_file(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not {"modules", "prelude"} <= value.keys() or value.get("modules_first"):
            return value
        keys = list(value)
        return {**value, "modules_first": value.get("modules_first", keys.index("modules") < keys.index("prelude"))}


class TrainingRequests(Requests):
    """Adds what only training jobs request."""

    hours: Positive | None = None
    """The time limit in hours. A job that reaches it writes a checkpoint and is requeued."""
    ranks_per_node: Count | None = None
    """The maximum number of ranks on a node: its GPUs."""
    cores_per_rank: Count | None = None
    gpu_option: GpuOption | None = None
    """The sbatch option that requests a node's GPUs: ``--gres=gpu:v100:{gpus}``, ``--gpus-per-task=1`` or ``none``."""


class Resources(TrainingRequests):
    """Defines the resources that a training job requests; null: the site file's value."""

    nodes: Count | None = None
    """Number of nodes; null: as many as the ranks need."""
    min_nodes: Count | None = None
    """With ``launch.elastic``: the minimum number of nodes to start or resume on; null: exactly ``nodes``."""
