"""Renders a job's script by filling every placeholder of its template."""

from __future__ import annotations

import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from stacking.errors import UserError
from stacking.planning.plan import Plan
from stacking.run.folder import RunFolder
from stacking.slurm.chain import ChainJob
from stacking.slurm.site import Site, check_warning
from stacking.slurm.templates import find_template, render


def script(job: ChainJob, plan: Plan, run: RunFolder, site: Site) -> str:
    """Returns the sbatch script of ``job``.

    Raises:
        UserError: the template or the run's path is unusable.
    """
    hours = site.transition.hours if job.template == "transition" else job.resources.hours or site.hours
    check_warning(site, hours, f"job {job.name}")
    own = Path(site.templates) if site.templates else None
    return render(find_template(job.template, own), placeholders(job, plan, run, site))


def title(plan: Plan, job: ChainJob) -> str:
    """Returns the job's name in the queue: the names of the run and the job, as one plain word."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', plan.name) or 'stacking'}-{job.name}"


def placeholders(job: ChainJob, plan: Plan, run: RunFolder, site: Site) -> dict[str, Any]:
    """Returns the values that a template may use: quoted where the shell reads them, plain words elsewhere."""
    common = {
        "name": title(plan, job),
        "job": job.name,
        # Relative to the job's folder, so that SLURM does not interpret characters of the run's path.
        "log": f"slurm/{job.name}.%j.log",
        "warning_seconds": site.warning_seconds,
        "mends": site.mends,
        "account": site.account,
        "reservation": site.reservation,
        "options": [_option(option) for option in site.options],
        "prelude": site.prelude,
        "modules": shlex.join(site.modules),
        "exports": [f"{name}={_in_quotes(value)}" for name, value in site.environment.items()]
        + [f"{name}={shlex.quote(value)}" for name, value in _launcher(job, site).items()],
        "scratch": site.scratch,
        "command": shlex.join(_command(job, run, site)),
        "interrupted": shlex.join([site.python or sys.executable, "-m", "stacking.slurm.interrupted", str(run.path)]),
    }
    asks = _transition(site) if job.template == "transition" else _training(job, plan, run, site)
    return common | asks


def _training(job: ChainJob, plan: Plan, run: RunFolder, site: Site) -> dict[str, Any]:
    cuda = plan.launch.accelerator == "cuda"
    return {
        "nodes": job.nodes,
        # With --ntasks-per-node, SLURM picks the fewest nodes of a range; without it, as many as are available.
        "tasks_per_node": None if job.is_elastic else job.shape.ranks_per_node,
        "cores_per_task": site.cores_per_rank * (job.shape.ranks_per_node if job.is_elastic else 1),
        "gpus": site.gpu_option.format(gpus=job.shape.ranks_per_node) if cuda else None,
        "memory": site.memory,
        "time": _time(job.resources.hours or site.hours),
        "partition": job.resources.partition or site.partition,
        "qos": job.resources.qos or site.qos,
        "constraint": site.constraint,
        "doctor": shlex.join(_doctor(run, site)) if site.doctor else None,
    }


def _transition(site: Site) -> dict[str, Any]:
    small = site.transition
    return {
        "cores": small.cores,
        "memory": small.memory,
        "time": _time(small.hours),
        "partition": small.partition,
        "qos": small.qos,
        "constraint": small.constraint,
    }


def _command(job: ChainJob, run: RunFolder, site: Site) -> list[str]:
    if found := re.search(r"[\x00-\x1f\x7f%\\]", str(run.path)):
        problem = f"contains {found.group()!r}, which SLURM replaces in log paths"
        raise UserError(repr(str(run.path)), problem, "choose another --run-dir")
    only = [] if job.name == "run" else ["--only", job.only]
    return _program("resume", str(run.path), "--launcher", "slurm", *only, site=site)


def _doctor(run: RunFolder, site: Site) -> list[str]:
    return _program("doctor", "--before-job", "--run-dir", str(run.path), site=site)


def _program(*arguments: str, site: Site) -> list[str]:
    return [site.python or sys.executable, "-m", "stacking", *arguments]


def _option(option: str) -> str:
    """Formats an option for a ``#SBATCH`` line, quoting a value that contains spaces."""
    name, equals, value = option.partition("=")
    return f"{name}={shlex.quote(value)}" if equals else option


def _in_quotes(value: str) -> str:
    """Quotes a value so that the job's shell expands ``$NAMES`` and nothing else."""
    return '"' + re.sub(r'["\\`]|\$(?![A-Za-z_]|\{[A-Za-z_]\w*\})', r"\\\g<0>", value) + '"'


def _launcher(job: ChainJob, site: Site) -> dict[str, str]:
    """Returns the environment variables that the SLURM launcher reads."""
    launcher = {
        "STACKING_SRUN": shlex.join(site.srun),
        "STACKING_CONTAINER": shlex.join(site.container),
        "STACKING_INTERFACE": site.interface or "",
        "STACKING_IPV6": "1" if site.ipv6 else "",
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
