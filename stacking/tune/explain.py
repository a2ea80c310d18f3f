"""Why each value is what it is, from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stacking.ds_config import Json
from stacking.plan import Stage
from stacking.tune.final import Final
from stacking.tune.record import Tried
from stacking.tune.search import Found

KEYS: Mapping[str, str] = {
    "zero_stage": "zero_optimization.stage",
    "offload": "zero_optimization.offload",
    "compile": "stacking.compile",
    "activation_checkpointing": "stacking.activation_checkpointing",
}
"""Dimension: where it stands in the configuration."""
_ACROSS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_VALUES: Mapping[str, Callable[[Any], str]] = {
    "zero_stage": lambda value: f"ZeRO {value}",
    "offload": lambda value: "no offload" if value == "none" else f"offloading {value.replace('+', ' and ')}",
    "compile": lambda value: "compiled" if value else "not compiled",
    "activation_checkpointing": lambda value: "checkpointing" if value else "no checkpointing",
}


def reasons(stage: Stage, config: Json, found: Found, final: Final) -> dict[str, str]:
    """A reason for every value of a tuned configuration."""
    winner = final.winner.candidate
    accumulation = stage.global_batch // (winner.micro_batch * stage.ranks)
    why = {
        _ACROSS[0]: "the recipe's batch, which tuning never changes",
        _ACROSS[1]: _micro_batch(found, final.winner),
        _ACROSS[2]: f"{stage.global_batch} = {winner.micro_batch} x {accumulation} x {stage.ranks} ranks",
    }
    why |= {key: _dimension(name, found, final.winner) for name, key in KEYS.items()}
    if winner.setting.offload == "none":
        del why[KEYS["offload"]]
        why["zero_optimization"] = f"no offload: {_dimension('offload', found, final.winner)}"
    tuned = {"stacking", *_ACROSS}
    untouched = [key for key in config if key not in tuned and key != "zero_optimization"]
    zero = [f"zero_optimization.{key}" for key in config["zero_optimization"] if key != "stage"]
    why |= dict.fromkeys([*untouched, *(key for key in zero if "offload" not in key)], "as in the recipe")
    if stage.precision in config:
        why[stage.precision] = "the recipe's precision, which tuning never changes"
    return why


def _micro_batch(found: Found, winner: Tried) -> str:
    """How the other micro-batches of the same setting did."""
    own = winner.candidate
    others = [tried for tried in found.tried if tried.candidate.setting == own.setting and tried.candidate != own]
    parts = [f"{tried.candidate.micro_batch} {_against(tried, winner)}" for tried in _by_micro_batch(others)]
    return _sentence(winner, parts)


def _dimension(name: str, found: Found, winner: Tried) -> str:
    """How the winner did with other values of one dimension, else why there were no trials of them."""
    value = getattr(winner.candidate.setting, name)
    others = [
        found.of(winner.candidate.changed(**{name: other})) for other in found.space.values[name] if other != value
    ]
    tried = [other for other in others if other is not None]
    parts = [f"{_VALUES[name](getattr(t.candidate.setting, name))} {_against(t, winner)}" for t in tried]
    if not parts and (elsewhere := _nearest(name, found, winner)):
        parts = [elsewhere]
    if parts:
        return _sentence(winner, parts)
    return found.space.left_out.get(name) or _not_tried(name, found)


def _nearest(name: str, found: Found, winner: Tried) -> str:
    """The dimension's comparison at another micro-batch or setting, where the winner's own was not made."""
    value = getattr(winner.candidate.setting, name)
    for tried in found.measured:
        if getattr(tried.candidate.setting, name) == value:
            for other in found.space.values[name]:
                twin = found.of(tried.candidate.changed(**{name: other}))
                if other != value and twin is not None:
                    return f"at {tried.candidate.words}: {_VALUES[name](other)} {_against(twin, tried)}"
    return ""


def _not_tried(name: str, found: Found) -> str:
    if name in ("offload", "activation_checkpointing") and not found.checked_memory:
        return "it saves memory at the price of time, and memory did not stop the micro-batch from growing"
    return f"not tried: {found.stopped}" if found.stopped else "the recipe's own; nothing else was tried"


def _sentence(winner: Tried, parts: list[str]) -> str:
    speed = f"{winner.tokens_per_second:,.0f} tokens/s"
    return f"{speed}; {', '.join(parts)}" if parts else f"{speed}; nothing else was tried"


def _against(tried: Tried, winner: Tried) -> str:
    if tried.result == "measured":
        return f"{100 * (tried.tokens_per_second / winner.tokens_per_second - 1):+.1f} %"
    return {"out-of-memory": "ran out of memory", "failed": "failed", "pruned": "cannot fit"}[tried.result]


def _by_micro_batch(tried: list[Tried]) -> list[Tried]:
    return sorted(tried, key=lambda one: one.candidate.micro_batch)


def gain(found: Found, final: Final) -> float | None:
    """Tokens/s of the winner over those of the recipe's own setting; None where that one was not measured."""
    base, winner = found.of(found.space.base), final.winner
    if base is None or base.result != "measured":
        return None
    if winner.candidate == base.candidate:
        return 1.0
    if final.lead and final.runner_up and final.runner_up.candidate == base.candidate:
        return final.lead
    return winner.tokens_per_second / base.tokens_per_second
