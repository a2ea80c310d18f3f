"""Finds what a stage can be tuned over on this machine: values, why others are excluded, and the memory of a rank."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacking.deepspeed_config import ds_config
from stacking.hardware.machine import Machine
from stacking.hardware.presets import Compiled
from stacking.planning.plan import Plan, StagePlan
from stacking.tune.candidate import DIMENSIONS, Candidate, Offload, Setting

_COMPILERS = ("c++", "g++", "clang++")
_RUNTIME = {"cpu": 700 << 20, "cuda": 800 << 20}
"""Bytes that a rank uses before it holds a model: libraries on a CPU, the CUDA context on a GPU."""
_TRUST = {"cpu": 0.9, "cuda": 1.2}
"""The share of the memory above which an estimate rules out a candidate. The estimates err on both sides. A GPU out of
memory fails one trial, so candidates near the limit are tried; a host out of memory kills processes."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class SpaceFacts:
    """The facts that decide which values make sense."""

    cuda: bool
    ranks: int
    has_compiler: bool = True
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    compiled: Compiled = "possible"
    """How torch.compile works on the device, according to the plan."""
    lamb: bool = False
    """Whether the optimizer is LAMB."""


@dataclass(frozen=True)
class Space:
    """The values available to one stage."""

    base: Candidate
    """The recipe's own candidate, untuned."""
    micro_batches: tuple[int, ...]
    """Ascending; each divides the next, and the last is a rank's whole share of an update."""
    values: Mapping[str, tuple[Any, ...]]
    """Values per dimension, always including the recipe's own."""
    left_out: Mapping[str, str]
    """Reasons by dimension for values that are unavailable."""


def facts_of(plan: Plan, stage: StagePlan) -> SpaceFacts:
    """Returns the facts about a stage of ``plan`` on this machine."""
    compiler = any(shutil.which(name) for name in _COMPILERS)
    return SpaceFacts(
        plan.launch.accelerator == "cuda", stage.ranks, compiler, plan.launch.compiled, plan.optimizer.type == "lamb"
    )


def space_of(stage: StagePlan, facts: SpaceFacts) -> Space:
    """Returns the values that can be measured for ``stage``, and why others are unavailable."""
    base = base_candidate(stage)
    values, left_out = {}, {}
    for name, all_values in DIMENSIONS.items():
        own = getattr(base.setting, name)
        reasons = {value: _refusal(name, value, facts) for value in all_values if value != own}
        values[name] = tuple(value for value in all_values if not reasons.get(value))
        if refused := [reason for reason in reasons.values() if reason]:
            left_out[name] = refused[0]
    return Space(base, micro_batches(stage.global_batch // stage.ranks, stage.micro_batch), values, left_out)


def base_candidate(stage: StagePlan) -> Candidate:
    """Returns the candidate that a planned stage uses."""
    return Candidate(
        micro_batch=stage.micro_batch,
        setting=Setting(
            zero_stage=stage.zero_stage,
            compile=stage.kernels.compile,
            activation_checkpointing=stage.kernels.activation_checkpointing,
            offload=_OFFLOADS[ds_config.offloads(stage.ds_config)],
        ),
    )


def micro_batches(share: int, planned: int) -> tuple[int, ...]:
    """Returns divisors of a rank's ``share`` of an update, including ``planned``, each about twice the previous one.

    Each divides the next, so that one number of sequences suits all of them.
    """
    below, above = _ladder(planned), _ladder(share // planned)
    return (*below, *(planned * factor for factor in above[1:]))


def _ladder(number: int) -> list[int]:
    """Returns divisors of ``number`` from 1 to itself, each dividing the next, in steps as close to 2 as possible."""
    rungs = [1]
    while rungs[-1] < number:
        left = number // rungs[-1]
        rungs.append(rungs[-1] * next(factor for factor in range(2, left + 1) if left % factor == 0))
    return rungs


_OFFLOADS: Mapping[tuple[str, ...], Offload] = {
    (): "none",
    ("optimizer",): "optimizer",
    ("optimizer", "param"): "optimizer+param",
    ("param",): "optimizer+param",
}


def _refusal(name: str, value: Any, facts: SpaceFacts) -> str:
    """Returns why a value is unavailable; empty if it is available, as the first value of a dimension always is."""
    if value == DIMENSIONS[name][0]:
        return ""
    if name in ("zero_stage", "offload") and facts.lamb:
        return "LAMB needs whole tensors, which ZeRO cuts"
    if name == "zero_stage" and facts.ranks == 1 and value > 1:
        return "one rank cannot shard its state"
    if name == "offload" and not facts.cuda:
        return "everything is in the host's memory already"
    if name == "compile" and facts.compiled == "refused":
        return "Triton, which torch.compile needs, requires compute capability 7.0 or later"
    if name == "compile" and not facts.cuda and not facts.has_compiler:
        return f"torch.compile needs one of {', '.join(_COMPILERS)} here"
    return ""


def memory_needed(plan: Plan, stage: StagePlan) -> int:
    """Returns the bytes on one rank's device while ``stage`` trains."""
    return stage.memory_per_rank + _RUNTIME[plan.launch.accelerator]


def memory_limit(plan: Plan, machine: Machine, ranks_on_host: int) -> int | None:
    """Returns the bytes that an estimate may reach; None if the device's memory is unknown.

    On a CPU the ranks of a host share its memory, or what its control group allows.
    """
    if plan.launch.accelerator == "cuda":
        return int(machine.memory * _TRUST["cuda"]) if machine.accelerators else None
    return int(min(machine.memory, _allowed(_CGROUP)) * _TRUST["cpu"]) // ranks_on_host


def _allowed(path: Path) -> int:
    """Returns the limit in a control group's file; a number larger than any host's memory if unlimited."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 1 << 60
