"""Reads the site file: one YAML file per cluster with its accounts, partitions and options."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from stacking.config.reading import complaint, read_yaml_mapping, shown, user_error
from stacking.config.resources import (
    Count,
    GpuOption,
    Line,
    Name,
    Positive,
    Requests,
    SrunOption,
    TrainingRequests,
)
from stacking.errors import UserError


def _at_home(value: str) -> str:
    """Writes ``~`` at the beginning of a path as ``$HOME``, which every place can expand."""
    if found := re.search(r"(?:^|[=:])(~\w+)", value):
        raise complaint(f"has {found.group(1)}, which is not expanded", "write the path out")
    return re.sub(r"(^|[=:])~(?=/|:|$)", r"\1$HOME", value)


def _folder(value: str) -> str:
    if not re.fullmatch(r"[/$][^\"`\\]*", value) or "$(" in value:
        raise complaint(f"is {shown(value)}", 'write an absolute path, with $VARIABLES but without ", ` and \\')
    return value


def _variables(value: Any) -> Any:
    for name in value if isinstance(value, dict) else ():
        if not re.fullmatch(r"[A-Za-z_]\w*", str(name)):
            raise complaint(f"has {shown(name)}, which is not a valid variable name", "use letters, digits and _")
    return value


Expanded = Annotated[Line, AfterValidator(_at_home)]
"""Text whose ``~`` and ``$NAMES`` the job expands, after its prelude and modules."""
ExpandedLines = Annotated[tuple[Expanded, ...], Field(strict=False)]


_EARLY = 60
"""Seconds by which SLURM may send a signal early (sbatch --signal)."""
_BY_SLURM = ("SLURM_", "CUDA_", "TMPDIR")
"""Variables that exist in a job even if they do not exist where it is submitted."""


class TransitionRequests(Requests):
    """Defines the resources of the small jobs between stages, which read and write files and need no GPU.

    Null: nothing is requested, except that ``account``, ``modules`` and ``prelude`` are those of training.
    """

    cores: Count = 2
    hours: Positive = 1.0


class Site(TrainingRequests):
    """Defines a cluster's settings. A null or an empty list is left out of the scripts.

    What a training job requests is the default for all stages; the recipe's ``resources`` override it.
    """

    ranks_per_node: Count = 1
    """The number of GPUs per node, or of CPU ranks per node."""
    cores_per_rank: Count = 1
    gpu_option: GpuOption = "--gres=gpu:{gpus}"
    """The sbatch option that requests a node's GPUs: ``--gres=gpu:v100:{gpus}``, ``--gpus-per-task=1`` or ``none``."""
    warning_seconds: Count = 300
    """Seconds before the time limit at which a job is told to checkpoint; must exceed an update plus a checkpoint."""
    requeue: bool = True
    """Whether SLURM may requeue jobs; false: a stopped stage submits itself again as a new job."""
    comment: Line | None = None
    """The jobs' comment, for accounting."""
    mail: Name | None = None
    """An address that gets one mail per chain: at its end, or when a job fails."""
    transition: TransitionRequests = TransitionRequests()

    environment: Annotated[dict[str, Expanded], BeforeValidator(_variables)] = Field(default_factory=dict)
    """Environment variables of the job and all of its ranks."""
    scratch: Annotated[Expanded, AfterValidator(_folder)] | None = None
    """A folder for temporary files on each node's local disk, created if missing: ``/scratch/$USER``."""
    python: Expanded | None = None
    """The Python interpreter that has this package; null: the submitting one."""
    container: ExpandedLines = ()
    """Prefix of each rank's command: ``[apptainer, exec, --nv, /images/bert.sif]``. The controller runs outside it."""
    container_python: Line | None = None
    """The Python interpreter inside the container; null: ``python``."""
    srun: Annotated[tuple[Annotated[Expanded, SrunOption], ...], Field(strict=False)] = ()
    """Additional options of the srun that starts the ranks, such as ``--mpi=none``."""
    interface: Name | None = None
    """The network interface between ranks, for hosts with several: ``ib0``."""
    host_suffix: Name | None = None
    """What follows a node's name in its name on the fast network: ``i`` where n1 is n1i there."""
    ipv6: bool = False
    """Whether ranks rendezvous over IPv6."""
    mends: Annotated[int, Field(ge=0)] = 3
    """How often a job whose controller or shell was killed is started again automatically; 0: never."""
    doctor: bool = True
    """Whether a training job checks its nodes first and ends at once if they cannot train."""
    templates: Expanded | None = None
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
    folder = expanded_here(site.templates, f"{file}: templates")
    return site.model_copy(update={"templates": str(file.absolute().parent / folder)})


def expanded_here(value: str, where: str) -> str:
    """Expands ``$NAMES`` in the submitter's environment, for text that no shell of the job reads.

    Raises:
        UserError: a variable is not set.
    """
    full = os.path.expandvars(value)
    if names := _unset(full):
        raise UserError(where, f"has ${names[0]}, which is not set here", "set it, or write the value out")
    return full


def _unset(text: str) -> list[str]:
    """Returns the names of variables that expansion has left over."""
    return re.findall(r"\$\{?([A-Za-z_]\w*)", text)


def check_programs(site: Site, where: str) -> None:
    """Checks that the programs the jobs start exist, as far as this machine can tell.

    A variable that the prelude, the modules or SLURM may set is left to the job, which ends if it is not set.

    Raises:
        UserError: a variable is not set, or the interpreter, the container program or its image does not exist here.
    """
    words = {"python": site.python, "scratch": site.scratch}
    words |= {f"container[{number}]": word for number, word in enumerate(site.container)}
    words |= {f"srun[{number}]": word for number, word in enumerate(site.srun)}
    for key, word in words.items():
        full = os.path.expandvars(word or "")
        unknown = [name for name in _unset(full) if name not in site.environment and not name.startswith(_BY_SLURM)]
        if unknown and not site.prelude and not site.modules:
            problem = f"has ${unknown[0]}, which is not set here"
            raise UserError(f"{where}: {key}", problem, "set it in `environment`, or write the path out")
        if not _unset(full):
            _check_word(f"{where}: {key}", full)


def _check_word(where: str, word: str) -> None:
    if where.endswith((": python", ": container[0]")) and word and shutil.which(word) is None:
        raise UserError(where, f"is {word}, which is not a program", "name one that all nodes see")
    image = re.fullmatch(r"(?:--container-image=)?(/.*\.(?:sif|sqsh))", word)
    if image and not Path(image.group(1)).is_file():
        raise UserError(where, f"is {image.group(1)}, which does not exist", "correct the path")


def check_warning(site: Site, hours: float | None, where: str) -> None:
    """Checks that a job has time to work before the warning of its time limit.

    Raises:
        UserError: SLURM, which sends signals up to a minute early, would send the warning at once.
    """
    if hours is None or site.warning_seconds + _EARLY < hours * 3600:
        return
    problem = f"is {site.warning_seconds}, and {where} ends after {hours * 3600:.0f} s: it would be stopped immediately"
    raise UserError("site file: warning_seconds", problem, "lower it, or raise the time limit")
