"""Small state folders for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stacking.model.bert import build
from stacking.model.config import ModelConfig
from stacking.state.format import WEIGHTS, new_state

SMALL: dict[str, Any] = {
    "layers": 2, "hidden": 32, "heads": 4, "intermediate": 48, "vocabulary": 101, "max_positions": 40,
}  # fmt: skip


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights without any zero or one that a mapping could confuse."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.3 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in build(config).named_parameters()
    }


def write_state(folder: Path, config: ModelConfig | None, weights: dict[str, Tensor], **provenance: Any) -> Path:
    """A state folder without moments."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    progress = {"stage": "0-L2", "step": 7, "samples": 56, "tokens": 1_792}
    with new_state(
        folder, shapes, moments=False, optimizer_step=7, model=config, progress=progress, provenance=provenance
    ) as append:
        for name, tensor in weights.items():
            append(WEIGHTS, name, tensor.numpy().reshape(-1))
    return folder
