"""Explains each tuned value by the measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stacking.deepspeed_config.ds_config import Json
from stacking.planning.plan import StagePlan
from stacking.terminal.units import counted
from stacking.tune.candidate import OFFLOAD_WORDS
from stacking.tune.record import Tried
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
    "zero_stage": lambda value: f"ZeRO {value}",
    "offload": lambda value: OFFLOAD_WORDS[value],
    "compile": lambda value: "compiled" if value else "not compiled",
    "activation_checkpointing": lambda value: "checkpointing" if value else "no checkpointing",
}


def reasons(stage: StagePlan, config: Json, found: SearchResult, final: RunoffResult) -> dict[str, str]:
    """Return a reason for every value of a tuned configuration, by key."""
    winner = final.winner.candidate
    accumulation = stage.global_batch // (winner.micro_batch * stage.ranks)
    why = {
        _ACROSS[0]: "the recipe's batch, which tuning never changes",
        _ACROSS[1]: _micro_batch(found, final),
        _ACROSS[2]: f"{stage.global_batch} = {winner.micro_batch} x {accumulation} x {counted(stage.ranks, 'rank')}",
    }
    why |= {key: _dimension(name, found, final) for name, key in KEYS.items()}
    if winner.setting.offload == "none":
        del why[KEYS["offload"]]
        why["zero_optimization"] = f"no offload: {_dimension('offload', found, final)}"
    tuned = {"stacking", *_ACROSS}
    untouched = [key for key in config if key not in tuned and key != "zero_optimization"]
    zero = [f"zero_optimization.{key}" for key in config["zero_optimization"] if key != "stage"]
    why |= dict.fromkeys([*untouched, *(key for key in zero if "offload" not in key)], "as in the recipe")
    if stage.precision in config:
        why[stage.precision] = "the recipe's precision, which tuning never changes"
    return why


def _micro_batch(found: SearchResult, final: RunoffResult) -> str:
    """Compare with other micro-batches, in the winner's setting or the one in which most were tried."""
    own = final.winner.candidate
    alike = [tried for tried in found.measured if tried.candidate.micro_batch == own.micro_batch]
    where = max([final.winner, *alike], key=lambda tried: len(_rungs(found, tried)))
    parts = [f"{rung.candidate.micro_batch} {_against(rung, where, final)}" for rung in _rungs(found, where)]
    at = "" if where.candidate == own else f"with {where.candidate.setting.words}: "
    return at + _sentence(where, parts)


def _rungs(found: SearchResult, tried: Tried) -> list[Tried]:
    """Return the same setting with every micro-batch considered, ascending."""
    own = tried.candidate
    others = [one for one in found.tried if one.candidate.setting == own.setting and one.candidate != own]
    return sorted(others, key=lambda one: one.candidate.micro_batch)


def _dimension(name: str, found: SearchResult, final: RunoffResult) -> str:
    """Compare the winner with other values of one dimension, or say why they were not tried.

    The comparison uses the setting in which most values were tried: the winner's own, or another one with its value of
    the dimension.
    """
    winner = final.winner
    value = getattr(winner.candidate.setting, name)
    alike = [tried for tried in found.measured if getattr(tried.candidate.setting, name) == value]
    where = max([winner, *alike], key=lambda tried: len(_twins(name, found, tried)))
    if twins := _twins(name, found, where):
        at = "" if where.candidate == winner.candidate else f"at {where.candidate.words}: "
        words = [_VALUES[name](getattr(twin.candidate.setting, name)) for twin in twins]
        parts = [f"{word} {_against(twin, where, final)}" for word, twin in zip(words, twins, strict=True)]
        return at + _sentence(where, parts)
    others = [tried for tried in found.tried if getattr(tried.candidate.setting, name) != value]
    if others:
        return _elsewhere(others, final)
    return found.space.left_out.get(name) or _not_tried(name, found)


def _elsewhere(others: list[Tried], final: RunoffResult) -> str:
    """Describe the fastest candidate that differs in more than the dimension."""
    fastest = max(others, key=lambda tried: tried.tokens_per_second)
    words = f"{fastest.candidate.words} {_against(fastest, final.winner, final)}"
    if fastest.result == "measured":
        return _sentence(final.winner, [words])
    return f"nothing else could be measured: {words}"


def _twins(name: str, found: SearchResult, tried: Tried) -> list[Tried]:
    """Return the same candidate with every value of one dimension considered."""
    own = getattr(tried.candidate.setting, name)
    changed = [tried.candidate.changed(**{name: value}) for value in found.space.values[name] if value != own]
    return [twin for candidate in changed if (twin := found.of(candidate)) is not None]


def _not_tried(name: str, found: SearchResult) -> str:
    if name in ("offload", "activation_checkpointing") and not found.checked_memory:
        return "it saves memory at the cost of time, and memory did not limit the micro-batch"
    return f"not tried: {found.stopped}" if found.stopped else "the recipe's own; nothing else was tried"


def _sentence(winner: Tried, parts: list[str]) -> str:
    speed = f"{winner.tokens_per_second:,.0f} tokens/s"
    return f"{speed}; {', '.join(parts)}" if parts else f"{speed}; nothing else was tried"


def _against(tried: Tried, reference: Tried, final: RunoffResult) -> str:
    """Return a candidate's speed relative to another: from the runoff if both were in it, else from the search."""
    if tried.result != "measured":
        return {"out-of-memory": "ran out of memory", "failed": "failed", "pruned": "cannot fit"}[tried.result]
    finalists = {final.winner.candidate, final.runner_up.candidate if final.runner_up else None}
    in_final = final.lead is not None and {tried.candidate, reference.candidate} == finalists
    ratio = 1 / final.lead if final.lead and in_final else tried.tokens_per_second / reference.tokens_per_second
    return f"{100 * (ratio - 1):+.1f} %{' in the runoff' * in_final}"


def gain(found: SearchResult, final: RunoffResult) -> float | None:
    """Return the winner's tokens/s relative to the recipe's own setting; None if that was not measured."""
    base, winner = found.of(found.space.base), final.winner
    if base is None or base.result != "measured":
        return None
    if winner.candidate == base.candidate:
        return 1.0
    if final.lead and final.runner_up and final.runner_up.candidate == base.candidate:
        return final.lead
    return winner.tokens_per_second / base.tokens_per_second
