"""Explains why SLURM refuses a job: finds the file and the key that the refused request comes from."""

from __future__ import annotations

import re
from pathlib import Path

from stacking.config.recipe import Recipe
from stacking.errors import UserError
from stacking.slurm.chain import ChainJob

_KEYS = (
    (re.compile(r"(?:node|partition) configuration|node count|CPU count|processors|nodes? .*not available"), "nodes"),
    (re.compile(r"time ?limit|--time|walltime", re.IGNORECASE), "hours"),
    (re.compile(r"\bmem(?:ory)?\b", re.IGNORECASE), "memory"),
    (re.compile(r"invalid account", re.IGNORECASE), "account"),
    (re.compile(r"\bpartition\b", re.IGNORECASE), "partition"),
    (re.compile(r"\bqos\b", re.IGNORECASE), "qos"),
    (re.compile(r"\bfeature\b", re.IGNORECASE), "constraint"),
    (re.compile(r"\breservation\b", re.IGNORECASE), "reservation"),
    (re.compile(r"\bgres\b|generic resource|\bGPUs?\b", re.IGNORECASE), "gpu_option"),
)
"""What SLURM says, and the key that it is about; the first match wins."""


def refusal(error: UserError, job: ChainJob, recipe: Recipe, site_file: Path | None) -> UserError:
    """Returns ``error``, which quotes sbatch, with the place to correct."""
    site = str(site_file) if site_file else "site file"
    key = next((key for pattern, key in _KEYS if pattern.search(error.problem)), None)
    where, remedy = _place(key, job, recipe, site)
    return UserError(where, f"job {job.name}: {error.problem}", remedy)


def _place(key: str | None, job: ChainJob, recipe: Recipe, site: str) -> tuple[str, str]:
    if job.template != "training":
        if key == "nodes":
            return f"{site}: transition", "lower its cores or memory, or choose another partition"
        return (f"{site}: transition.{key}", "correct it") if key else (f"{site}: transition", "correct what it names")
    location: tuple[str | int, ...] = ("launch",)
    if job.name != "run" and _names(recipe.stages[job.phases[0].stage].resources, key):
        location = ("stages", job.phases[0].stage)
    elif not _names(recipe.launch.resources, key):
        if key == "nodes":
            remedy = f"lower its ranks, or correct ranks_per_node, cores_per_rank, memory or partition in {site}"
            return recipe.key(*(("launch",) if job.name == "run" else ("stages", job.phases[0].stage))), remedy
        return (f"{site}: {key}", "correct it") if key else (site, f"correct it, or the resources in {recipe.file}")
    return recipe.key(*location, "resources", str(key)), "correct it"


def _names(resources: object, key: str | None) -> bool:
    return key is not None and getattr(resources, key, None) is not None
