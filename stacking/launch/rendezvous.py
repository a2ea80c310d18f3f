"""Translates a scheduler's variables into those with which torch.distributed finds the other ranks.

``srun`` and ``mpirun`` start the ranks directly. A rank calls `rendezvous` before torch or DeepSpeed start; if the
local launcher or torchrun has set RANK already, nothing changes.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping

from stacking.errors import StackingError, UserError

Variables = dict[str, str]

_FIRST_PORT, _PORTS = 12_000, 18_000
"""Below the kernel's ephemeral ports, above those of services."""
_PATIENCE = 60.0
"""Seconds to keep asking for a host's address, since name servers and slurmctld may be away for a moment."""
_INTERFACE_KEYS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class NoAddress(StackingError):
    """Reports that the first host has no address, possibly only for a moment."""

    exit_code = 69
    """Exit code of a rank only; the controller then retries the phase."""


def rendezvous(environment: Mapping[str, str]) -> Variables:
    """Returns the variables to add: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_SIZE, MASTER_ADDR, MASTER_PORT, and interfaces.

    Raises:
        UserError: no launcher has set its variables.
        NoAddress: the first host has no address.
    """
    if "RANK" in environment:
        return interfaces(environment)
    for mark, found in _SCHEDULERS.items():
        if mark in environment:
            return found(environment) | interfaces(environment)
    raise UserError("RANK", "is not set: no launcher started this rank", "use srun, mpirun or `stacking run`")


def interfaces(environment: Mapping[str, str]) -> Variables:
    """Returns variables that make gloo and NCCL use STACKING_INTERFACE, unless they already name an interface."""
    name = environment.get("STACKING_INTERFACE")
    return {key: name for key in _INTERFACE_KEYS if name and key not in environment}


def first_host(nodes: str) -> str:
    """Returns the first host of a SLURM node list: of ``gpu[07-09,12]-ib,login1``, ``gpu07-ib``."""
    depth, end = 0, len(nodes)
    for position, character in enumerate(nodes):
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            end = position
            break
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes[:end])


def port(*numbers: int) -> int:
    """Returns a port for the job identified by ``numbers``: equal on all of its ranks, different for other jobs."""
    mixed = 0
    for number in numbers:
        mixed = mixed * 31 + number
    return _FIRST_PORT + mixed % _PORTS


def address(host: str, ipv6: bool) -> str:
    """Returns an address of ``host``, asking SLURM if the resolver does not know the node's name.

    Raises:
        NoAddress: no address was found for a minute.
    """
    deadline, pause = time.monotonic() + _PATIENCE, 1.0
    while True:
        for name in (host, _node_address(host)) if not _resolves(host) else (host,):
            if name and (found := _resolves(name, socket.AF_INET6 if ipv6 else socket.AF_UNSPEC)):
                return found
        if time.monotonic() + pause > deadline:
            family = "IPv6 " if ipv6 else ""
            raise NoAddress(f"MASTER_ADDR: {host}: has no {family}address; set MASTER_ADDR, or correct /etc/hosts")
        time.sleep(pause)
        pause = min(10.0, 2 * pause)


def _from_slurm(environment: Mapping[str, str]) -> Variables:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    # Tasks may be distributed unevenly, "2(x3),1"; SLURM sets the number on this node.
    here = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "1"))
    found = {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"],
        "LOCAL_SIZE": str(expand_counts(here)[int(environment["SLURM_NODEID"])]),
    }
    if "MASTER_ADDR" not in environment:
        host = first_host(nodes) + environment.get("STACKING_HOST_SUFFIX", "")
        found["MASTER_ADDR"] = address(host, bool(environment.get("STACKING_IPV6")))
    if "MASTER_PORT" not in environment:
        # srun's own port distinguishes jobs of two SLURM clusters on one host.
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SLURM_SRUN_COMM_PORT")
        found["MASTER_PORT"] = str(port(*(int(environment.get(name, 0)) for name in names)))
    return found


def _from_openmpi(environment: Mapping[str, str]) -> Variables:
    names = {"RANK": "RANK", "LOCAL_RANK": "LOCAL_RANK", "WORLD_SIZE": "SIZE", "LOCAL_SIZE": "LOCAL_SIZE"}
    found = {ours: environment[f"OMPI_COMM_WORLD_{theirs}"] for ours, theirs in names.items()}
    if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        one_host = found["WORLD_SIZE"] == found["LOCAL_SIZE"]
        host, number = _from_rank_0("127.0.0.1" if one_host else socket.gethostname())
        ipv6 = bool(environment.get("STACKING_IPV6"))
        found["MASTER_ADDR"] = environment.get("MASTER_ADDR") or (host if one_host else address(host, ipv6))
        found["MASTER_PORT"] = environment.get("MASTER_PORT") or str(number)
    return found


_SCHEDULERS: dict[str, Callable[[Mapping[str, str]], Variables]] = {
    "SLURM_PROCID": _from_slurm,
    "OMPI_COMM_WORLD_RANK": _from_openmpi,
}
"""Keyed by the variable that identifies the launcher. ``srun --mpi=pmix`` sets both."""


def expand_counts(text: str) -> list[int]:
    """Expands SLURM's counts per node: ``2(x3),1`` is ``[2, 2, 2, 1]``."""
    counts = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts


def _from_rank_0(host: str) -> tuple[str, int]:
    """Broadcasts rank 0's ``host`` and a free port there to all ranks over MPI, then finalises MPI."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError("mpi4py", f"is needed by ranks of mpirun ({error})", "pip install 'stacking[mpi]'") from None
    with socket.socket() as probe:
        probe.bind(("", 0))
        offer = (host, int(probe.getsockname()[1]))
    found: tuple[str, int] = MPI.COMM_WORLD.bcast(offer)
    MPI.Finalize()
    return found


def _resolves(host: str, family: int = socket.AF_UNSPEC) -> str | None:
    try:
        return str(socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def _node_address(node: str) -> str | None:
    """Returns the address that SLURM itself uses for a node."""
    argv = ["scontrol", "--oneliner", "show", "node", node]
    try:
        shown = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found.group(1) if found else None
