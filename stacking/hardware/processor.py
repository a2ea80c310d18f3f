"""Detects native 16-bit support of the processor from its flags and, if these are inconclusive, a short product.

Does not import torch, since a plan must start at once. The product runs in a separate process, and its result is cached
for the same processor, torch and environment.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Either flag means native bf16 products."""
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Variables that keep torch from using instructions of the processor."""
_CPU_INFO = Path("/proc/cpuinfo")
_PATIENCE = 60.0
"""Seconds for torch to load, perhaps from a slow file server, and to multiply."""


def cpu_flags(cpu_info: Path = _CPU_INFO) -> frozenset[str]:
    """Returns the processor's flags as listed by Linux; empty on other systems."""
    return frozenset(_field("flags", cpu_info).split())


def cpu_name() -> str:
    """Returns the processor's model name as Linux reports it, otherwise the machine's architecture."""
    return _field("model name", _CPU_INFO) or platform.machine()


def has_native_bf16(flags: frozenset[str], environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torch computes bf16 natively here.

    The flags decide, unless the environment limits the instructions that torch may use; then a product decides.
    """
    if not flags & BF16_FLAGS:
        return False
    if any(environment.get(name) for name in _LIMITS):
        slowdown = bf16_slowdown()
        return slowdown is not None and slowdown < 1
    return True


@cache
def bf16_slowdown() -> float | None:
    """Returns the time of a bf16 matrix product relative to fp32 here; None: it could not be measured."""
    about = {"cpu": _field("model name", _CPU_INFO), "torch": _version("torch"), **_limits()}
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stacking" / "bf16.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known["about"] == about:
            return float(known["slowdown"])
    except (OSError, KeyError, TypeError, ValueError):
        pass  # not measured yet, or being written by another process
    slowdown = _measure()
    if slowdown is not None:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"about": about, "slowdown": slowdown}), encoding="utf-8")
        except OSError:
            pass  # measured again next time
    return slowdown


def _measure() -> float | None:
    argv = [sys.executable, "-m", "stacking.hardware.products"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE, check=True)
        return float(json.loads(done.stdout.splitlines()[-1])["bf16_slowdown"])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        return None


def _limits() -> dict[str, str]:
    return {name: os.environ[name] for name in _LIMITS if name in os.environ}


def _field(name: str, cpu_info: Path) -> str:
    try:
        found = re.search(rf"^{name}\s*:(.*)$", cpu_info.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return ""
    return found.group(1).strip() if found else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
