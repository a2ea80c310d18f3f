"""The values a stage can be tuned over on this machine, and why others are excluded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stacking.deepspeed_config import ds_config
from stacking.hardware.presets import Compiled
from stacking.planning.plan import Plan, StagePlan
from stacking.tune.candidate import DIMENSIONS, Candidate, Offload, Setting

_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class SpaceFacts:
    """The facts that decide which values make sense."""

    cuda: bool
    ranks: int
    device: str
    """The device class."""
    has_compiler: bool = True
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    compiled: Compiled = "possible"
    """How torch.compile works on the device, according to the plan."""


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
    """Collect the facts from this machine and the plan."""
    compiler = any(shutil.which(name) for name in _COMPILERS)
    return SpaceFacts(
        plan.launch.accelerator == "cuda", stage.ranks, plan.launch.device, compiler, plan.launch.compiled
    )


def space_of(stage: StagePlan, facts: SpaceFacts) -> Space:
    """Return the values available to ``stage``."""
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
    """Return the candidate that a planned stage uses."""
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
    """Return divisors of a rank's ``share`` of an update, including ``planned``, each about twice the previous one.

    Each divides the next, so that one number of sequences suits all of them.
    """
    below, above = _ladder(planned), _ladder(share // planned)
    return (*below, *(planned * factor for factor in above[1:]))


def _ladder(number: int) -> list[int]:
    """Return divisors of ``number`` from 1 to itself, each dividing the next, in steps as close to 2 as possible."""
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


def _one_rank(value: int, facts: SpaceFacts) -> str:
    return "one rank cannot shard its state" if facts.ranks == 1 and value > 1 else ""


def _cpu_offload(value: str, facts: SpaceFacts) -> str:
    return "" if facts.cuda else "everything is in the host's memory already"


def _compiles(value: bool, facts: SpaceFacts) -> str:
    if facts.compiled == "refused":
        return "Triton, which torch.compile needs, requires compute capability 7.0 or later"
    return "" if facts.cuda or facts.has_compiler else f"torch.compile needs one of {', '.join(_COMPILERS)} here"


_REFUSALS: Mapping[str, Callable[[Any, SpaceFacts], str]] = {
    "zero_stage": _one_rank,
    "offload": _cpu_offload,
    "compile": _compiles,
}


def _refusal(name: str, value: Any, facts: SpaceFacts) -> str:
    """Return why a value is unavailable; empty if it is available."""
    return _REFUSALS[name](value, facts) if name in _REFUSALS and value != DIMENSIONS[name][0] else ""
