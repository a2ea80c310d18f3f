"""Examines the environment of the ranks in a process of its own: `python -m stacking.doctor.probe SECTION…`.

The control half never imports torch, and a broken driver or a foreign `apex` may crash or hang the process that imports
it. So this process announces each section and answers it with one line of JSON before the next one starts; the reader
always knows which section did not return.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

from stacking.doctor import machine

Section = Callable[[], Any]


def _torch() -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from stacking.hardware.products import bf16_slowdown

    available = torch.cuda.is_available()
    gpus = []
    for index in range(torch.cuda.device_count() if available else 0):
        found = torch.cuda.get_device_properties(index)
        gpus.append({"name": found.name, "memory": found.total_memory, "capability": (found.major, found.minor)})
    backends = [name for name in ("gloo", "nccl", "mpi") if getattr(dist, f"is_{name}_available")()]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "architectures": torch.cuda.get_arch_list() if available else _built_for(torch),
        "gpus": gpus,
        "cuda_error": "" if available or torch.version.cuda is None else _cuda_error(torch),
        "backends": backends,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if "nccl" in backends else None,  # type: ignore[no-untyped-call]
        "triton": _version_of("triton"),
        "threads": torch.get_num_threads(),
        "bf16_slowdown": None if available else bf16_slowdown(),
        "attention": _attention(torch) if available else [],
    }


def _built_for(torch: ModuleType) -> list[str]:
    """Returns the list of architectures, which torch hides if it sees no GPU."""
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()
    return flags.split() if flags else []


def _cuda_error(torch: ModuleType) -> str:
    try:
        torch.cuda.init()
    except Exception as error:
        return _one_line(error)
    return "no GPU is visible"


def _attention(torch: ModuleType) -> list[str]:
    kinds = {
        "flash": "flash_sdp_enabled",
        "memory-efficient": "mem_efficient_sdp_enabled",
        "cudnn": "cudnn_sdp_enabled",
    }
    return [kind for kind, asks in kinds.items() if getattr(torch.backends.cuda, asks, lambda: False)()]


def _deepspeed() -> dict[str, Any]:
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import installed_ops

    accelerator = get_accelerator()
    return {
        "version": deepspeed.__version__,
        "accelerator": accelerator._name,
        "fp16": bool(accelerator.is_fp16_supported()),
        "bf16": bool(accelerator.is_bf16_supported()),
        "ops": _ops(),
        "built": sorted(op for op, built in installed_ops.items() if built),
    }


def _ops() -> dict[str, bool]:
    """Returns what `ds_report` lists as compatible, without compiling anything."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    def compatible(builder: Any) -> bool:
        try:
            return bool(builder.is_compatible(False))
        except Exception:  # a builder that cannot even answer will not build
            return False

    return {name: compatible(builder) for name, builder in sorted(ALL_OPS.items())}


def _apex() -> dict[str, Any]:
    """Checks for modules of NVIDIA's apex; the package index has an unrelated package of that name."""
    missing = [f"{module}.{name}" for module, name in APEX_HAS.items() if not _has(f"apex.{module}", name)]
    return _module("apex", missing)


APEX_HAS = {"optimizers": "FusedAdam", "normalization": "FusedLayerNorm"}


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def _flash_attn() -> dict[str, Any]:
    return _module("flash_attn", [] if _has("flash_attn", "flash_attn_varlen_func") else ["flash_attn_varlen_func"])


def _mpi4py() -> dict[str, Any]:
    found = _module("mpi4py", [])
    importlib.import_module("mpi4py.MPI").Get_library_version()
    return found


def _module(name: str, missing: list[str]) -> dict[str, Any]:
    module = importlib.import_module(name)
    path = getattr(module, "__file__", None) or str(next(iter(getattr(module, "__path__", [""])), ""))
    return {"version": getattr(module, "__version__", None), "path": path, "missing": missing}


def _version_of(name: str) -> str | None:
    try:
        return str(getattr(importlib.import_module(name), "__version__", "unknown"))
    except Exception:  # installed but broken, which is as good as missing
        return None


SECTIONS: dict[str, Section] = {
    "host": machine.host,
    "tools": machine.tools,
    "gpus": machine.gpus,
    "packages": machine.packages,
    "torch": _torch,
    "deepspeed": _deepspeed,
    "apex": _apex,
    "flash_attn": _flash_attn,
    "mpi4py": _mpi4py,
}
"""The available sections, named after the fields of `Facts`."""


def answer(name: str) -> dict[str, Any]:
    """Answers one section: ``{"section", "found"}``, or ``{"section", "failure"}`` with a one-line message."""
    try:
        with redirect_stdout(io.StringIO()):
            return {"section": name, "found": SECTIONS[name]()}
    except (Exception, SystemExit) as error:
        return {"section": name, "failure": _one_line(error)}


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def main(sections: Sequence[str]) -> None:
    """Answers the sections, in order, on standard output, and ends the process."""
    # Libraries print to standard output, even from C, so the answers use a descriptor of their own.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sections:
        print(json.dumps({"section": name}), file=out, flush=True)
        print(json.dumps(answer(name)), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # destructors of some libraries hang or crash
