"""Merges recipe and configurations: the JSON's value applies where the recipe does not set one.

A recipe sets what is in its file (pydantic's ``model_fields_set``), not its defaults.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stacking.config.reading import shown
from stacking.config.recipe import (
    LearningRate,
    Optimizer,
    Recipe,
    Schedule,
    StagesSchedule,
    WarmupCosineLR,
    WarmupStableDecay,
)
from stacking.deepspeed_config.ds_config import UserConfig
from stacking.deepspeed_config.examination import get
from stacking.deepspeed_config.findings import Findings
from stacking.deepspeed_config.schedulers import schedule_of

OPTIMIZER_KEYS = {
    "betas": "optimizer.params.betas",
    "eps": "optimizer.params.eps",
    "weight_decay": "optimizer.params.weight_decay",
    "clip": "gradient_clipping",
}
"""The recipe's name for each key of the configuration."""
_RATE = "optimizer.params.lr"


def settled(recipe: Recipe, users: Sequence[UserConfig]) -> Recipe:
    """Returns the recipe with what it leaves open and all configurations agree on, except contradictions.

    Args:
        users: the configuration of each stage.
    """
    ignored = Findings()
    optimizers = [settle_optimizer(recipe, user, ignored)[0] for user in users]
    common = {
        key: getattr(optimizers[0], key)
        for key in OPTIMIZER_KEYS
        if all(getattr(other, key) == getattr(optimizers[0], key) for other in optimizers)
        and key in optimizers[0].model_fields_set
    }
    if common:
        recipe = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update=common)})
    return settle_rates(recipe, users, ignored)[0]


def given(user: UserConfig, path: str) -> Any:
    """Returns the value at a dotted path; None if it is missing or ``auto``."""
    value = get(user.content, path)
    return None if value == "auto" else value


def without_rates(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration without the learning rates that the settled recipe now has."""
    copied = copy.deepcopy(dict(content))
    copied.pop("scheduler", None)
    parameters = get(copied, "optimizer.params")
    if isinstance(parameters, dict):
        parameters.pop("lr", None)
    return copied


def settle_optimizer(recipe: Recipe, user: UserConfig, findings: Findings) -> tuple[Optimizer, tuple[str, ...]]:
    """Returns a stage's optimizer: the recipe's, completed by the stage's configuration; a note says by what.

    Contradictions are added to ``findings``.
    """
    taken: dict[str, Any] = {}
    for key, path in OPTIMIZER_KEYS.items():
        value, ours = given(user, path), getattr(recipe.optimizer, key)
        if value is None:
            continue
        value = tuple(value) if key == "betas" else value
        if key not in recipe.optimizer.model_fields_set:
            taken[key] = value
        elif value != ours and key == "clip":
            remedy = f"set optimizer.clip={value:g} in the recipe, or remove it here"
            findings.add(user.error(path, f"is {value:g}, but the recipe's optimizer.clip is {ours:g}", remedy))
        elif value != ours:
            remedy = "remove it here or change the recipe"
            findings.add(user.error(path, f"is {shown(value)}, but the recipe says {shown(ours)}", remedy))
    said = ", ".join(f"{key} {shown(value)}" for key, value in taken.items())
    note = (f"{user.where} sets the optimizer's {said}, which the recipe does not",) if taken else ()
    return recipe.optimizer.model_copy(update=taken), note


def settle_rates(recipe: Recipe, users: Sequence[UserConfig], findings: Findings) -> tuple[Recipe, tuple[str, ...]]:
    """Returns the recipe with the learning rates that only the configurations set; notes say which.

    Contradictions are added to ``findings``.

    Args:
        users: the configuration of each stage.
    """
    scheduled = [user for user in users if get(user.content, "scheduler")]
    is_stated = "schedule" in recipe.model_fields_set or any(stage.learning_rate for stage in recipe.stages)
    if scheduled and not is_stated:
        return _schedule(recipe, users, findings)
    for user in scheduled:
        for key, value in (get(user.content, "scheduler.params") or {"": ""}).items():
            path = f"scheduler.params.{key}" if key else "scheduler"
            problem = f"is {shown(value)}" if key else "has no params"
            problem += ", but the recipe's schedule decides the learning rate"
            remedy = 'remove it, or write "auto" for its params' if not key else 'remove scheduler, or write "auto"'
            findings.add(user.error(path, problem, remedy))
    return _peaks(recipe, users, findings)


def _schedule(recipe: Recipe, users: Sequence[UserConfig], findings: Findings) -> tuple[Recipe, tuple[str, ...]]:
    """Returns the recipe with DeepSpeed's schedule over all of its stages."""
    user, section = next((u, s) for u in users if (s := get(u.content, "scheduler")))
    if any(get(other.content, "scheduler") != section for other in users):
        problem = "is a schedule over the whole run, but not every stage's configuration has it"
        findings.add(user.error("scheduler", problem, "give the recipe's schedule instead"))
        return recipe, ()
    try:
        schedule: Schedule = TypeAdapter(Schedule).validate_python(schedule_of(section, given(user, _RATE)))
    except ValidationError as error:
        detail = error.errors()[0]
        key = str(detail["loc"][-1])
        missing = detail["type"] == "missing"
        path = _RATE if missing and key in ("peak", "warmup_max_lr") else f"scheduler.params.{key}"
        problem = "is missing" if missing else f"is {shown(detail['input'])}"
        findings.add(user.error(path, problem, "give a number, or write the recipe's schedule"))
        return recipe, ()
    note = f"{user.where} sets the schedule, {section['type']}, which the recipe does not"
    return recipe.model_copy(update={"schedule": schedule}), (note,)


def _peaks(recipe: Recipe, users: Sequence[UserConfig], findings: Findings) -> tuple[Recipe, tuple[str, ...]]:
    if not isinstance(recipe.schedule, StagesSchedule):
        _check_peak(recipe, users, findings)
        return recipe, ()
    stages, notes = list(recipe.stages), []
    groups: dict[str, list[int]] = {}
    for i, user in enumerate(users):
        groups.setdefault(user.where, []).append(i)
    for indices in groups.values():
        user = users[indices[0]]
        rate = given(user, _RATE)
        if rate is None:
            continue
        rates = {i: stages[i].learning_rate for i in indices}
        stated = {i: own.peak for i, own in rates.items() if own and own.peak is not None}
        if indices[0] not in stated:
            own = stages[indices[0]].learning_rate or LearningRate()
            update = {"learning_rate": own.model_copy(update={"peak": rate})}
            stages[indices[0]] = stages[indices[0]].model_copy(update=update)
            notes.append(f"{user.where} sets the peak of stages[{indices[0]}] to {rate:g}, which the recipe does not")
        elif rate not in stated.values():
            peaks = ", ".join(f"{peak:g} for stages[{i}]" for i, peak in stated.items())
            says = f"{next(iter(stated.values())):g}" if len(stated) == 1 else peaks
            findings.add(
                user.error(_RATE, f"is {rate:g}, but the recipe says {says}", "remove it here or change the recipe")
            )
            continue
        others = ", ".join(f"{peak:g} in stages[{i}]" for i, peak in stated.items() if peak != rate)
        if others:
            notes.append(f"{user.where}: {_RATE} is {rate:g}; the recipe's own peak applies: {others}")
    return recipe.model_copy(update={"stages": tuple(stages)}), tuple(notes)


def _check_peak(recipe: Recipe, users: Sequence[UserConfig], findings: Findings) -> None:
    schedule = recipe.schedule
    if not isinstance(schedule, (WarmupStableDecay, WarmupCosineLR)):
        return
    for user in users:
        rate = given(user, _RATE)
        if rate is not None and rate != schedule.peak:
            problem = f"is {rate:g}, but the recipe's schedule.peak is {schedule.peak:g}"
            findings.add(user.error(_RATE, problem, "remove it here or change the recipe"))
