"""Implements `stacking plan`: a plan and its predicted cost, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from stacking.cli.plan_report import explain_scaling, explain_text
from stacking.config.recipe import load_recipe
from stacking.errors import UserError
from stacking.estimate.prediction import Prediction, predict
from stacking.estimate.scaling import scaling
from stacking.estimate.setting import open_setting
from stacking.hardware.machine import find_machine
from stacking.hardware.presets import DEVICE_CLASSES
from stacking.hardware.processor import bf16_slowdown
from stacking.planning.plan import Plan
from stacking.run.create import plan_recipe


def plan_text(
    recipe: str,
    data: Path | None,
    overrides: Sequence[str],
    *,
    measured: Sequence[Path] = (),
    network_file: Path | None = None,
    price: float | None = None,
    scaled: bool = False,
    as_json: bool = False,
    fast: bool = False,
) -> str:
    """Returns the command's output.

    Args:
        fast: skip DeepSpeed's own check of the configurations.

    Raises:
        UserError: the recipe or a file is invalid, or a time is requested for a device of unknown speed.
    """
    plan, rows = plan_recipe(load_recipe(recipe, list(overrides), data), fast)
    held_out = len(rows["held_out"]) if "held_out" in rows else None
    setting = open_setting(
        plan, find_machine(), measured=measured, network_file=network_file, price=price, held_out=held_out
    )
    if setting is None and (price is not None or scaled or network_file):
        problem = f"has no known speed: {plan.launch.device} has no row in the table of devices"
        raise UserError(f"{plan.recipe}: launch.device", problem, "give --measured")
    prediction = predict(plan, setting) if setting else None
    table = scaling(plan, setting) if setting and scaled else None
    notes = precision_notes(plan)
    if as_json:
        parts = {"prediction": prediction, "scaling": table}
        found = {name: part.model_dump(mode="json") for name, part in parts.items() if part is not None}
        content = {**plan.model_dump(mode="json"), **found, "notes": notes}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    text = explain_text(plan, prediction, notes)
    if table is not None:
        device = DEVICE_CLASSES.get(plan.launch.device)
        text += "\n" + explain_scaling(plan, table, device.memory if device else 0)
    return text


def precision_notes(plan: Plan, measure: Callable[[], float | None] = bf16_slowdown) -> list[str]:
    """Returns a note on the slowdown of emulated bf16 on this CPU, measured now or earlier on the same processor."""
    asked = plan.launch.accelerator == "cpu" and any(stage.precision == "bf16" for stage in plan.stages)
    if not asked or "bf16" not in find_machine().cpu.emulated or (slowdown := measure()) is None:
        return []
    return [f"measured here: a matrix product in bf16 takes {slowdown:.1f} times as long as in fp32"]


def expected(plan: Plan) -> Prediction | None:
    """Returns the prediction that `stacking run` shows before it starts, without measurements."""
    setting = open_setting(plan, find_machine())
    return predict(plan, setting) if setting else None
