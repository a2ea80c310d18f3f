"""Checks the GPUs, and whether this torch has code for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stacking.doctor.compatibility import (
    BUILDS,
    DRIVERS,
    LAST_DRIVER,
    TRITON_FULL,
    TRITON_LEAST,
    builds_for,
    runs_on,
    version,
)
from stacking.doctor.facts import Capability, Facts, GpuFacts
from stacking.doctor.finding import Finding, Level
from stacking.hardware.presets import DEVICE_CLASSES, DeviceClass, cpu_class, device_class
from stacking.hardware.processor import BF16_FLAGS

GiB = 1 << 30


def known_gpus(facts: Facts) -> tuple[GpuFacts, ...]:
    """Returns the GPUs that torch sees, else those that nvidia-smi lists; none if training is set to the CPU."""
    return () if _unwanted(facts) else (facts.torch.gpus if facts.torch else ()) or facts.gpus


def _unwanted(facts: Facts) -> str:
    """Returns the setting that excludes GPUs; empty if none does."""
    if facts.plan is not None:
        return "the plan" if facts.plan.launch.accelerator == "cpu" else ""
    return "DS_ACCELERATOR" if facts.host.environment.get("DS_ACCELERATOR") == "cpu" else ""


def class_of(gpu: GpuFacts) -> DeviceClass:
    """Returns the class of a GPU, for its peaks and precisions."""
    return device_class(gpu.name, gpu.memory, float(dotted(gpu.capability)))


def dotted(capability: Capability) -> str:
    """Formats a compute capability: ``7.0``."""
    return f"{capability[0]}.{capability[1]}"


def gpus(facts: Facts) -> Iterator[Finding]:
    """Checks which GPUs there are, whether all are alike, and whether both torch and nvidia-smi see them."""
    found = known_gpus(facts)
    if not found:
        if facts.plan and facts.plan.launch.accelerator == "cuda":
            advice = "run it where there are GPUs, or set launch.accelerator to cpu"
            level: Level = "error" if facts.torch else "warning"  # without torch there may be GPUs all the same
            yield Finding(level, "GPUs", f"none, but the plan is for {facts.plan.launch.device}", advice)
        elif facts.gpus:
            yield Finding("note", "GPUs", f"{len(facts.gpus)}, not used: {_unwanted(facts)} says cpu")
        else:
            yield Finding("note", "GPUs", "none: ranks train on the CPU")
        return
    listed = ", ".join(f"{count} x {name}" for name, count in _counted([_described(gpu) for gpu in found]))
    alike = len({(gpu.name, gpu.memory) for gpu in found}) == 1
    yield Finding(
        "ok" if alike else "warning",
        "GPUs",
        listed,
        "" if alike else "use equal ones (CUDA_VISIBLE_DEVICES): every update waits for the slowest",
    )
    if facts.torch and facts.torch.gpus and not facts.gpus:
        advice = "make nvidia-smi available (in a container: the driver capability 'utility'), or set launch.device"
        yield Finding("warning", "nvidia-smi", "not found, so `auto` in a recipe means the CPU", advice)
    yield from _as_planned(facts, found[0])


def architectures(facts: Facts) -> Iterator[Finding]:
    """Checks that torch was built with code for the GPUs that ranks will use."""
    torch, found = facts.torch, known_gpus(facts)[: max(1, facts.ranks)]
    if torch is None or not found:
        return
    if torch.cuda is None:
        advice = f"install {builds_for(found[0].capability) or 'the default torch from pip, built for CUDA'}"
        yield Finding("error", "torch for CUDA", f"torch {torch.version} is a CPU-only build", advice)
        return
    for capability in sorted({gpu.capability for gpu in found}):
        sm = f"sm_{capability[0]}{capability[1]}"
        entry = runs_on(torch.architectures, capability)
        built = f"torch {torch.version} (CUDA {torch.cuda})"
        if not torch.architectures:
            yield Finding("warning", "compute capability", f"{built} does not list its architectures", "try a demo")
        elif entry is None:
            advice = f"install {builds_for(capability) or 'a newer torch that supports these GPUs'}"
            has = " ".join(torch.architectures)
            yield Finding("error", "compute capability", f"{built} has no code for {sm}, only {has}", advice)
        else:
            yield Finding("ok", "compute capability", f"{dotted(capability)}: {built} has code for it ({entry})")
            if entry.startswith("sm_") and builds_for(capability):
                advice = f"stay with {builds_for(capability)}"
                yield Finding("note", "upgrading torch", f"newer builds have no code for {sm}", advice)


def driver(facts: Facts) -> Iterator[Finding]:
    """Checks that the driver works and is new enough for torch's CUDA."""
    torch = facts.torch
    if torch is None or torch.cuda is None or not facts.gpus or not known_gpus(facts):
        return
    major = version(torch.cuda)[0]
    least = DRIVERS.get(major)
    if facts.tools.driver and least and version(facts.tools.driver) < version(least):
        problem = f"{facts.tools.driver}, but CUDA {torch.cuda} needs {least} or newer"
        yield Finding("error", "NVIDIA driver", problem, _driver_advice(facts.gpus[0].capability, major))
    elif not torch.gpus and facts.host.environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding("warning", "NVIDIA driver", "CUDA_VISIBLE_DEVICES hides all GPUs", "unset it")
    elif not torch.gpus:
        advice = "check nvidia-smi and the kernel log; start a container with its option for NVIDIA GPUs"
        yield Finding("error", "NVIDIA driver", f"torch sees no GPU: {torch.cuda_error}", advice)
    elif facts.tools.driver:
        yield Finding("ok", "NVIDIA driver", f"{facts.tools.driver}, for CUDA {torch.cuda}")


def precision(facts: Facts) -> Iterator[Finding]:
    """Checks which 16-bit precisions are native, which emulated and which DeepSpeed rejects."""
    found = known_gpus(facts)
    if not found and facts.plan and facts.plan.launch.accelerator == "cuda":
        return
    row = class_of(found[0]) if found else cpu_class(_computes_bf16(facts))
    wanted = {stage.precision for stage in facts.plan.stages} if facts.plan else set()
    for kind in ("fp16", "bf16"):
        accepted = getattr(facts.deepspeed, kind) if facts.deepspeed else None
        why = row.unfit.get(kind) or (_emulated_by_cpu(facts, row) if kind in row.emulated else None)
        needed = kind in wanted
        advice = f"set precision to {row.precision} in the recipe" if needed else ""
        if accepted is False and (found or needed):
            level: Level = "error" if needed else "note"
            yield Finding(level, kind, _refusal(why), advice)
        elif why:
            takes = "; DeepSpeed accepts it all the same" if accepted else ""
            yield Finding("warning" if needed else "note", kind, f"{why}{takes}", advice or f"use {row.precision}")
        else:
            yield Finding("ok", kind, "native on this device")


def triton(facts: Facts) -> Iterator[Finding]:
    """Checks whether torch.compile can generate kernels."""
    found = known_gpus(facts)
    if not found or facts.torch is None or facts.torch.cuda is None:
        return
    least = min(gpu.capability for gpu in found)
    if least < TRITON_LEAST:
        problem = f"not for compute capability {dotted(least)}: torch.compile refuses it"
        yield Finding("note", "Triton", problem, "nothing: the plain kernels are used")
    elif facts.torch.triton is None:
        yield Finding(
            "warning", "Triton", "not installed, or broken, so torch.compile has no kernels", "pip install triton"
        )
    elif least < TRITON_FULL:
        problem = f"{facts.torch.triton}, without tensor cores on compute capability {dotted(least)}"
        yield Finding("note", "Triton", problem, "expect torch.compile to fuse pointwise operations only")
    else:
        yield Finding("ok", "Triton", facts.torch.triton)


def _as_planned(facts: Facts, gpu: GpuFacts) -> Iterator[Finding]:
    """Compares the GPUs with what the plan assumes."""
    if facts.plan is None or facts.plan.launch.accelerator != "cuda":
        return
    planned, row = facts.plan.launch.device, class_of(gpu)
    if planned in DEVICE_CLASSES and planned != row.name:
        problem = f"planned for {planned}, but this is {row.name}"
        yield Finding("warning", "device class", problem, f"set launch.device to {row.name} and plan again")
    need = max(stage.memory_per_rank for stage in facts.plan.stages)
    if need > gpu.memory:
        problem = f"{gpu.memory / GiB:.0f} GiB, but the plan's estimate is {need / GiB:.1f}"
        yield Finding("warning", "GPU memory", problem, "set a smaller micro_batch, or a higher ZeRO stage")


def _computes_bf16(facts: Facts) -> bool:
    """Whether the CPU has bf16 instructions and, where measured, torch uses them."""
    slowdown = facts.torch.bf16_slowdown if facts.torch else None
    return bool(BF16_FLAGS & set(facts.host.cpu_flags)) and (slowdown is None or slowdown < 1)


def _emulated_by_cpu(facts: Facts, row: DeviceClass) -> str:
    capable = BF16_FLAGS & set(facts.host.cpu_flags)
    why = "this CPU could compute it, but torch emulates it" if capable else row.emulated["bf16"]
    slowdown = facts.torch.bf16_slowdown if facts.torch else None
    return why if slowdown is None else f"{why}; a matrix product takes {slowdown:.1f} times as long as in fp32"


def _refusal(why: str | None) -> str:
    words = "DeepSpeed rejects it here"
    return words if why is None else why if "DeepSpeed rejects" in why else f"{why}; {words}"


def _driver_advice(capability: Capability, major: int) -> str:
    old = any(first <= capability <= last for first, last, _ in BUILDS.values())
    branch = f"branch {LAST_DRIVER}, the last one for these GPUs" if old else "a newer one"
    return f"install {branch}, or a torch built for a CUDA before {major}"


def _described(gpu: GpuFacts) -> str:
    return f"{gpu.name} ({class_of(gpu).name}, {gpu.memory / GiB:.0f} GiB, {dotted(gpu.capability)})"


def _counted(names: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, names.count(name)) for name in dict.fromkeys(names)]
