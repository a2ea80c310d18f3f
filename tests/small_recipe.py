"""A recipe that is valid, small and complete, and a machine to plan it on; tests change one thing at a time."""

from __future__ import annotations

from pathlib import Path

from stacking.config.recipe import load_recipe
from stacking.hardware.machine import Machine
from stacking.hardware.presets import DEVICE_CLASSES
from stacking.planning.make_plan import make_plan
from stacking.planning.plan import Plan

SMALL = """\
name: small
model: {hidden: 64, heads: 2, max_positions: 64}
data: {sequence_length: 32}
stages:
  - {layers: 2, steps: 10, batch_sequences: 8, learning_rate: {peak: 1e-3}}
  - {layers: 4, steps: 10}
"""
MACHINE = Machine(accelerators=0, device=DEVICE_CLASSES["cpu"], memory=8 << 30, cores=2)
MANIFEST = {"vocabulary": 1000, "digest": "d"}
SAMPLES = 100


def plan_of(text: str, ds_config: str | None = None, overrides: list[str] | None = None) -> Plan:
    """The plan of a recipe text, and of a DeepSpeed JSON for all its stages, in the current directory."""
    if ds_config is not None:
        Path("ds.json").write_text(ds_config)
        text += "ds_config: ds.json\n"
    Path("recipe.yaml").write_text(text)
    return make_plan(load_recipe("recipe.yaml", overrides), MANIFEST, SAMPLES, MACHINE)
