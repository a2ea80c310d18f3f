"""Explains each tuned value by the measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stacking.deepspeed_config.ds_config import Json
from stacking.planning.plan import StagePlan
from stacking.terminal.units import counted
from stacking.tune.candidate import OFFLOAD_WORDS, Candidate, Tried
from stacking.tune.runoff import RunoffResult
from stacking.tune.search import SearchResult

KEYS: Mapping[str, str] = {
    "zero_stage": "zero_optimization.stage",
    "offload": "zero_optimization.offload",
    "compile": "stacking.compile",
    "activation_checkpointing": "stacking.activation_checkpointing",
}
"""Where each dimension is in the DeepSpeed configuration."""
_ACROSS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_VALUES: Mapping[str, Callable[[Any], str]] = {
    "micro_batch": str,
    "zero_stage": lambda value: f"ZeRO {value}",
    "offload": lambda value: OFFLOAD_WORDS[value],
    "compile": lambda value: "compiled" if value else "not compiled",
    "activation_checkpointing": lambda value: "checkpointing" if value else "no checkpointing",
}


def reasons(stage: StagePlan, config: Json, found: SearchResult, final: RunoffResult) -> dict[str, str]:
    """Returns a sentence for every key of ``config``, the tuned configuration of ``stage``."""
    winner = final.winner.candidate
    accumulation = stage.global_batch // (winner.micro_batch * stage.ranks)
    why = {
        _ACROSS[0]: "the recipe's batch, which tuning never changes",
        _ACROSS[1]: _beside("micro_batch", found, final) or "nothing else was tried",
        _ACROSS[2]: f"{stage.global_batch} = {winner.micro_batch} x {accumulation} x {counted(stage.ranks, 'rank')}",
    }
    why |= {key: _dimension(name, found, final) for name, key in KEYS.items()}
    if winner.setting.offload == "none":
        why["zero_optimization"] = f"no offload: {why.pop(KEYS['offload'])}"
    tuned = {"stacking", "zero_optimization", *_ACROSS}
    zero = [
        f"zero_optimization.{key}" for key in config["zero_optimization"] if key != "stage" and "offload" not in key
    ]
    why |= dict.fromkeys([*(key for key in config if key not in tuned), *zero], "as in the recipe")
    if stage.precision in config:
        why[stage.precision] = "the recipe's precision, which tuning never changes"
    return why


def _dimension(name: str, found: SearchResult, final: RunoffResult) -> str:
    """Compares the winner with other values of one dimension, or says why they were not tried."""
    if beside := _beside(name, found, final):
        return beside
    if name in found.space.left_out:
        return found.space.left_out[name]
    if name in ("offload", "activation_checkpointing") and not found.checked_memory:
        return "it saves memory at the cost of time, and memory did not limit the micro-batch"
    return f"not tried: {found.stopped}" if found.stopped else "the recipe's own; nothing else was tried"


def _beside(name: str, found: SearchResult, final: RunoffResult) -> str:
    """Compares the winner with every other value of one dimension; empty if there is no other value.

    The comparison is with the candidate that differs in nothing else or, without a trial of it, with the fastest one.
    """
    winner = final.winner.candidate

    def is_nearer(tried: Tried) -> tuple[bool, float]:
        alone = winner.changed(**{name: _value(name, tried.candidate)}) == tried.candidate
        return alone and tried.result != "pruned", tried.tokens_per_second

    nearest = {_value(name, tried.candidate): tried for tried in sorted(found.tried, key=is_nearer)}
    del nearest[_value(name, winner)]
    others = [f"{_VALUES[name](value)} {_against_winner(nearest[value], final)}" for value in sorted(nearest)]
    return f"{final.winner.tokens_per_second:,.0f} tokens/s; {', '.join(others)}" if others else ""


def _value(name: str, candidate: Candidate) -> Any:
    return candidate.micro_batch if name == "micro_batch" else getattr(candidate.setting, name)


def _against_winner(tried: Tried, final: RunoffResult) -> str:
    """Returns a candidate's speed relative to the winner's: from the runoff if it was in it, else from the search."""
    if tried.result != "measured":
        return {"out-of-memory": "ran out of memory", "failed": "failed", "pruned": "cannot fit"}[tried.result]
    in_runoff = final.lead is not None and tried == final.runner_up
    ratio = 1 / final.lead if final.lead and in_runoff else tried.tokens_per_second / final.winner.tokens_per_second
    return f"{100 * (ratio - 1):+.1f} %{' in the runoff' * in_runoff}"


def gain(found: SearchResult, final: RunoffResult) -> float | None:
    """Returns the winner's tokens/s relative to the recipe's own setting; None if that was not measured."""
    base, winner = found.of(found.space.base), final.winner
    if base is None or base.result != "measured":
        return None
    if winner.candidate == base.candidate:
        return 1.0
    if final.lead and final.runner_up and final.runner_up.candidate == base.candidate:
        return final.lead
    return winner.tokens_per_second / base.tokens_per_second
