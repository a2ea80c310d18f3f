"""Writes the recipe of an expansion: a pretrained model grows, its added layers are trained, then all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def expansion_recipe(
    model: Path,
    layers: int,
    operator: str,
    layers_from: Sequence[str] | None,
    *,
    steps: int,
    alone_steps: int,
    batch_sequences: int,
    learning_rate: float,
) -> dict[str, Any]:
    """Returns the content of a recipe with one stage, which `recipe_from` validates.

    Args:
        model: a Hugging Face BERT or a state.
        layers: depth of the grown model.
        operator: how it is reached, unless ``layers_from`` lists the source of each layer.
        steps: updates in all, of which the first ``alone_steps`` change only the added layers.
        batch_sequences: sequences per update.
        learning_rate: the peak, after a twentieth of the steps; it falls to 0 at the end.
    """
    mapping = {"operator": operator} if layers_from is None else {"layers_from": list(layers_from)}
    return {
        "name": f"{model.absolute().name}-{layers}-layers",
        "start": str(model.absolute()),
        "stages": [
            {
                "layers": layers,
                "steps": steps,
                "batch_sequences": batch_sequences,
                "learning_rate": {"peak": learning_rate, "warmup_steps": steps // 20, "end": 0},
                "growth": {**mapping, "new_layers": {"alone_steps": alone_steps}},
            }
        ],
        "checkpoint": {"every_steps": max(1, min(1000, steps // 10))},
        "evaluation": {"every_steps": max(1, min(1000, steps // 10))},
    }
