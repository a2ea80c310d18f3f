"""Translates the section ``scheduler`` to the recipe's schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stacking.config.reading import nearest, shown
from stacking.deepspeed_config.examination import Examination
from stacking.deepspeed_config.facts import COUNT, NUMBER, SCHEDULER_PARAMETERS
from stacking.deepspeed_config.names import closest
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
_POSITIVE = frozenset(("warmup_max_lr", "cycle_max_lr", "total_num_steps", "cycle_first_step_size"))
_NEEDED = {"OneCycle": ("cycle_min_lr", "cycle_max_lr")}
_AUTOMATIC = {"total_num_steps": "the end of the run", "warmup_max_lr": "the optimizer's rate applies"}
"""What ``auto`` stands for, as in Hugging Face's Trainer."""
_START, _PEAK = "scheduler.params.warmup_min_lr", "scheduler.params.warmup_max_lr"
_DEFAULT_PEAK = 0.001
"""The peak of a ``WarmupDecayLR`` without ``warmup_max_lr``, whatever the optimizer's ``lr`` is."""
_LIKE = {"cosine": "WarmupCosineLR", "linear": "WarmupDecayLR", "poly": "WarmupDecayLR", "cyc": "OneCycle",
         "constant": "WarmupLR", "warmup": "WarmupLR"}  # fmt: skip
"""Words in the names of other libraries' schedules, with the nearest of DeepSpeed's."""


def examine_scheduler(found: Examination) -> None:
    """Checks type and parameters; the remaining ``scheduler`` can become the recipe's schedule."""
    section = found.get("scheduler")
    if not isinstance(section, Mapping):
        return
    parameters = section.get("params") or {}
    if not isinstance(parameters, Mapping):
        found.drop("scheduler.params", f"is {shown(parameters)}", "give an object", refused=True)
        found.remove("scheduler")
        return
    name = _type(found, section.get("type"))
    if name is None:
        return
    if name == "WarmupCosineLR":
        _rates_to_ratios(found, parameters)
    parameters = dict(found.get("scheduler.params") or {})
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
    elif name != "WarmupCosineLR":
        _peak(found, name, parameters)


def _type(found: Examination, given: Any) -> str | None:
    """Returns the name of DeepSpeed's class; None: there is none, and the section is gone."""
    if given is None:
        found.drop("scheduler", "has no type", "left out: the recipe's schedule applies")
        return None
    known = {name.lower(): name for name in sorted(SCHEDULER_PARAMETERS)}
    word = str(given)[:80].lower()
    name = known.get(word) if isinstance(given, str) else None
    problem = f"has the type {shown(given)}, which is none of DeepSpeed's"
    if name is None:
        like = "" if closest(word, known) else next((known[_LIKE[w].lower()] for w in _LIKE if w in word), "")
        remedy = f"the nearest is {like!r}" if like else nearest(str(given)[:80], list(known.values()))
        found.drop("scheduler", problem, remedy, refused=True)
    elif name != given:
        found.correct("scheduler.type", name, problem, f"did you mean {name!r}?", f"read as {name}")
    return name


def _rates_to_ratios(found: Examination, parameters: Mapping[str, Any]) -> None:
    """Translates rates to a cosine's terms: the optimizer's ``lr``, and a share of it."""
    problem, rate = "is not a parameter of WarmupCosineLR", "optimizer.params.lr"
    high = _read(parameters.get("warmup_max_lr"))
    if high:
        found.rename(_PEAK, rate, problem, refused=True)
        found.put(rate, _read(found.get(rate)) or high)
        if found.get("optimizer.type") is None:
            found.put("optimizer.type", "AdamW")
    low, peak = _read(parameters.get("warmup_min_lr")), _read(found.get(rate))
    ratio = "scheduler.params.warmup_min_ratio"
    if low is not None and peak and found.get(ratio) is None:
        said = f"{problem}, which takes a share of the peak"
        share = f"warmup_min_ratio: {low / peak:g}"
        found.note(_START, "translated", said, f"give {share}", refused=True, done=f"read as {share}")
        found.remove(_START)
        found.put(ratio, low / peak)
        found.names[ratio] = _START


def _read(value: Any) -> float | None:
    """Returns a number that may be given as text; None: it is none."""
    number = value if is_a(NUMBER, value) else coerced(NUMBER, value)
    return None if number is None else float(number)


def _peak(found: Examination, name: str, parameters: Mapping[str, Any]) -> None:
    """States the rate after the warm-up where the file leaves it to the optimizer, or to DeepSpeed."""
    if found.get(_PEAK) is not None or found.has_problem(_PEAK):
        return
    if name == "WarmupDecayLR" and "warmup_max_lr" in parameters:
        found.put(_PEAK, "auto")
    elif name == "WarmupDecayLR":
        found.note(_PEAK, "translated", "is not given", f"{_DEFAULT_PEAK:g}, DeepSpeed's default, applies")


def _parameter(found: Examination, name: str, key: str, value: Any) -> None:
    path = f"scheduler.params.{key}"
    if value == "auto":
        found.drop(path, "is 'auto'", _AUTOMATIC.get(key, "DeepSpeed's default applies"))
    elif value is None:
        peak = key == "warmup_max_lr"
        found.drop(path, "is null", "the optimizer's rate applies" if peak else "DeepSpeed's default applies")
    elif key == "last_batch_iteration":
        found.drop(path, "sets where a schedule resumes, which checkpoints record", "left out")
    elif key not in SCHEDULER_PARAMETERS[name]:
        near = nearest(key[:80], sorted(SCHEDULER_PARAMETERS[name]))
        found.drop(path, f"is not a parameter of {name}", near, refused=True)
    elif key == "warmup_num_steps" and value == 0 and value is not False:
        found.replace(path, 1, "is 0, which DeepSpeed rejects", "read as 1, as earlier versions did")
    elif key in _COUNTS or key.endswith(("_lr", "_ratio", "_rate")):
        _number(found, path, value, COUNT if key in _COUNTS else NUMBER)
    elif key == "warmup_type" and value not in ("log", "linear"):
        found.replace(path, "log", f"is {shown(value)}", "read as log, as DeepSpeed does")


def _number(found: Examination, path: str, value: Any, kind: str) -> None:
    if isinstance(value, (list, tuple)) and value and len(set(map(str, value))) == 1:
        found.replace(path, value[0], "is the same for every group of parameters", f"read as {shown(value[0])}")
    found.convert(path, kind, positive=path.rpartition(".")[2] in _POSITIVE)


def _constant_momentum(found: Examination, parameters: Mapping[str, Any]) -> None:
    if parameters.get("cycle_momentum", True) is not False:
        problem = "is on (OneCycle's default), which changes Adam's betas, but they are constant here"
        found.drop("scheduler.params.cycle_momentum", problem, "give false", refused=True)
    for key in _MOMENTUM:
        if key in (found.get("scheduler.params") or {}):
            found.drop(f"scheduler.params.{key}", "changes Adam's betas, which are constant here", "left out")


def schedule_of(section: Mapping[str, Any], rate: float | None) -> dict[str, Any]:
    """Returns the recipe's schedule for an examined ``scheduler``.

    Args:
        rate: the optimizer's ``lr``; None: neither the configuration nor the recipe sets one.
    """
    name = section["type"]
    schedule = {"kind": name, **(section.get("params") or {})}
    if name == "WarmupCosineLR" and rate is not None:
        schedule["peak"] = rate
    if name == "WarmupDecayLR":
        schedule.setdefault("warmup_max_lr", _DEFAULT_PEAK)
    if name in ("WarmupLR", "WarmupDecayLR") and rate is not None and schedule.get("warmup_max_lr", "auto") == "auto":
        schedule["warmup_max_lr"] = rate
    return schedule
