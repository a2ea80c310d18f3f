"""Translates the section ``scheduler`` to the recipe's schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stacking.config.reading import nearest, shown
from stacking.deepspeed_config.examination import Examination
from stacking.deepspeed_config.facts import COUNT, NUMBER, SCHEDULER_PARAMETERS
from stacking.deepspeed_config.values import coerced, is_a

TRANSLATED = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle")
"""The schedules that a recipe has under the same names."""
_MOMENTUM = ("cycle_momentum", "cycle_min_mom", "cycle_max_mom", "decay_mom_rate")
_COUNTS = frozenset(
    (
        "warmup_num_steps",
        "total_num_steps",
        "cycle_first_step_size",
        "cycle_second_step_size",
        "cycle_first_stair_count",
        "cycle_second_stair_count",
        "decay_step_size",
    )
)
_NEEDED = {"OneCycle": ("cycle_min_lr", "cycle_max_lr")}


def examine_scheduler(found: Examination) -> None:
    """Check type and parameters; the remaining ``scheduler`` can become the recipe's schedule."""
    section = found.get("scheduler")
    if not isinstance(section, Mapping):
        return
    name, parameters = section.get("type"), section.get("params") or {}
    if not isinstance(parameters, Mapping):
        found.drop("scheduler.params", f"is {shown(parameters)}", "give an object", refused=True)
        found.remove("scheduler")
        return
    if name is None:
        found.drop("scheduler", "has no type", "left out: the recipe's schedule applies")
        return
    if not isinstance(name, str) or name not in SCHEDULER_PARAMETERS:
        known = sorted(SCHEDULER_PARAMETERS)
        found.drop(
            "scheduler",
            f"has the type {shown(name)}, which is none of DeepSpeed's",
            nearest(str(name), known),
            refused=True,
        )
        return
    parameters = dict(parameters)
    for key, value in parameters.items():
        _parameter(found, name, str(key), value)
    left = found.get("scheduler.params") or {}
    if parameters and not left:
        found.drop("scheduler", "only has the value 'auto'", "left out: the recipe's schedule applies")
    elif name not in TRANSLATED:
        problem = f"is {name}, a learning-rate range test rather than a schedule to train with"
        found.drop("scheduler", problem, "remove it: the recipe's schedule applies", refused=True)
    elif missing := [key for key in _NEEDED.get(name, ()) if key not in left]:
        found.drop("scheduler", f"has no {missing[0]}", f"give {missing[0]}, or remove scheduler", refused=True)
    elif name == "OneCycle":
        _constant_momentum(found, parameters)


def _parameter(found: Examination, name: str, key: str, value: Any) -> None:
    path = f"scheduler.params.{key}"
    if value == "auto":
        ends = key == "total_num_steps"
        found.drop(
            path, "is 'auto'", "the end of the run" if ends else "DeepSpeed's default, or the optimizer's rate, applies"
        )
    elif value is None:
        found.drop(path, "is null", "DeepSpeed's default applies")
    elif key == "last_batch_iteration":
        found.drop(path, "sets where a schedule resumes, which checkpoints record", "left out")
    elif key not in SCHEDULER_PARAMETERS[name]:
        near = nearest(key[:80], sorted(SCHEDULER_PARAMETERS[name]))
        found.drop(path, f"is not a parameter of {name}", near, refused=True)
    elif key in _COUNTS or key.endswith(("_lr", "_ratio", "_rate")):
        _number(found, path, value, COUNT if key in _COUNTS else NUMBER)
    elif key == "warmup_type" and value not in ("log", "linear"):
        found.replace(path, "log", f"is {shown(value)}", "read as log, as DeepSpeed does")


def _number(found: Examination, path: str, value: Any, kind: str) -> None:
    if isinstance(value, (list, tuple)) and value and len(set(map(str, value))) == 1:
        found.replace(path, value[0], "is the same for every group of parameters", f"read as {shown(value[0])}")
        value = value[0]
    read = value if is_a(kind, value) else coerced(kind, value)
    if read is None:
        found.drop(path, f"is {shown(value)}", f"give {kind}", refused=True)
    elif isinstance(value, str):
        found.replace(path, read, f"is {shown(value)}", f"read as {shown(read)}")
    elif kind == COUNT:
        found.put(path, int(read))


def _constant_momentum(found: Examination, parameters: Mapping[str, Any]) -> None:
    if parameters.get("cycle_momentum", True) is not False:
        problem = "is on (OneCycle's default), which changes Adam's betas, but they are constant here"
        found.drop("scheduler.params.cycle_momentum", problem, "give false", refused=True)
    for key in _MOMENTUM:
        if key in (found.get("scheduler.params") or {}):
            found.drop(f"scheduler.params.{key}", "changes Adam's betas, which are constant here", "left out")


def schedule_of(section: Mapping[str, Any], rate: float | None) -> dict[str, Any]:
    """Return the recipe's schedule for an examined ``scheduler``.

    Args:
        rate: the optimizer's ``lr``; None: neither the configuration nor the recipe sets one.
    """
    name = section["type"]
    schedule = {"kind": name, **(section.get("params") or {})}
    if name == "WarmupCosineLR" and rate is not None:
        schedule["peak"] = rate
    if name == "WarmupLR" and rate is not None:
        schedule.setdefault("warmup_max_lr", rate)
    return schedule
