"""What is particular to a cluster: one YAML file, written once by somebody who knows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stacking.config.reading import Word, complaint, read_yaml_mapping, shown, user_error
from stacking.config.recipe import Count, Positive

_PLACEHOLDER = "{gpus}"


def _gpu_option(value: str) -> str:
    if not value.startswith("--") or re.findall(r"{[^}]*}", value) != [_PLACEHOLDER]:
        raise complaint(f"is {shown(value)}, not an option with {_PLACEHOLDER} once", "write --gres=gpu:{gpus}")
    return value


def _option(value: str) -> str:
    if not value.startswith("-"):
        raise complaint(f"is {shown(value)}, not an option", "write it like --mail-type=FAIL")
    return value


def _one_line(value: str) -> str:
    if not value or re.search(r"[\x00-\x1f\x7f]", value):
        raise complaint("is not one line of text", "write one line, without control characters")
    return value


def _expandable(value: str) -> str:
    if not re.fullmatch(r"[/$][\w./${}-]*", value):
        raise complaint(f"is {shown(value)}", "write an absolute path of letters, digits and $VARIABLES")
    return value


def _variables(value: Any) -> Any:
    for name in value if isinstance(value, dict) else ():
        if not re.fullmatch(r"[A-Za-z_]\w*", str(name)):
            raise complaint(f"has {shown(name)}, which is no name of a variable", "use letters, digits and _")
    return value


Line = Annotated[str, AfterValidator(_one_line)]
Lines = Annotated[tuple[Line, ...], Field(strict=False)]
Option = Annotated[Word, AfterValidator(_option)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Transition(_Section):
    """What the small jobs between the stages ask for: they read and write files, and need no GPU."""

    partition: Word | None = None
    """Null: the cluster's default, not that of the stages."""
    qos: Word | None = None
    constraint: Word | None = None
    cores: Count = 2
    memory: Word | None = None
    """Slurm's spelling, such as 16G; null: the partition's default."""
    hours: Positive = 1.0


class Site(_Section):
    """A cluster's settings. Null, or an empty list: not written into the scripts at all."""

    account: Word | None = None
    partition: Word | None = None
    """Where stages train, unless the recipe's ``resources`` say otherwise."""
    qos: Word | None = None
    constraint: Word | None = None
    reservation: Word | None = None
    options: Annotated[tuple[Option, ...], Field(strict=False)] = ()
    """More options of sbatch, as they are, for every job."""
    ranks_per_node: Count = 1
    """The GPUs of a node, or how many CPU ranks one takes."""
    cores_per_rank: Count = 1
    gpu_option: Annotated[Word, AfterValidator(_gpu_option)] = "--gres=gpu:{gpus}"
    """How this cluster is asked for the GPUs of each node: ``--gres=gpu:v100:{gpus}``, ``--gpus-per-node={gpus}``."""
    memory: Word | None = None
    """Per node, in Slurm's spelling; 0 is the whole node's."""
    hours: Positive | None = None
    """Time limit of a training job; null: the partition's."""
    warning_seconds: Count = 300
    """How long before the time limit a job is told to leave a checkpoint: longer than an update and a checkpoint."""
    transition: Transition = Transition()

    modules: Lines = ()
    """What ``module load`` gets."""
    environment: Annotated[dict[str, Line], BeforeValidator(_variables)] = Field(default_factory=dict)
    """Variables that are set for the job and all of its ranks."""
    prelude: Lines = ()
    """Lines of bash that run first on the first node, as they are: ``source ~/venv/bin/activate``."""
    scratch: Annotated[str, AfterValidator(_expandable)] | None = None
    """A folder on each node's own disk for temporary files, made if it is not there: ``/scratch/$USER``."""
    python: Line | None = None
    """The interpreter that has this program; null: the one that submits."""
    container: Lines = ()
    """Words before each rank's command: ``[apptainer, exec, --nv, /images/bert.sif]``. The controller runs outside."""
    srun: Annotated[tuple[Option, ...], Field(strict=False)] = ()
    """More options of the srun that starts the ranks, such as ``--mpi=none``."""
    interface: Word | None = None
    """The network interface that ranks talk over, where a host has several: ``ib0``."""
    ipv6: bool = False
    """Whether ranks find each other by IPv6 addresses."""
    doctor: bool = True
    """Whether a job that trains looks at its nodes first, and ends at once where training is impossible."""
    templates: Line | None = None
    """A folder with the site's own versions of the ``*.sbatch`` templates, relative to this file."""

    def to_yaml(self) -> str:
        """The settings with their defaults written out; reads back as the same settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_site(file: Path | None) -> Site:
    """The settings in ``file``; without one, the defaults.

    Raises:
        UserError: one line: file, key, what is wrong, what would be right.
    """
    if file is None:
        return Site()
    try:
        site = Site.model_validate(read_yaml_mapping(file))
    except ValidationError as error:
        raise user_error(error, Site, file) from None
    if site.templates is None:
        return site
    return site.model_copy(update={"templates": str(file.absolute().parent / site.templates)})
