"""Examines a configuration key by key: translates keys, drops those without effect, rejects unsupported ones.

`STEPS` lists the checks in order. Both a plan, which stops at rejected keys, and `stacking adopt`, which writes what
remains, use this examination.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from stacking.config.reading import nearest, shown
from stacking.deepspeed_config.ds_facts import (
    AUTO_KEYS,
    BATCH_KEYS,
    CHOICES,
    EFFECTS,
    KNOWN_KEYS,
    MOST_SEQUENCES,
    POSITIVE_KEYS,
    REMOVED_KEYS,
    SECTION_KEYS,
    UNSUPPORTED,
    WITHOUT_EFFECT,
)
from stacking.deepspeed_config.examination import MISSING, Examination, is_off, leaves
from stacking.deepspeed_config.facts import OTHER, SECTIONS, TEXT, TOP, VERSION
from stacking.deepspeed_config.findings import KeyRow
from stacking.deepspeed_config.names import RENAMED, meant, named, surely
from stacking.deepspeed_config.old_names import amp_to_fp16, translate_old_flags, translate_old_values
from stacking.deepspeed_config.optimizer import examine_optimizer
from stacking.deepspeed_config.schedulers import examine_scheduler
from stacking.deepspeed_config.zero import examine_zero

_NAMED = 20
"""Maximum number of unknown keys to look up; a file with more is not a DeepSpeed configuration."""
_MONITORS = "monitor_config"
_ENABLED = '{"enabled": true}'
_EXAMPLES = {
    "optimizer": '{"type": "AdamW"}',
    "scheduler": '{"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}',
    "zero_optimization": '{"stage": 2}',
    "zero_optimization.offload_optimizer": '{"device": "cpu"}',
    "zero_optimization.offload_param": '{"device": "cpu"}',
}
_TRACKERS = {"wandb": "wandb", "comet": "comet_ml", "tensorboard": "tensorboard"}
"""By section: the package that it needs."""


def examine(content: Mapping[str, Any]) -> Examination:
    """Examines a whole configuration."""
    found = Examination(content)
    for step in STEPS:
        step(found)
    return found


def kept_rows(content: Mapping[str, Any], told: Container[str]) -> list[KeyRow]:
    """Returns a row for every key that was not ``told`` of: it is kept, with its effect."""
    rows = []
    for path, value in leaves(content):
        parts = path.split(".")
        if not any(".".join(parts[:n]) in told for n in range(1, len(parts) + 1)):
            rows.append(KeyRow(path, shown(value), "kept", "", effect(path)))
    return rows


def effect(path: str) -> str:
    """Describes what a dotted key does here."""
    parts = path.split(".")
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    for prefix in (*prefixes, ""):
        if prefix in WITHOUT_EFFECT:
            return f"no effect: {WITHOUT_EFFECT[prefix]}"
        if prefix in EFFECTS:
            return EFFECTS[prefix]
    return ""


def _odd_names(found: Examination) -> None:
    """Rejects names that are no valid key and would be mistaken for a path."""
    waiting: list[tuple[str, dict[str, Any]]] = [("", found.content)]
    while waiting:
        above, section = waiting.pop()
        for key in list(section):
            place = f"{above}.{key}" if above else key
            if not key or "." in key:
                remedy = "give a section and a key in it" if key in _PATHS else "remove it"
                problem = f"is not a key of {above or 'DeepSpeed'}"
                found.rows.append(KeyRow(place, shown(section.pop(key)), "impossible", problem, remedy, True))
            elif isinstance(section[key], dict) and place != "stacking":
                waiting.append((place, section[key]))


_PATHS = frozenset(f"{section}.{key}" for section, keys in SECTION_KEYS.items() for key in keys)


def _comments(found: Examination) -> None:
    for path in _comment_paths(found.content):
        found.drop(path, "is a comment", "has no effect")


def _comment_paths(content: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[str]:
    paths = []
    for key, value in content.items():
        place = (*above, str(key))
        if str(key).startswith(("_", "#", "//")):
            paths.append(".".join(place))
        elif isinstance(value, Mapping) and place != ("stacking",):
            paths += _comment_paths(value, place)
    return paths


def _removed(found: Examination) -> None:
    amp_to_fp16(found)
    for key in [key for key in found.content if key in REMOVED_KEYS]:
        if is_off(found.get(key)):
            found.drop(key, f"is off, and was removed from DeepSpeed ({VERSION})", "left out")
        else:
            problem = f"was removed from DeepSpeed, which rejects it ({VERSION})"
            found.drop(key, problem, REMOVED_KEYS[key], refused=True)


def _old_names(found: Examination) -> None:
    translate_old_flags(found)
    for old, new in RENAMED.items():
        if found.get(old, MISSING) is not MISSING:
            found.rename(old, new, "is an old name")
    translate_old_values(found)


def _monitors(found: Examination) -> None:
    """Moves monitors out of a section of other programs that holds them all."""
    section = found.get(_MONITORS)
    if not isinstance(section, Mapping):
        return
    if is_off(section):
        found.drop(_MONITORS, "is off, and is not a key of DeepSpeed", "left out")
        return
    for name in ("csv_monitor", "tensorboard", "wandb", "comet"):
        if name in section:
            found.rename(
                f"{_MONITORS}.{name}", name, f"is not a key of DeepSpeed, which has {name} alone", refused=True
            )
    for name in list(found.get(_MONITORS)):
        found.drop(f"{_MONITORS}.{name}", "is not a key of DeepSpeed: each monitor has its own", refused=True)
    found.remove(_MONITORS)


def _unsupported_sections_off(found: Examination) -> None:
    for path in UNSUPPORTED:
        value = found.get(path, MISSING)
        if value is None:
            found.drop(path, "is null", "DeepSpeed's default applies")
        elif isinstance(value, Mapping) and is_off(value):
            found.drop(path, "is off", "left out")


def _unknown(found: Examination) -> None:
    """Rejects names that DeepSpeed does not know, at any depth."""
    while unknown := _unknown_paths(found):  # again where a section moved: its keys are now known by their place
        for path in unknown[:_NAMED]:
            _one_unknown(found, path)
        for path in unknown[_NAMED:]:
            found.rows.append(KeyRow(path, "", "impossible", "is not a key of DeepSpeed", "remove it", True))
            found.remove(path)


def _one_unknown(found: Examination, path: str) -> None:
    section = path.rpartition(".")[0]
    problem = f"is not a key of {section or 'DeepSpeed'}"
    near = meant(path)
    if near and surely(path):
        found.rename(path, near, problem, refused=True)
    else:
        known = sorted(SECTION_KEYS.get(section, ()))
        choose = f"choose one of {', '.join(known)}" if 0 < len(known) <= 10 else "remove it: no known name is like it"
        found.drop(path, problem, f"did you mean {named(path, near)!r}?" if near else choose, refused=True)


def _unknown_paths(found: Examination) -> list[str]:
    paths = [str(key) for key in found.content if key not in KNOWN_KEYS and key not in REMOVED_KEYS]
    for section, known in SECTION_KEYS.items():
        value = found.get(section)
        if isinstance(value, Mapping) and section not in UNSUPPORTED:
            paths += [f"{section}.{key}" for key in value if key not in known and f"{section}.{key}" not in UNSUPPORTED]
    return paths


def _unsupported(found: Examination) -> None:
    for path, (allowed, problem, remedy) in UNSUPPORTED.items():
        value = found.get(path)
        if value is not None and value != "auto" and value != allowed and not is_off(value):
            found.drop(path, problem, remedy, refused=True)


def _kinds(found: Examination) -> None:
    """Checks that sections are objects and values have the right kind, reading text and null as DeepSpeed does."""
    for section in SECTION_KEYS:
        value = found.get(section, MISSING)
        if value is MISSING or isinstance(value, Mapping):
            continue
        if value is None:
            found.drop(section, "is null", "DeepSpeed's default applies")
        elif switch := _switch(value, SECTION_KEYS[section]):
            if is_off(switch):
                found.replace(section, switch, f"is {shown(value)}", f"give {json.dumps(switch)}")
            else:
                text = json.dumps(switch)
                found.correct(section, switch, f"is {shown(value)}", f"give {text}", f"read as {text}")
        else:
            remedy = f"give an object, such as {_EXAMPLES.get(section, _ENABLED)}"
            found.drop(section, f"is {shown(value)}", remedy, refused=True)
    for key in [key for key in KNOWN_KEYS if key in found.content and key not in SECTION_KEYS]:
        _value(found, key, KNOWN_KEYS[key], TOP.get(key, {}))
    for section, keys in SECTION_KEYS.items():
        for key in [key for key in found.get(section) or () if key in keys]:
            _value(found, f"{section}.{key}", keys[key], SECTIONS.get(section, {}).get(key, {}))


def _switch(value: Any, known: Iterable[str]) -> dict[str, Any]:
    """Returns the section that a flag or the name of a device stands for; empty if that is unclear."""
    if isinstance(value, bool) and "enabled" in known:
        return {"enabled": value}
    if "device" in known and (isinstance(value, bool) or value in ("cpu", "nvme", "none")):
        return {"device": ("cpu" if value else "none") if isinstance(value, bool) else value}
    return {}


def _value(found: Examination, path: str, kind: str, about: Mapping[str, Any]) -> None:
    value = found.get(path)
    if value is None:
        if not about.get("null") and kind != OTHER:
            found.drop(path, "is null", "DeepSpeed's default applies")
    elif value == "auto" and kind != TEXT:
        _auto(found, path)
    elif value != about.get("default", MISSING):
        found.convert(path, kind)


def _auto(found: Examination, path: str) -> None:
    if path in AUTO_KEYS or SECTION_KEYS.get(path) is not None:
        return
    section = path.rpartition(".")[0]
    if section in SECTIONS and path != "zero_optimization.stage":
        found.drop(path, "is 'auto'", "DeepSpeed's default applies")
    elif path not in ("optimizer.params", "scheduler.params", "stacking.compile"):
        found.drop(path, "is 'auto', which is not supported here", "give a value or remove it", refused=True)


def _printing(found: Examination) -> None:
    value = found.get("steps_per_print")
    if value in (math.inf, "inf", "Infinity"):
        found.drop("steps_per_print", "is infinite: DeepSpeed need not print", "left out")


def _choices(found: Examination) -> None:
    for path, words in CHOICES.items():
        value = found.get(path)
        if value is not None and str(value).lower() not in {word.lower() for word in words}:
            found.drop(path, f"is {shown(value)}", nearest(str(value)[:80], words), refused=True)
    for path in POSITIVE_KEYS:
        if found.get(path) == 0:
            found.drop(path, "is 0", "give a number greater than 0", refused=True)
    for path in BATCH_KEYS:
        value = found.get(path)
        if value == 0 or (isinstance(value, int) and value > MOST_SEQUENCES):
            remedy = f'give a whole number from 1 to {MOST_SEQUENCES:,}, or "auto"'
            found.drop(path, f"is {shown(value)}", remedy, refused=True)


def _precision(found: Examination) -> None:
    if found.get("fp16.enabled") is True and found.get("bf16.enabled") is True:
        problem = "is true and so is fp16.enabled"
        found.replace("bf16.enabled", "auto", problem, "enable one of them", refused=True)
        found.put("fp16.enabled", "auto")


def _activation_checkpointing(found: Examination) -> None:
    """Translates DeepSpeed's section, which only configures a function for models to call, to recomputed layers."""
    section = found.get("activation_checkpointing")
    if section is None:
        return
    asked = [key for key in ("partition_activations", "cpu_checkpointing", "number_checkpoints") if section.get(key)]
    if not asked:
        found.drop("activation_checkpointing", "turns nothing on", "left out")
        return
    if found.get("stacking.activation_checkpointing") is None:
        found.put("stacking.activation_checkpointing", True)
    on = found.get("stacking.activation_checkpointing")
    remedy = f"stacking.activation_checkpointing is {'true' if on else 'false'}: each layer is recomputed separately"
    found.note("activation_checkpointing", "translated", f"asks for {', '.join(asked)}", remedy)
    found.remove("activation_checkpointing")


def _own(found: Examination) -> None:
    compiled, why = found.get("stacking.compile", "auto"), found.get("stacking.why", {})
    if compiled != "auto" and not isinstance(compiled, bool):
        found.drop("stacking.compile", f"is {shown(compiled)}", 'give true, false or "auto"', refused=True)
    if not isinstance(why, dict):
        found.drop("stacking.why", f"is {shown(why)}", "give an object of texts, or remove it", refused=True)
        return
    for key, reason in dict(why).items():
        if not isinstance(reason, str):
            name = f"stacking.why.{key}"
            del why[key]
            found.rows.append(
                KeyRow(name, shown(reason), "impossible", f"is {shown(reason)}", "give a text, or remove it", True)
            )


def _trackers(found: Examination) -> None:
    """Rejects enabled trackers whose package is not installed; they would crash the ranks."""
    from importlib.util import find_spec

    for section, package in _TRACKERS.items():
        if found.get(f"{section}.enabled") is True and find_spec(package) is None:
            problem = f"is true, but the package {package} is not installed"
            remedy = f"run 'pip install {package}', or give false"
            found.replace(f"{section}.enabled", False, problem, remedy, refused=True)


def _without_effect(found: Examination) -> None:
    """Notes keys without effect here, unless they are off."""
    for path, why in WITHOUT_EFFECT.items():
        value = found.get(path, MISSING)
        if value is MISSING or value is None:
            continue
        for leaf, _ in leaves({path: value}) if isinstance(value, Mapping) else [(path, value)]:
            if not found.has_problem(leaf):
                found.note(leaf, "without meaning here", "has no effect here", why)


STEPS: tuple[Callable[[Examination], None], ...] = (
    _comments,
    _odd_names,
    _printing,
    _removed,
    _old_names,
    _monitors,
    _unsupported_sections_off,
    _unknown,
    _old_names,  # again, for keys that were in the wrong place
    _kinds,
    _unsupported,
    _choices,
    _precision,
    examine_zero,
    examine_optimizer,
    examine_scheduler,
    _activation_checkpointing,
    _own,
    _trackers,
    _without_effect,
)
