"""Checks cores, memory and operating system limits."""

from __future__ import annotations

from collections.abc import Iterator

from stacking.deepspeed_config import ds_config
from stacking.doctor.checks.gpus import known_gpus
from stacking.doctor.facts import Facts
from stacking.doctor.finding import Finding
from stacking.terminal.units import counted

GiB = 1 << 30
_LEAST_SHARED = 1 << 30
"""Bytes of /dev/shm: NCCL takes tens of MB per pair of ranks; containers get 64 MB by default."""
_LEAST_FILES = 1024
_RESERVE = 1.2
"""Bytes a process takes for libraries and buffers, in addition to the estimate."""


def cores(facts: Facts) -> Iterator[Finding]:
    """Checks that there are cores for the threads of all ranks."""
    host, ranks = facts.host, max(1, facts.ranks)
    if not host.affinity:
        return
    usable = min(host.affinity, host.quota or host.affinity)
    of = f" of {host.cores}" if host.affinity < host.cores else ""
    found = f"{usable:g}{of} for {counted(ranks, 'rank')} here"
    threads = host.environment.get("OMP_NUM_THREADS", "")
    if usable < ranks:
        yield Finding("warning", "cores", found, "start fewer ranks, or request more cores: ranks share cores now")
    elif host.quota and host.quota < host.affinity:
        problem = f"{host.affinity}{of}, but the control group allows the time of {host.quota:g}"
        advice = f"set OMP_NUM_THREADS to {max(1, int(host.quota // ranks))}: more threads only compete"
        yield Finding("warning", "cores", problem, advice)
    elif threads.isdigit() and int(threads) * ranks > usable and not known_gpus(facts):
        advice = f"set OMP_NUM_THREADS to {max(1, int(usable // ranks))}"
        yield Finding("warning", "cores", f"{found}, but OMP_NUM_THREADS={threads} for each", advice)
    elif known_gpus(facts) and usable < 2 * ranks:
        advice = "give each rank 2 cores or more: one to feed the GPU, one to read data"
        yield Finding("warning", "cores", found, advice)
    else:
        yield Finding("ok", "cores", found)


def memory(facts: Facts) -> Iterator[Finding]:
    """Checks that the host's memory suffices."""
    if not facts.host.memory:
        return
    found = f"{facts.host.available / GiB:.1f} GiB free of {facts.host.memory / GiB:.1f}"
    need = _needed(facts)
    if need > facts.host.memory:
        advice = "request more memory, set a smaller micro_batch, or offload less"
        yield Finding("warning", "memory", f"{found}, but the plan's estimate is {need / GiB:.1f}", advice)
    elif facts.host.available < GiB:
        yield Finding("warning", "memory", found, "close other programs: the next one may be killed")
    else:
        yield Finding("ok", "memory", found)


def shared_memory(facts: Facts) -> Iterator[Finding]:
    """Checks the size of /dev/shm, through which ranks on one machine communicate."""
    size = facts.host.shared_memory
    if size is None:
        if facts.host.name:
            yield Finding("warning", "/dev/shm", "is missing", "mount a tmpfs on it: NCCL needs it between local ranks")
    elif size < _LEAST_SHARED and facts.ranks > 1:
        advice = "in a container: --shm-size=8g, or --ipc=host; otherwise remount it larger"
        yield Finding("warning", "/dev/shm", f"{size / 2**20:.0f} MiB for {counted(facts.ranks, 'rank')}", advice)
    else:
        yield Finding("ok", "/dev/shm", f"{size / GiB:.1f} GiB")


def locked_memory(facts: Facts) -> Iterator[Finding]:
    """Checks the limit of locked memory: RDMA needs it; without it NCCL fails or falls back to TCP."""
    limit = facts.host.locked_memory
    if not facts.host.name:
        return
    if limit is None:
        yield Finding("ok", "locked memory", "unlimited")
    elif facts.host.infiniband:
        problem = f"{limit >> 10:,} KiB, but there is InfiniBand ({', '.join(facts.host.infiniband)})"
        advice = "ulimit -l unlimited, in SLURM's unit file (LimitMEMLOCK=infinity) or limits.conf"
        yield Finding("warning" if known_gpus(facts) else "note", "locked memory", problem, advice)
    else:
        yield Finding("ok", "locked memory", f"{limit >> 10:,} KiB; no InfiniBand needs more")


def open_files(facts: Facts) -> Iterator[Finding]:
    """Checks the limit of open files: data shards, sockets to every other rank and libraries all count."""
    limit = facts.host.open_files
    if limit is not None and limit < _LEAST_FILES:
        yield Finding("warning", "open files", f"at most {limit:,}", f"ulimit -n {_LEAST_FILES * 4}")
    elif facts.host.name:
        yield Finding("ok", "open files", f"at most {limit:,}" if limit is not None else "unlimited")


def _needed(facts: Facts) -> float:
    """Returns the bytes of host memory that the ranks of the plan's largest stage take, as the plan estimates."""
    if facts.plan is None:
        return 0
    need = 0.0
    for stage in facts.plan.stages:
        if facts.plan.launch.accelerator == "cpu":
            need = max(need, stage.memory_per_rank * min(facts.ranks, stage.ranks))
        elif "optimizer" in ds_config.offloads(stage.ds_config):
            # Master weights, two moments and the gradients in transit, sharded over all ranks.
            need = max(need, 16 * stage.parameters * min(facts.ranks, stage.ranks) / stage.ranks)
    return need * _RESERVE
