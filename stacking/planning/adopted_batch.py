"""Chooses the batch of an adopted configuration for a number of ranks that it may not have been written for."""

from __future__ import annotations

from typing import Any, NamedTuple

from stacking.config.recipe import Recipe
from stacking.deepspeed_config.ds_config import BatchKeys
from stacking.deepspeed_config.ds_facts import BATCH_KEYS
from stacking.deepspeed_config.findings import Verdict
from stacking.planning.batch import largest_divisor, recipe_total
from stacking.terminal.units import counted

USUAL = 256
"""Default sequences per update: Devlin et al., 2019, appendix A.2."""
_TOTAL, _MICRO, _ACCUMULATION = BATCH_KEYS


class AdoptedBatch(NamedTuple):
    """The batch that the recipe gets."""

    stages: list[dict[str, Any]]
    """The batch keys of each stage."""
    rows: dict[str, tuple[Verdict, str, str]]
    """Per key of the configuration: verdict, problem, action."""


def adopt_batch(recipe: Recipe, wanted: BatchKeys, fixed: int | None, devices: int) -> AdoptedBatch:
    """Chooses the batch, keeping the size of an update if possible.

    Args:
        wanted: what the configuration says.
        fixed: the requested number of ranks; None: as many of the ``devices`` as divide the update.
    """
    stated = recipe_total(recipe, 0)
    total = wanted.total or stated
    ranks = fixed or (largest_divisor(total, devices) if total else devices)
    rows: dict[str, tuple[Verdict, str, str]] = {}
    if total is None:
        total = (wanted.micro or 1) * (wanted.accumulation or 1) * ranks if wanted.micro else _multiple(USUAL, ranks)
        problem = "" if wanted.micro else "no key says how large an update is"
        done = f"stages[0].batch_sequences: {total}"
        rows[_TOTAL] = ("moved to the recipe", problem, done if wanted.micro else f"{done}, as in Devlin et al.")
    elif total % ranks:
        near = _multiple(total, ranks)
        problem = f"{total} sequences do not divide over {ranks} ranks"
        rows[_TOTAL] = ("impossible", problem, f"stages[0].batch_sequences: {near}, the nearest that does")
        total = near
    else:
        rows[_TOTAL] = ("moved to the recipe", "", f"stages[0].batch_sequences: {total}")
    micro = largest_divisor(total // ranks, wanted.micro) if wanted.micro else None
    if micro is not None:
        same = micro == wanted.micro
        problem = "" if same else f"{wanted.micro} does not divide the {counted(total // ranks, 'sequence')} of a rank"
        rows[_MICRO] = ("moved to the recipe" if same else "translated", problem, f"stages[].micro_batch: {micro}")
    else:
        rows[_MICRO] = ("without meaning here", "", "the plan chooses the largest that fits")
    rows[_ACCUMULATION] = ("without meaning here", "", "follows from the batch, the micro-batch and the ranks")
    return AdoptedBatch(_stages(recipe, total, micro, ranks), rows)


def _stages(recipe: Recipe, total: int, micro: int | None, ranks: int) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = []
    for i in range(len(recipe.stages)):
        own = recipe_total(recipe, i) if i else None
        size = own or total
        stage: dict[str, Any] = {} if i else {"batch_sequences": total}
        if micro is not None and size % ranks == 0:
            stage["micro_batch"] = largest_divisor(size // ranks, micro)
        stages.append(stage)
    return stages


def _multiple(total: int, ranks: int) -> int:
    return max(1, round(total / ranks)) * ranks
