"""The configurations in ds_configs/: each suits its device, resolves with a recipe, and is accepted by DeepSpeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stacking.config.recipe import load_recipe
from stacking.config.shipped import DS_CONFIGS
from stacking.hardware.presets import DEVICE_CLASSES
from stacking.planning.make_plan import make_plan
from stacking.planning.plan import Plan
from tests.small_recipe import MACHINE, MANIFEST

READY = sorted(path.relative_to(DS_CONFIGS).as_posix() for path in DS_CONFIGS.glob("*/*.json"))
RECIPE = """\
model: {{shape: {shape}}}
stages:
  - {{layers: 3, steps: 10, batch_sequences: 256, learning_rate: {{peak: 1e-4}}}}
  - {{layers: 12, steps: 10}}
launch: {{device: {device}, ranks: 4}}
ds_config: {path}
"""
ACCEPT = """
import json, sys
from deepspeed.runtime.config import DeepSpeedConfig
for config in json.load(sys.stdin):
    config["train_batch_size"] //= 4  # one process stands for four
    DeepSpeedConfig(config)
print("accepted")
"""


def planned(path: str, folder: Path) -> Plan:
    device, shape = path.removesuffix(".json").split("/")
    (folder / "recipe.yaml").write_text(RECIPE.format(device=device, shape=shape, path=path))
    return make_plan(load_recipe(folder / "recipe.yaml"), MANIFEST, None, MACHINE)


def test_every_device_class_and_both_models_have_one() -> None:
    classes = ("a100", "cpu", "h100", "p40", "v100")
    assert [f"{device}/bert-{size}.json" for device in classes for size in ("base", "large")] == READY


@pytest.mark.parametrize("path", READY)
def test_it_resolves_with_a_recipe_in_the_precision_of_its_class(path: str, tmp_path: Path) -> None:
    plan = planned(path, tmp_path)
    device = path.split("/")[0]
    assert {stage.precision for stage in plan.stages} == {DEVICE_CLASSES[device].precision}
    assert not any("needs about" in warning for warning in plan.warnings)


@pytest.mark.parametrize("path", READY)
def test_the_readme_links_to_it(path: str) -> None:
    assert f"({path})" in (DS_CONFIGS / "README.md").read_text()


def test_deepspeed_accepts_them_all(tmp_path: Path) -> None:
    configs = [stage.ds_config for path in READY for stage in planned(path, tmp_path).stages]
    done = subprocess.run(
        [sys.executable, "-c", ACCEPT],
        input=json.dumps(configs),
        capture_output=True,
        text=True,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )
    assert done.stdout.strip().endswith("accepted"), done.stderr
