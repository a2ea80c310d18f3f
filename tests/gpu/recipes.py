"""Small recipes that run on the card, and beside it on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.chain import train_alone, write_recipe
from tests.gpu.card import DEVICE

STEPS = 4
ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": DEVICE.type, "COLUMNS": "120"}
"""Of a command that runs on the card."""
MODEL = {"hidden": 128, "heads": 2, "max_positions": 64, "dropout": 0, "attention_dropout": 0}


def one_stage(folder: Path, data: Path, precision: str, zero: int = 0, ranks: int = 1, **changes: Any) -> Path:
    """Writes a recipe of two layers and a few updates on the card; returns its file."""
    folder.mkdir()
    rate = {"peak": 1e-3, "warmup_steps": 0}
    stage = {"layers": 2, "steps": STEPS, "batch_sequences": 16, "micro_batch": 4, "learning_rate": rate}
    scaled = {"fp16": {"enabled": True, "initial_scale_power": 8}} if precision == "fp16" else {}  # nothing overflows
    defaults: dict[str, Any] = {
        "precision": precision,
        "model": MODEL,
        "stages": [stage],
        "ds_config": {"zero_optimization": {"stage": zero}, **scaled},
        "launch": {"ranks": ranks, "accelerator": DEVICE.type},
        "evaluation": {"every_steps": 1, "samples": 32},
    }
    return write_recipe(folder, data, **{**defaults, **changes})


def records(folder: Path, recipe: Path) -> list[dict[str, Any]]:
    """Trains the stage, and returns what it recorded of every update and evaluation."""
    return train_alone(folder / "run", recipe)


def losses(found: list[dict[str, Any]], kind: str = "train") -> list[float]:
    """Returns the losses of every update, or of every evaluation."""
    return [record["loss"] for record in found if record["kind"] == kind]
