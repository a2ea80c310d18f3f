"""Writes the results of a tuning: a DeepSpeed configuration per stage, a recipe that names them, and a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stacking.config.recipe import Recipe
from stacking.deepspeed_config import ds_config
from stacking.deepspeed_config.ds_config import Json
from stacking.deepspeed_config.settle import without_rates
from stacking.planning.plan import Plan, StagePlan
from stacking.storage.files import write_atomically
from stacking.terminal.units import counted, duration
from stacking.tune.candidate import Tried
from stacking.tune.explain import gain, reasons
from stacking.tune.runoff import RunoffResult
from stacking.tune.search import SearchResult
from stacking.tune.variant import Variants

_NOISY = 0.1
PAGE, PICTURE = "tune.md", "search.png"


class TunedStage(NamedTuple):
    """One stage and its search."""

    stage: StagePlan
    found: SearchResult
    final: RunoffResult | None
    """None: nothing could be measured."""


def tuned_configs(variants: Variants, tuned: Sequence[TunedStage]) -> dict[int, Json]:
    """Returns the tuned DeepSpeed configuration, including reasons, of each stage that has a winner, by index."""
    configs = {}
    for stage, found, final in tuned:
        if final is not None:
            config = variants.config(stage.index, final.winner.candidate)
            config["stacking"]["why"] = reasons(stage, config, found, final)
            configs[stage.index] = config
    return configs


def write_recipe(folder: Path, variants: Variants, names: Mapping[int, str]) -> Path:
    """Writes the recipe with the tuned configurations' names, otherwise unchanged."""
    recipe = variants.recipe
    changes: dict[str, Any] = {
        "stages": tuple(
            variants.tuned_stage(i, names[i]) if i in names else _inlined_stage(recipe, i)
            for i in range(len(recipe.stages))
        ),
        "ds_config": _inlined(recipe, recipe.ds_config, recipe.key("ds_config")),
        "data": recipe.data.model_copy(update={"path": _absolute(recipe.data.path)}),
        "start": _absolute(recipe.start),
    }
    path = folder / f"{recipe.file.stem}.tuned.yaml"
    head = f"# Written by `stacking tune {recipe.file.name}`; {PAGE} explains each value\n"
    write_atomically(path, head + recipe.model_copy(update=changes).to_yaml())
    return path


def page(plan: Plan, tuned: Sequence[TunedStage], names: Mapping[int, str], configs: Mapping[int, Json]) -> str:
    """Returns ``tune.md``: the winner, the reasons and the trials of each stage, as Markdown."""
    parts = [
        f"# {plan.name}, tuned",
        f"![the search]({PICTURE})",
        "Tokens/s are summed over all ranks and include padding. The global batch, the precision, the optimizer and "
        "the learning rates are the recipe's. A reason compares with the candidate that differs in nothing else or, "
        "where that was not tried, with the fastest one of the other value.",
    ]
    for one in tuned:
        parts += _section(one)
        if one.stage.index in names:
            name = names[one.stage.index]
            parts += [f"Reason for each value ([{name}]({name})):", _why(configs[one.stage.index])]
        parts.append(_trials(one.found, one.final.winner if one.final else None))
    return "\n\n".join(parts) + "\n"


def _section(one: TunedStage) -> list[str]:
    stage, found, final = one
    counts = [counted(stage.layers, "layer"), f"{counted(stage.global_batch, 'sequence')} per update"]
    parts = [f"## {stage.name}: {', '.join([*counts, counted(stage.ranks, 'rank')])}"]
    if final is None:
        parts.append("Nothing could be measured, so the recipe's own setting is kept.")
    else:
        speed = f"{final.winner.tokens_per_second:,.0f} tokens/s"
        parts.append(f"**{final.winner.candidate.words}**: {speed}{_gain(found, final)}. Chosen as {final.reason}.")
    noisiest = max((tried.spread or 0.0 for tried in found.measured), default=0.0)
    if noisiest > _NOISY:
        parts.append(
            f"The quartiles of the steps are up to {noisiest:.0%} apart: the machine was busy or an update too short."
        )
    if found.stopped:
        parts.append(f"The search ended early: {found.stopped}.")
    return parts


def _gain(found: SearchResult, final: RunoffResult) -> str:
    faster = gain(found, final)
    if faster is None:
        return ""
    return ", the recipe's own setting" if faster == 1 else f", {faster:.2f} times the recipe's own setting"


def _why(config: Json) -> str:
    why: Mapping[str, str] = config["stacking"]["why"]
    rows = [f"| `{key}` | {_value(config, key)} | {reason} |" for key, reason in why.items()]
    return "\n".join(["| key | value | reason |", "|---|---|---|", *rows])


def _value(config: Json, key: str) -> str:
    """Renders the value at a dotted key for a table cell; empty for a section whose values have rows of their own."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None or key == "zero_optimization" else f"`{json.dumps(value)}`"


def _trials(found: SearchResult, winner: Tried | None) -> str:
    rows = ["| micro-batch | setting | tokens/s | update | spread | memory | |", "|--:|---|--:|--:|--:|--:|---|"]
    for tried in found.tried:
        marks = ["**chosen**"] * bool(winner and tried.candidate == winner.candidate)
        marks += ["the recipe's own"] * (tried.candidate == found.space.base)
        marks += [tried.message.partition(" (log:")[0].replace("|", "/")] * bool(tried.message)
        speed = f"{tried.tokens_per_second:,.0f}" if tried.result == "measured" else tried.result
        memory = f"{tried.memory_bytes / 2**30:.2f} GiB" if tried.memory_bytes else ""
        spread = f"{tried.spread:.1%}" if tried.spread is not None else ""
        took = _took(tried.update_seconds) if tried.update_seconds else ""
        own = tried.candidate
        rows.append(
            f"| {own.micro_batch} | {own.setting.words} | {speed} | {took} | {spread} | {memory} | {'; '.join(marks)} |"
        )
    return "\n".join(rows)


def _took(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)


def _inlined_stage(recipe: Recipe, index: int) -> Any:
    stage = recipe.stages[index]
    content = _inlined(recipe, stage.ds_config, recipe.key("stages", index, "ds_config"))
    return stage.model_copy(update={"ds_config": content})


def _inlined(recipe: Recipe, reference: Any, where: str) -> Any:
    """Returns a configuration's content in place of its path, which may be relative to the recipe."""
    if reference is None:
        return None
    return without_rates(ds_config.load(reference, where, recipe.file.parent).content)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())
