"""Examines a machine: gathers facts, measures collectives between ranks and runs the checks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stacking.doctor.checks.gpus import known_gpus
from stacking.doctor.checks.registry import examine
from stacking.doctor.facts import Facts
from stacking.doctor.finding import Finding
from stacking.doctor.gather import gather
from stacking.doctor.ranks import INTERRUPTED, QUICK, SIZES, Interrupted, TimeIsUp, measure
from stacking.errors import StackingError
from stacking.launch.job import Accelerator, Launcher
from stacking.launch.registry import open_launcher
from stacking.planning.plan import Plan

_PATIENCE = 240.0
"""Seconds that the measuring ranks may take, from their start."""
_QUICK_PATIENCE = 120.0
_CPU_RANKS = 2
"""How many ranks measure on a machine without GPUs when no plan says."""

_FAILURES: dict[type[Exception], str] = {TimeIsUp: "collectives in time", Interrupted: INTERRUPTED}
"""Names of the failures that prove nothing."""


@dataclass(frozen=True, kw_only=True)
class ExamineRequest:
    """What to examine."""

    folder: Path
    """The run's folder; it need not exist."""
    plan: Plan | None = None
    launcher: str = "local"
    hostfile: Path | None = None
    ranks: int | None = None
    """None: the plan's ranks, or as many as there are slots; without a plan one per GPU, or two."""
    collectives: bool = True
    quick: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


@dataclass(frozen=True)
class Visit:
    """What was found out about a machine, and what to say about it."""

    facts: Facts
    findings: list[Finding]


def visit(request: ExamineRequest) -> Visit:
    """Examines everything that ``request`` asks for.

    Raises:
        UserError: ranks are to be started and the launcher cannot do that here.
    """
    launcher = open_launcher(request.launcher, request.hostfile) if request.collectives else None
    container = request.environment.get("STACKING_CONTAINER", "") if request.launcher == "slurm" else ""
    found = gather(request.folder, shlex.split(container))
    facts = as_facts({**found, "plan": request.plan, "launcher": request.launcher})
    # A plan for GPUs remains one even where there are none; without a plan, what torch can use decides.
    accelerator = request.plan.launch.accelerator if request.plan else "cuda" if _usable_gpus(facts) else "cpu"
    ranks = _ranks(request, facts, accelerator)
    facts = facts.model_copy(update={"ranks": max(1, -(-ranks // _nodes(request)))})
    if launcher and ranks > 1 and facts.torch and (accelerator == "cpu" or _usable_gpus(facts)):
        facts = _with_collectives(request, facts, launcher, ranks, accelerator)
    return Visit(facts, examine(facts))


def as_facts(found: Mapping[str, Any]) -> Facts:
    """Validates ``found`` as facts; a malformed part becomes a failure and the rest is kept."""
    try:
        return Facts.model_validate(found)
    except ValidationError as error:
        broken = {str(place["loc"][0]): f"unexpected answer: {place['msg']}" for place in error.errors()}
        kept = {name: value for name, value in found.items() if name not in broken}
        return Facts.model_validate({**kept, "failures": {**kept.get("failures", {}), **broken}})


def _with_collectives(
    request: ExamineRequest, facts: Facts, launcher: Launcher, ranks: int, accelerator: Accelerator
) -> Facts:
    sizes = (QUICK if request.quick else SIZES)[accelerator]
    patience = _QUICK_PATIENCE if request.quick else _PATIENCE
    try:
        found = measure(launcher, ranks, accelerator, request.folder, sizes, patience)
    except (StackingError, OSError) as error:
        failures = {**facts.failures, _FAILURES.get(type(error), "collectives"): " ".join(str(error).split())}
        return facts.model_copy(update={"failures": failures})
    return as_facts({**dict(facts), "collectives": found})


def _usable_gpus(facts: Facts) -> bool:
    return bool(facts.torch and facts.torch.gpus and known_gpus(facts))


def _ranks(request: ExamineRequest, facts: Facts, accelerator: Accelerator) -> int:
    if request.ranks is not None:
        return request.ranks
    room = _room(request, facts, accelerator)
    if request.plan is not None:
        planned = max(stage.ranks for stage in request.plan.stages)
        return min(planned, room or planned)
    return room or min(_CPU_RANKS, facts.host.affinity or _CPU_RANKS)


def _room(request: ExamineRequest, facts: Facts, accelerator: Accelerator) -> int | None:
    """Returns how many ranks there are slots for; None: unknown."""
    if request.launcher == "slurm":
        return open_launcher("slurm").capacity(accelerator) or _nodes(request)
    return len(known_gpus(facts)) if accelerator == "cuda" and request.launcher == "local" else None


def _nodes(request: ExamineRequest) -> int:
    if request.launcher == "slurm":
        return int(request.environment.get("SLURM_JOB_NUM_NODES", 1))
    if request.launcher == "mpi" and request.hostfile is not None and request.hostfile.is_file():
        lines = request.hostfile.read_text(errors="replace").splitlines()
        return max(1, sum(bool(line.split("#")[0].strip()) for line in lines))
    return 1
