"""Asks the operating system about the environment of the ranks, without importing torch."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from stacking.hardware.cores import usable_cores
from stacking.hardware.extension_locks import stale_locks
from stacking.hardware.nvidia_smi import installed_gpus, query
from stacking.hardware.processor import BF16_FLAGS, cpu_flags

_PACKAGES = (
    *("torch", "deepspeed", "transformers", "tokenizers", "datasets", "safetensors", "numpy", "pydantic"),
    *("triton", "apex", "flash-attn", "mpi4py", "ninja"),
)
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "DS_ACCELERATOR", "CUDA_HOME", "DS_SKIP_CUDA_CHECK")
CPU_FLAGS = ("avx2", "avx512f", *sorted(BF16_FLAGS))
_NO_LIMIT = 1 << 62
"""Control groups and the kernel write "unlimited" as a number close to the largest possible one."""


def host() -> dict[str, Any]:
    """Returns the fields of `facts.Host`."""
    memory, available = _memory()
    return {
        "name": socket.gethostname(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count() or 1,
        "affinity": usable_cores(),
        "quota": _quota(),
        "cpu_flags": _cpu_flags(),
        "memory": memory,
        "available": available,
        "shared_memory": _shared_memory(),
        "locked_memory": _limit(resource.RLIMIT_MEMLOCK, hard=False),
        "open_files": _limit(resource.RLIMIT_NOFILE, hard=True),
        "infiniband": _names(Path("/sys/class/infiniband")),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "stale_locks": [str(lock) for lock in stale_locks()],
    }


def packages() -> dict[str, str]:
    """Returns the installed version of each relevant package, without importing any."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if importlib.util.find_spec(name.replace("-", "_")):
                found[name] = "unknown"
    return found


def gpus() -> list[dict[str, Any]]:
    """Returns every GPU that nvidia-smi lists, visible to ranks or not, as fields of `facts.Gpu`."""
    return [
        {"name": gpu.name, "memory": gpu.memory, "capability": [int(part) for part in str(gpu.capability).split(".")]}
        for gpu in installed_gpus()
        if gpu.capability
    ]


def tools() -> dict[str, Any]:
    """Returns the fields of `facts.Tools`."""
    return {
        "nvcc": _said([_nvcc(), "--version"], r"release (\d+\.\d+)"),
        "compiler": _said([os.environ.get("CXX", "g++"), "--version"], r"(\d+\.\d+(?:\.\d+)?)\s*$"),
        "ninja": _said(["ninja", "--version"], r"(\d+\.\d+\S*)"),
        "mpirun": _said(["mpirun", "--version"], r"(\d+\.\d+\S*)"),
        "srun": _said(["srun", "--version"], r"(\d+\.\d+\S*)"),
        "driver": next((gpu["driver_version"] for gpu in query("driver_version")), None),
    }


def _nvcc() -> str:
    """Finds nvcc as torch does: CUDA_HOME, then the PATH, then the default location."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home is None and (found := shutil.which("nvcc")):
        return found
    return os.path.join(home or "/usr/local/cuda", "bin", "nvcc")


def _said(argv: list[str], pattern: str) -> str | None:
    """Returns the version in the first lines that a program prints; None: it is missing or does not answer."""
    found = re.search(pattern, _output(argv), re.MULTILINE)
    return found.group(1) if found else None


def _output(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout or done.stderr) if done.returncode == 0 else ""


def _memory() -> tuple[int, int]:
    """Returns total and free bytes of memory for this control group."""
    facts = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE))
    total, free = (int(facts.get(name, 0)) << 10 for name in ("MemTotal", "MemAvailable"))
    limit = _number(Path("/sys/fs/cgroup/memory.max")) or _number(Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    if limit and limit < min(total, _NO_LIMIT):
        used = _number(Path("/sys/fs/cgroup/memory.current")) or 0
        return limit, min(free, max(0, limit - used))
    return total, free


def _quota() -> float | None:
    """Returns the CPU quota of the control group in cores; None: unlimited."""
    allowed, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).strip().partition(" ")
    return int(allowed) / int(period) if allowed.isdigit() and period.isdigit() else None


def _cpu_flags() -> list[str]:
    return [flag for flag in CPU_FLAGS if flag in cpu_flags()]


def _shared_memory() -> int | None:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return None
    return found.f_frsize * found.f_blocks


def _limit(kind: int, hard: bool) -> int | None:
    value = resource.getrlimit(kind)[hard]
    return None if value == resource.RLIM_INFINITY or not math.isfinite(value) else value


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
