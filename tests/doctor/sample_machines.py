"""Machines that are not available: facts as they would be gathered on them. Findings about GPUs are tested with these
alone; no GPU is involved."""

from __future__ import annotations

from typing import Any

from stacking.doctor.checks.registry import CHECKS, examine
from stacking.doctor.compatibility import TESTED
from stacking.doctor.facts import Capability, DeepSpeed, Facts, GpuFacts, Host, Tools, Torch
from stacking.doctor.finding import Finding
from stacking.planning.plan import Plan
from tests.slurm.plans import plan_for_jobs

GiB = 1 << 30
P40 = GpuFacts(name="Tesla P40", memory=24 * GiB, capability=(6, 1))
V100 = GpuFacts(name="Tesla V100-SXM2-16GB", memory=16 * GiB, capability=(7, 0))
A100 = GpuFacts(name="NVIDIA A100-SXM4-40GB", memory=40 * GiB, capability=(8, 0))
H200 = GpuFacts(name="NVIDIA H200", memory=141 * GiB, capability=(9, 0))

CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
OPS = {"fused_adam": True, "cpu_adam": True, "fused_lamb": True}


def torch_for(cuda: str, architectures: tuple[str, ...], *gpus: GpuFacts, **changes: Any) -> Torch:
    facts: dict[str, Any] = {
        "version": f"2.13.0+cu{cuda.replace('.', '')}",
        "cuda": cuda,
        "architectures": architectures,
        "gpus": gpus,
        "backends": ("gloo", "nccl"),
        "nccl": "2.27.3",
        "triton": "3.6.0",
    }
    return Torch(**(facts | changes))


def machine(*gpus: GpuFacts, cuda: str = "12.6", architectures: tuple[str, ...] = CU126, **changes: Any) -> Facts:
    """A healthy machine with these GPUs, except for ``changes``."""
    capability: Capability = min((gpu.capability for gpu in gpus), default=(9, 0))
    healthy: dict[str, Any] = {
        "cores": 16,
        "affinity": 16,
        "memory": 128 * GiB,
        "available": 100 * GiB,
        "shared_memory": 64 * GiB,
    }
    facts: dict[str, Any] = {
        "host": Host(name="n1", python="3.11.7", **healthy),
        "tools": Tools(nvcc=cuda, compiler="12.2.0", ninja="1.13.2", driver="580.65.06" if gpus else None),
        "packages": {name: tested.newest for name, tested in TESTED.items()},
        "gpus": gpus,
        "torch": torch_for(cuda, architectures, *gpus) if gpus else Torch(version="2.13.0+cpu", backends=("gloo",)),
        "deepspeed": DeepSpeed(
            version="0.19.8", accelerator="cuda" if gpus else "cpu", fp16=capability >= (7, 0), bf16=True, ops=OPS
        ),
    }
    return Facts(**(facts | changes))


def plan_for(precision: str = "fp32", accelerator: str = "cuda", device: str = "v100", **config: Any) -> Plan:
    """A plan of three stages in this precision; ``config`` is added to what DeepSpeed gets."""
    plan = plan_for_jobs(ranks=(1, 1, 1), accelerator=accelerator)
    sixteen = {precision: {"enabled": True}} if precision != "fp32" else {}
    stages = tuple(
        stage.model_copy(update={"precision": precision, "ds_config": {**stage.ds_config, **sixteen, **config}})
        for stage in plan.stages
    )
    launch = plan.launch.model_copy(update={"device": device})
    return plan.model_copy(update={"stages": stages, "launch": launch})


def findings(check: str, facts: Facts) -> list[Finding]:
    """The findings of one check of the table."""
    return examine(facts, {check: CHECKS[check]})


def only(check: str, facts: Facts) -> Finding:
    """The only finding of one check."""
    (finding,) = findings(check, facts)
    return finding
