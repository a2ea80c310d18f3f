"""Renders a job's script by filling every placeholder of its template."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stacking.config.resources import KEYED, NO_GPUS, Requests, Resources, TrainingRequests, option_name
from stacking.errors import UserError
from stacking.planning.plan import Plan
from stacking.run.folder import RunFolder
from stacking.slurm.chain import WATCHER, ChainJob
from stacking.slurm.site import Site, TransitionRequests, check_warning, expanded_here
from stacking.slurm.templates import find_template, render

_LIKE_TRAINING = ("account", "modules", "prelude", "modules_first")
"""What a transition takes from training if the site file does not say otherwise."""

_PLACEHOLDER_OF = {"gpu_option": "gpus", "cores_per_rank": "cores_per_task"}


def script(job: ChainJob, plan: Plan, run: RunFolder, site: Site, avoided: Sequence[str] = ()) -> str:
    """Returns the sbatch script of ``job``.

    Args:
        avoided: nodes to exclude besides those of the site and the recipe.

    Raises:
        UserError: the template or the run's path is unusable, or an option contradicts a key.
    """
    asked = requests(job, site)
    check_warning(site, asked.hours, f"job {job.name}")
    values = placeholders(job, plan, run, site)
    check_options(job.name, asked, values)
    values["exclude"] = ",".join([*([values["exclude"]] if values["exclude"] else []), *avoided])
    return rendered(job.template, values, site)


def rendered(template: str, values: Mapping[str, Any], site: Site) -> str:
    """Returns the site's own ``TEMPLATE.sbatch``, or the packaged one, with ``values`` in it."""
    return render(find_template(template, Path(site.templates) if site.templates else None), values)


def requests(job: ChainJob, site: Site) -> Resources | TransitionRequests:
    """Returns what ``job`` requests: its own resources, otherwise those of the site."""
    is_training = job.template == "training"
    own = job.resources if is_training else site.transition
    names = TrainingRequests.model_fields if is_training else _LIKE_TRAINING
    return own.model_copy(update={name: getattr(site, name) for name in names if getattr(own, name) is None})


def title(folder: Path, job: str) -> str:
    """Returns a job's name in the queue, whose first eight characters tell folders and jobs apart.

    The first part is a digest of the folder's path, the last one its name.
    """
    tag = hashlib.sha256(bytes(folder)).hexdigest()[:3]
    return f"{tag}-{job}-{re.sub(r'[^A-Za-z0-9._-]+', '_', folder.name) or 'run'}"


def placeholders(job: ChainJob, plan: Plan, run: RunFolder, site: Site) -> dict[str, Any]:
    """Returns the values that a template may use: quoted where the shell reads them, plain words elsewhere."""
    asked = requests(job, site)
    common = requested(run.path, job.name, asked, site)
    common["exports"] += [f"{name}={shlex.quote(value)}" for name, value in _launcher(job, site).items()]
    common |= {
        "warning_seconds": site.warning_seconds,
        "mends": site.mends,
        "mail_type": "END,FAIL" if job.name != WATCHER and job.phases[-1].name == "report" else "FAIL",
        "command": _command(job, run, site),
        "again": None if site.requeue else program(site, "stacking", "submit", "--resume", str(run.path)),
        "interrupted": program(site, "stacking.slurm.interrupted", str(run.path)),
    }
    if isinstance(asked, TransitionRequests):
        return common | {"cores": asked.cores}
    return common | _training(job, asked, plan, run, site)


def requested(folder: Path, job: str, asked: Requests, site: Site) -> dict[str, Any]:
    """Returns what every job tells SLURM and its shell, whatever it runs.

    Raises:
        UserError: SLURM would misread the path of ``folder``, where the job works.
    """
    if found := re.search(r"[\x00-\x1f\x7f%\\]", str(folder)):
        problem = f"contains {found.group()!r}, which SLURM replaces in log paths"
        raise UserError(repr(str(folder)), problem, "choose another folder")
    words = {
        name: expanded_here(value, f"site file or recipe: {name}") if (value := getattr(asked, name)) else None
        for name in ("account", "partition", "qos", "constraint", "reservation", "exclude", "memory")
    }
    return words | {
        "name": title(folder, job),
        "job": job,
        # Relative to the job's folder, so that SLURM does not interpret characters of its path.
        "log": f"slurm/{job}.%j.log",
        "exclusive": asked.exclusive,
        "time": _time(getattr(asked, "hours", None)),
        "comment": shlex.quote(expanded_here(site.comment, "site file: comment")) if site.comment else None,
        "mail": site.mail,
        "mail_type": "FAIL",
        "options": [_option(option) for option in asked.options or ()],
        "setup": _setup(asked),
        "exports": [f"{name}={in_quotes(value)}" for name, value in site.environment.items()],
        "scratch": in_quotes(site.scratch, "scratch") if site.scratch else None,
    }


def _training(job: ChainJob, asked: Resources, plan: Plan, run: RunFolder, site: Site) -> dict[str, Any]:
    return {
        "nodes": job.nodes,
        # With --ntasks-per-node, SLURM picks the fewest nodes of a range; without it, as many as are available.
        "tasks_per_node": None if job.is_elastic else job.shape.ranks_per_node,
        "cores_per_task": cores(asked, job.shape.ranks_per_node if job.is_elastic else 1),
        "gpus": gpus(asked, job.shape.ranks_per_node) if plan.launch.accelerator == "cuda" else None,
        "doctor": program(site, "stacking", "doctor", "--before-job", "--run-dir", str(run.path))
        if site.doctor
        else None,
    }


def gpus(asked: TrainingRequests, ranks: int) -> str | None:
    """Returns the option that requests a node's GPUs for ``ranks``."""
    option = asked.gpu_option
    return option.format(gpus=ranks) if option is not None and option != NO_GPUS else None


def cores(asked: TrainingRequests, ranks: int) -> int | None:
    """Returns the cores of ``ranks``; None: an option requests them per GPU."""
    per_gpu = any(option_name(option) == "--cpus-per-gpu" for option in asked.options or ())
    return None if per_gpu else (asked.cores_per_rank or 1) * ranks


def _setup(asked: Requests) -> list[str]:
    """Returns the lines that prepare the job's shell, in the user's order."""
    modules = [f"module load {shlex.join(asked.modules)}"] if asked.modules else []
    prelude = list(asked.prelude or ())
    return modules + prelude if asked.modules_first else prelude + modules


def check_options(job: str, asked: Requests, values: Mapping[str, Any]) -> None:
    """Checks that ``options`` does not repeat what a key requests.

    Raises:
        UserError: an option is given together with the key for it, one of which would be silently overridden.
    """
    for option in asked.options or ():
        key = KEYED.get(option_name(option))
        if key and values.get(_PLACEHOLDER_OF.get(key, key)):
            raise UserError("options", f"has {option} for job {job}, and {key} is set too", "keep one of them")


def _command(job: ChainJob, run: RunFolder, site: Site) -> str:
    if job.name == WATCHER:
        return program(site, "stacking.slurm.watcher", str(run.path), str(site.mends))
    only = [] if job.name == "run" else ["--only", job.only]
    return program(site, "stacking", "resume", str(run.path), "--launcher", "slurm", *only)


def program(site: Site, module: str, *arguments: str) -> str:
    """Returns ``python -m MODULE`` for the job's shell, which expands the variables of ``python``."""
    return f"{interpreter(site)} {shlex.join(['-m', module, *arguments])}"


def interpreter(site: Site) -> str:
    """Returns the job's Python interpreter, quoted for its shell."""
    variable = site.python is not None and "$" in site.python
    return in_quotes(str(site.python), "python") if variable else shlex.quote(site.python or sys.executable)


def _option(option: str) -> str:
    """Formats an option for a ``#SBATCH`` line, quoting a value that contains spaces or ``#``."""
    name, sign, value = re.fullmatch(r"(-[\w-]+)([= ]?)(.*)", expanded_here(option, "options")).groups()  # type: ignore[union-attr]
    return f"{name}{sign}{shlex.quote(value)}" if sign else name + value


def in_quotes(value: str, required_by: str = "") -> str:
    """Quotes a value so that the job's shell expands ``$NAMES`` and nothing else.

    Args:
        required_by: the key whose variables must be set; otherwise unset variables are empty.
    """
    quoted = re.sub(r'["\\`]|\$(?![A-Za-z_]|\{[A-Za-z_]\w*\})', r"\\\g<0>", value)
    if required_by:
        words = rf"${{\1:?is not set, but {required_by} in the site file names it}}"
        quoted = re.sub(r"(?<!\\)\$\{?(?!HOME\b|USER\b|SLURM_)([A-Za-z_]\w*)\}?", words, quoted)
    return f'"{quoted}"'


def _launcher(job: ChainJob, site: Site) -> dict[str, str]:
    """Returns the environment variables that the SLURM launcher reads."""
    launcher = {
        "STACKING_SRUN": shlex.join(site.srun),
        "STACKING_CONTAINER": shlex.join(site.container),
        "STACKING_CONTAINER_PYTHON": site.container_python or "",
        "STACKING_INTERFACE": site.interface or "",
        "STACKING_HOST_SUFFIX": site.host_suffix or "",
        "STACKING_IPV6": "1" if site.ipv6 else "",
        "STACKING_NO_REQUEUE": "" if site.requeue else "1",
        "STACKING_RANKS_PER_NODE": str(job.shape.ranks_per_node) if job.is_elastic else "",
    }
    return {name: value for name, value in launcher.items() if value}


def _time(hours: float | None) -> str | None:
    """Formats a duration as SLURM's ``days-hours:minutes:seconds``."""
    if hours is None:
        return None
    seconds = math.ceil(hours * 3600)
    minutes, hours_left = seconds // 60 % 60, seconds // 3600 % 24
    return f"{seconds // 86400}-{hours_left:02}:{minutes:02}:{seconds % 60:02}"
