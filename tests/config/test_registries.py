"""One row is all that a new name needs before a recipe may use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stacking.config.recipe import recipe_from
from stacking.data.sampler import SAMPLERS
from stacking.errors import UserError
from stacking.growth.operators import OPERATORS, OPTIMIZER_STATES
from stacking.hardware.presets import DEVICE_CLASSES, SHAPES
from stacking.launch.registry import LAUNCHERS

STAGES = [{"layers": 1, "steps": 1, "batch_sequences": 1, "learning_rate": {"peak": 1e-3}}]
TABLES: dict[str, Any] = {
    "growth.operator": OPERATORS,
    "growth.optimizer_state": OPTIMIZER_STATES,
    "data.samples": SAMPLERS,
    "launch.launcher": LAUNCHERS,
    "launch.device": DEVICE_CLASSES,
    "model.shape": SHAPES,
}


@pytest.mark.parametrize("key", TABLES)
def test_a_row_is_a_name(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f'{key}: is "newest"; choose one of|did you mean'):
        recipe_from({"stages": STAGES}, Path("r.yaml"), [f"{key}=newest"])
    monkeypatch.setitem(TABLES[key], "newest", next(iter(TABLES[key].values())))
    recipe = recipe_from({"stages": STAGES}, Path("r.yaml"), [f"{key}=newest"])
    section, name = key.split(".")
    assert getattr(getattr(recipe, section), name) == "newest"
