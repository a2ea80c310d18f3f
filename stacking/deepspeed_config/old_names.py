"""Translates keys of earlier versions whose meaning is clear."""

from __future__ import annotations

from collections.abc import Mapping

from stacking.config.reading import shown
from stacking.deepspeed_config.ds_facts import SECTION_KEYS
from stacking.deepspeed_config.examination import MISSING, Examination, is_off

_COMMUNICATION = ("fp32_allreduce", "allreduce_always_fp32")
_OFFLOAD = {
    "cpu_offload": "offload_optimizer",
    "cpu_offload_param": "offload_param",
    "cpu_offload_params": "offload_param",
}


def amp_to_fp16(found: Examination) -> None:
    """Translates NVIDIA Apex's mixed precision, which DeepSpeed used to call, to fp16 with a loss scale."""
    section = found.get("amp", MISSING)
    if section is MISSING or is_off(section) or not isinstance(section, Mapping):
        return
    if found.get("fp16.enabled") is not None or found.get("bf16.enabled") is True:
        found.drop("amp", "was removed from DeepSpeed; fp16 or bf16 sets the precision", "left out")
        return
    level = section.get("opt_level", "O1")
    if level == "O0":
        found.drop("amp", "asks for O0, which is fp32", "left out")
        return
    found.note("amp", "translated", f"asks for Apex's {level}, which was removed from DeepSpeed", 'read as "fp16"')
    found.remove("amp")
    found.put("fp16.enabled", True)
    found.names["fp16.enabled"] = "amp"


def translate_old_flags(found: Examination) -> None:
    """Translates top-level flags that became values of other keys."""
    for key in _COMMUNICATION:
        value = found.get(key, MISSING)
        if value is MISSING:
            continue
        if is_off(value):
            found.drop(key, "is off", "left out")
        else:
            found.note(key, "translated", "is an old name", 'read as "communication_data_type": "fp32"')
            found.remove(key)
            found.put("communication_data_type", "fp32")


def translate_old_values(found: Examination) -> None:
    """Translates words and sections that earlier versions read in another way."""
    _old_words(found)
    _old_zero(found)
    _without_loss_scale(found)


def _without_loss_scale(found: Examination) -> None:
    """Drops keys of fp16 in ``bf16``, which earlier versions passed over and today's rejects, and ``auto_cast``."""
    section = found.get("bf16")
    for key in list(section) if isinstance(section, Mapping) else ():
        if key in SECTION_KEYS["fp16"] and key not in SECTION_KEYS["bf16"]:
            found.drop(f"bf16.{key}", "is a key of fp16; bf16 needs no loss scale", "left out")
    if found.get("fp16.auto_cast", MISSING) not in (MISSING, False):
        found.drop("fp16.auto_cast", "casts inputs that are no integers; here all are", "left out")


def _old_words(found: Examination) -> None:
    """Translates words of earlier versions."""
    if str(found.get("communication_data_type")).lower() in ("bfp16", "bfloat16"):
        value = shown(found.get("communication_data_type"))
        found.replace("communication_data_type", "bf16", f"is {value}, an old word", 'read as "bf16"')


def _old_zero(found: Examination) -> None:
    """Translates ``zero_optimization: true`` and flags for offloading."""
    zero = found.get("zero_optimization", MISSING)
    if isinstance(zero, bool):
        stage = 1 if zero else 0
        remedy = f"read as stage {stage}, as DeepSpeed does"
        found.replace("zero_optimization", {"stage": stage}, f"is {str(zero).lower()}", remedy)
        return
    if not isinstance(zero, Mapping):
        return
    if "find_unused_parameters" in zero:
        found.drop("zero_optimization.find_unused_parameters", "was removed: every parameter is used here", "left out")
    for old, new in _OFFLOAD.items():
        value = zero.get(old, MISSING)
        path = f"zero_optimization.{old}"
        if value is MISSING:
            continue
        if is_off(value):
            found.drop(path, "is off", "left out")
            continue
        pin = found.get("zero_optimization.cpu_offload_use_pin_memory")
        found.note(path, "translated", "is deprecated", f'read as "{new}": {{"device": "cpu"}}')
        found.remove(path)
        if found.get(f"zero_optimization.{new}") is None:
            found.put(f"zero_optimization.{new}", {"device": "cpu", **({} if pin is None else {"pin_memory": pin})})
    if found.get("zero_optimization.cpu_offload_use_pin_memory", MISSING) is not MISSING:
        path = "zero_optimization.cpu_offload_use_pin_memory"
        found.note(path, "translated", "is deprecated", "read as pin_memory of the offload section")
        found.remove(path)
