"""What a stage can be tuned over on this machine, and why the rest of the table is left out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stacking.deepspeed_config import ds_config
from stacking.hardware.presets import Compiled
from stacking.planning.plan import Plan, Stage
from stacking.tune.candidate import DIMENSIONS, Candidate, Offload, Setting

_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Facts:
    """What decides which values make sense."""

    cuda: bool
    ranks: int
    device: str
    """The class of device."""
    has_compiler: bool = True
    """Whether a C++ compiler is there, which torch.compile needs on a CPU."""
    compiled: Compiled = "possible"
    """What torch.compile does on the device, as the plan has it."""


@dataclass(frozen=True)
class Space:
    """The values that are open to one stage."""

    base: Candidate
    """What the recipe does untuned."""
    micro_batches: tuple[int, ...]
    """Ascending; each divides the next, and the last one is a rank's whole share of an update."""
    values: Mapping[str, tuple[Any, ...]]
    """Per dimension; the recipe's own value is always among them."""
    left_out: Mapping[str, str]
    """Dimension with values that are not open: why."""


def facts_of(plan: Plan, stage: Stage) -> Facts:
    """What this machine and the plan say."""
    compiler = any(shutil.which(name) for name in _COMPILERS)
    return Facts(plan.launch.accelerator == "cuda", stage.ranks, plan.launch.device, compiler, plan.launch.compiled)


def space_of(stage: Stage, facts: Facts) -> Space:
    """The values that are open to ``stage``."""
    base = base_candidate(stage)
    values, left_out = {}, {}
    for name, all_values in DIMENSIONS.items():
        own = getattr(base.setting, name)
        reasons = {value: _refusal(name, value, facts) for value in all_values if value != own}
        values[name] = tuple(value for value in all_values if not reasons.get(value))
        if refused := [reason for reason in reasons.values() if reason]:
            left_out[name] = refused[0]
    return Space(base, micro_batches(stage.global_batch // stage.ranks, stage.micro_batch), values, left_out)


def base_candidate(stage: Stage) -> Candidate:
    """What a planned stage does."""
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
    """A ladder of divisors of a rank's ``share`` of an update, through ``planned``, each about twice the one below.

    Each divides the next, so that one number of sequences suits all of them.
    """
    below, above = _ladder(planned), _ladder(share // planned)
    return (*below, *(planned * factor for factor in above[1:]))


def _ladder(number: int) -> list[int]:
    """Divisors of ``number`` from 1 to itself, each a divisor of the next, in steps as near to 2 as there are."""
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


def _one_rank(value: int, facts: Facts) -> str:
    return "one rank has nobody to divide the state with" if facts.ranks == 1 and value > 1 else ""


def _cpu_offload(value: str, facts: Facts) -> str:
    return "" if facts.cuda else "everything is in the host's memory already"


def _compiles(value: bool, facts: Facts) -> str:
    if facts.compiled == "refused":
        return "Triton, which torch.compile needs, takes compute capability 7.0 or more"
    return "" if facts.cuda or facts.has_compiler else f"torch.compile needs one of {', '.join(_COMPILERS)} here"


_REFUSALS: Mapping[str, Callable[[Any, Facts], str]] = {
    "zero_stage": _one_rank,
    "offload": _cpu_offload,
    "compile": _compiles,
}


def _refusal(name: str, value: Any, facts: Facts) -> str:
    """Why a value is not open; nothing where it is."""
    return _REFUSALS[name](value, facts) if name in _REFUSALS and value != DIMENSIONS[name][0] else ""
