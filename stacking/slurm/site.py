"""Reads the site file: one YAML file per cluster with its accounts, partitions and options."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stacking.config.reading import Word, complaint, read_yaml_mapping, shown, user_error
from stacking.config.recipe import Count, Positive
from stacking.errors import UserError

_PLACEHOLDER = "{gpus}"
_OWNED = (
    *("--array", "--begin", "--chdir", "--dependency", "--error", "--hold", "--job-name", "--no-requeue", "--nodes"),
    *("--ntasks", "--ntasks-per-node", "--open-mode", "--output", "--parsable", "--requeue", "--signal", "--test-only"),
    *("--time", "--wait", "--wrap", "-a", "-b", "-D", "-d", "-e", "-H", "-J", "-N", "-n", "-o", "-t", "-W"),
)
"""Options that the scripts set themselves; a site's option would silently override them."""


def _gpu_option(value: str) -> str:
    if not value.startswith("--") or re.findall(r"{[^}]*}", value) != [_PLACEHOLDER]:
        raise complaint(f"is {shown(value)}, not an option with {_PLACEHOLDER} once", "write --gres=gpu:{gpus}")
    return value


def _option(value: str) -> str:
    if not value.startswith("-"):
        raise complaint(f"is {shown(value)}, not an option", "write it like --mail-type=FAIL")
    return value


def _sbatch_option(value: str) -> str:
    if _option(value).partition("=")[0].split()[0] in _OWNED:
        remedy = "leave it out; nodes, time limits and partitions have keys of their own, in the recipe and here"
        raise complaint(f"is {shown(value)}, which `stacking submit` sets itself", remedy)
    return value


def _text(value: Any) -> Any:
    """Converts numbers to text: in ``account: 20231`` and ``memory: 0`` YAML reads a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _expanded(value: str) -> str:
    """Expands ``~`` and ``$VARIABLES`` in the environment of the submitting process."""
    full = os.path.expandvars(os.path.expanduser(value))
    if found := re.search(r"\$\{?\w+", full):
        raise complaint(f"has {found.group()}, which is not set here", "set it, or write the path out")
    return full


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
            raise complaint(f"has {shown(name)}, which is not a valid variable name", "use letters, digits and _")
    return value


Line = Annotated[str, BeforeValidator(_text), AfterValidator(_one_line)]
Lines = Annotated[tuple[Line, ...], Field(strict=False)]
Name = Annotated[Word, BeforeValidator(_text)]
Expanded = Annotated[Line, AfterValidator(_expanded)]
ExpandedLines = Annotated[tuple[Expanded, ...], Field(strict=False)]


_EARLY = 60
"""Seconds by which SLURM may send a signal early (sbatch --signal)."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Transition(_Section):
    """Defines the resources of the small jobs between stages, which read and write files and need no GPU."""

    partition: Name | None = None
    """Null: the cluster's default, not the stages' partition."""
    qos: Name | None = None
    constraint: Name | None = None
    cores: Count = 2
    memory: Name | None = None
    """In SLURM's format, such as 16G; null: the partition's default."""
    hours: Positive = 1.0


class Site(_Section):
    """Defines a cluster's settings. A null or an empty list is left out of the scripts."""

    account: Name | None = None
    partition: Name | None = None
    """Where stages train, unless the recipe's ``resources`` say otherwise."""
    qos: Name | None = None
    constraint: Name | None = None
    reservation: Name | None = None
    options: Annotated[tuple[Annotated[Line, AfterValidator(_sbatch_option)], ...], Field(strict=False)] = ()
    """Additional sbatch options for every job, copied verbatim."""
    ranks_per_node: Count = 1
    """The number of GPUs per node, or of CPU ranks per node."""
    cores_per_rank: Count = 1
    gpu_option: Annotated[Word, AfterValidator(_gpu_option)] = "--gres=gpu:{gpus}"
    """The sbatch option that requests GPUs per node: ``--gres=gpu:v100:{gpus}``, ``--gpus-per-node={gpus}``."""
    memory: Name | None = None
    """Memory per node in SLURM's format; 0: all of the node's memory."""
    hours: Positive | None = None
    """Time limit of a training job, in hours; null: the partition's."""
    warning_seconds: Count = 300
    """Seconds before the time limit at which a job is told to checkpoint; must exceed an update plus a checkpoint."""
    transition: Transition = Transition()

    modules: Lines = ()
    """The arguments of ``module load``."""
    environment: Annotated[dict[str, Line], BeforeValidator(_variables)] = Field(default_factory=dict)
    """Environment variables of the job and all of its ranks; the job expands ``$NAMES`` in their values."""
    prelude: Lines = ()
    """Lines of bash that run first, on the first node, verbatim: ``source ~/venv/bin/activate``."""
    scratch: Annotated[str, AfterValidator(_expandable)] | None = None
    """A folder for temporary files on each node's local disk, created if missing: ``/scratch/$USER``."""
    python: Expanded | None = None
    """The Python interpreter that has this package; null: the submitting one."""
    container: ExpandedLines = ()
    """Prefix of each rank's command: ``[apptainer, exec, --nv, /images/bert.sif]``. The controller runs outside it."""
    srun: Annotated[tuple[Annotated[Expanded, AfterValidator(_option)], ...], Field(strict=False)] = ()
    """Additional options of the srun that starts the ranks, such as ``--mpi=none``."""
    interface: Name | None = None
    """The network interface between ranks, for hosts with several: ``ib0``."""
    ipv6: bool = False
    """Whether ranks rendezvous over IPv6."""
    mends: Annotated[int, Field(ge=0)] = 3
    """How often a job whose controller was killed is requeued automatically; 0: never."""
    doctor: bool = True
    """Whether a training job checks its nodes first and ends at once if they cannot train."""
    templates: Line | None = None
    """A folder with the site's own ``*.sbatch`` templates, relative to the site file."""

    def to_yaml(self) -> str:
        """Serialises the settings, including defaults, as YAML that reads back as the same settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_site(file: Path | None) -> Site:
    """Reads the settings in ``file``; returns the defaults without one.

    Raises:
        UserError: the file is invalid; the message names the file, the key, the problem and the remedy.
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


def check_programs(site: Site, where: str) -> None:
    """Checks that the programs the jobs start exist, as far as this machine can tell.

    Raises:
        UserError: the interpreter, the container program or its image does not exist here.
    """
    for key, value in (("python", site.python), ("container[0]", next(iter(site.container), None))):
        if value and shutil.which(value) is None:
            raise UserError(f"{where}: {key}", f"is {value}, which is not a program", "name one that all nodes see")
    for number, word in enumerate(site.container[1:], start=1):
        if word.endswith((".sif", ".sqsh")) and word.startswith("/") and not Path(word).is_file():
            raise UserError(f"{where}: container[{number}]", f"is {word}, which does not exist", "correct the path")


def check_warning(site: Site, hours: float | None, where: str) -> None:
    """Checks that a job has time to work before the warning of its time limit.

    Raises:
        UserError: SLURM, which sends signals up to a minute early, would send the warning at once.
    """
    if hours is None or site.warning_seconds + _EARLY < hours * 3600:
        return
    problem = f"is {site.warning_seconds}, and {where} ends after {hours * 3600:.0f} s: it would be stopped immediately"
    raise UserError("site file: warning_seconds", problem, "lower it, or raise the time limit")
