"""Examines the section ``zero_optimization``."""

from __future__ import annotations

from collections.abc import Mapping

from stacking.config.reading import shown
from stacking.deepspeed_config.examination import Examination

_STAGES = {0: 0, 1: 1, 2: 2, 3: 3, "0": 0, "1": 1, "2": 2, "3": 3}


def examine_zero(found: Examination) -> None:
    """Checks the stage and its offload."""
    if not isinstance(found.get("zero_optimization"), Mapping):
        return
    stage = _stage(found)
    _scaling(found, stage)
    for name, needed in (("offload_optimizer", 1), ("offload_param", 3)):
        _offload(found, f"zero_optimization.{name}", needed, stage)


def _scaling(found: Examination, stage: int) -> None:
    """Drops gradient scaling before reduce-scatter, which ZeRO 2 and 3 reject; the mean is the same."""
    if stage < 2 or found.get("zero_optimization.reduce_scatter", True) is False:
        return
    for key, harmless in (("prescale_gradients", False), ("gradient_predivide_factor", 1)):
        if found.get(key, harmless) not in (harmless, None):
            problem = f"is refused by DeepSpeed at ZeRO stage {stage} with reduce_scatter"
            found.drop(key, problem, "left out: the mean of the gradients is the same")


def _stage(found: Examination) -> int:
    path = "zero_optimization.stage"
    given = found.get(path, 0)
    if isinstance(given, bool) or not isinstance(given, (int, float, str)) or given not in _STAGES:
        found.drop(path, f"is {shown(given)}", "give 0, 1, 2 or 3", refused=True)
        return 0
    stage = _STAGES[given]
    if isinstance(given, str):
        found.replace(path, stage, f"is {shown(given)}", f"read as {stage}")
    elif isinstance(given, float):
        found.put(path, stage)
    return stage


def _offload(found: Examination, path: str, needed: int, stage: int) -> None:
    section = found.get(path)
    if section is None:
        return
    device = section.get("device", "none")
    if device not in ("none", "cpu", "nvme"):
        found.drop(f"{path}.device", f"is {shown(device)}", "give 'cpu' or 'none'", refused=True)
        return
    if device == "none":
        return
    if stage < needed:
        problem = f"needs ZeRO stage {needed} or more, but the stage is {stage}"
        if stage:
            found.drop(path, problem, "left out, as DeepSpeed does")
        else:
            found.drop(path, problem, "raise the stage or remove it", refused=True)
    elif device == "nvme":
        problem = 'is "nvme", from which checkpoints cannot be consolidated here'
        found.replace(f"{path}.device", "cpu", problem, "give 'cpu' or 'none'", refused=True)
    elif section.get("ratio", 1) != 1 and stage < 3:
        problem = f"is {shown(section['ratio'])}, which needs ZeRO stage 3, but the stage is {stage}"
        found.drop(f"{path}.ratio", problem, "remove it: everything is then offloaded", refused=True)
