"""Registers the checks, in the order in which their findings are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from stacking.doctor.checks import cluster, disk, gpus, software, system
from stacking.doctor.facts import Facts
from stacking.doctor.finding import Finding

Check = Callable[[Facts], Iterator[Finding]]

CHECKS: Mapping[str, Check] = {
    "imports": software.imports,
    "GPUs": gpus.gpus,
    "architectures": gpus.architectures,
    "driver": gpus.driver,
    "precision": gpus.precision,
    "triton": gpus.triton,
    "versions": software.versions,
    "kernels": software.kernels,
    "build locks": software.build_locks,
    "apex": software.apex,
    "flash attention": software.flash_attention,
    "backends": software.backends,
    "cores": system.cores,
    "memory": system.memory,
    "shared memory": system.shared_memory,
    "locked memory": system.locked_memory,
    "open files": system.open_files,
    "file system": disk.filesystem,
    "disk speed": disk.speed,
    "disk space": disk.space,
    "collectives": cluster.transfers,
    "clocks": cluster.clocks,
    "nodes": cluster.nodes,
    "probes": software.probes,
}
"""Each check reads the facts and yields findings; to add one, write a function and add a line here."""


def examine(facts: Facts, checks: Mapping[str, Check] = CHECKS) -> list[Finding]:
    """Runs all checks; one that raises becomes a finding and stops no other."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check(facts)
        except Exception as error:
            problem = f"the check itself failed: {type(error).__name__}: {error}"
            found.append(Finding("warning", name, " ".join(problem.split()), "please report it"))
    return found
