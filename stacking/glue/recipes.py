"""Defines how a model is fine-tuned: named recipes with one setting per task, and what `--set` changes in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, ValidationError

from stacking.config.reading import Section, nearest, parse_yaml, user_error
from stacking.errors import UserError
from stacking.glue.tasks import TASKS


class FineTuning(Section):
    """The settings of one task. The learning rate rises linearly, then falls linearly to zero."""

    epochs: int = Field(ge=1)
    """Passes over the training set."""
    batch: int = Field(ge=1)
    """Examples per update."""
    learning_rate: float = Field(gt=0, le=1)
    """The peak."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the updates in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled, on every parameter."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Adam's epsilon. Its betas are 0.9 and 0.999, and its moments are corrected for their bias."""
    clip: float = Field(default=0.0, ge=0)
    """Largest norm of the gradients; 0: not clipped."""
    max_length: int = Field(default=128, ge=8)
    """Longest input in tokens, including special ones; longer inputs are cut. The model may have fewer positions."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Of encoder, attention and head; null: the model's own, and 0.1 for the head."""
    head: Literal["zero", "normal"] = "normal"
    """Initial weights of the classification head: zero, or drawn with a standard deviation of 0.02."""
    swap_pairs: bool = False
    """Exchange the two sentences of every other training pair at random."""
    standardise: bool = False
    """Train on (score − 3) / 2 instead of the score itself."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products; weights and moments are always fp32."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many updates, with the schedule shortened; null: train all epochs."""


_ORIGINAL = {"warmup": 0.1, "weight_decay": 0.01, "epsilon": 1e-6, "dropout": 0.1, "head": "zero"}
_RUN_GLUE = {"epochs": 3, "batch": 32, "learning_rate": 2e-5, "clip": 1.0}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "original": {
        "CoLA": {**_ORIGINAL, "epochs": 3, "batch": 16, "learning_rate": 5e-5},
        "SST-2": {**_ORIGINAL, "epochs": 3, "batch": 16, "learning_rate": 5e-5},
        "MRPC": {**_ORIGINAL, "epochs": 3, "batch": 16, "learning_rate": 5e-5, "swap_pairs": True},
        "STS-B": {
            **_ORIGINAL, "epochs": 4, "batch": 32, "learning_rate": 5e-5, "swap_pairs": True, "standardise": True,
        },
        "QQP": {**_ORIGINAL, "epochs": 4, "batch": 32, "learning_rate": 5e-5, "swap_pairs": True},
        "MNLI": {**_ORIGINAL, "epochs": 3, "batch": 16, "learning_rate": 5e-5},
        "QNLI": {**_ORIGINAL, "epochs": 3, "batch": 32, "learning_rate": 5e-5},
        "RTE": {**_ORIGINAL, "epochs": 4, "batch": 16, "learning_rate": 3e-5},
        "WNLI": {**_ORIGINAL, "epochs": 4, "batch": 16, "learning_rate": 3e-5},
    },
    "run_glue": {
        **dict.fromkeys(TASKS, _RUN_GLUE),
        "MRPC": {**_RUN_GLUE, "epochs": 5},
        "WNLI": {**_RUN_GLUE, "epochs": 5},
    },
}  # fmt: skip
"""``original``: the fine-tuning scripts that Gong et al. (2019) published; WNLI, which they lack, is trained as RTE.
``run_glue``: the values in the README of Hugging Face's script."""


def settings(recipe: str, changes: Iterable[str] = ()) -> dict[str, FineTuning]:
    """Returns the settings of every task.

    Args:
        changes: ``KEY=VALUE`` for all tasks, or ``TASK.KEY=VALUE`` for one.

    Raises:
        UserError: the recipe, a task or a key is unknown, or a value is invalid.
    """
    if recipe not in RECIPES:
        raise UserError("--recipe", f"is {recipe!r}", nearest(recipe, RECIPES))
    values = {task: dict(row) for task, row in RECIPES[recipe].items()}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}", "has no value", "write KEY=VALUE or TASK.KEY=VALUE")
        given, dot, name = key.rpartition(".")
        task = next((task for task in TASKS if task.lower() == given.lower()), "")
        if dot and not task:
            raise UserError(f"--set {key}", f"names the task {given!r}", nearest(given, TASKS))
        value = parse_yaml(text, f"--set {key}")
        for row in [values[task]] if dot else values.values():
            row[name] = value
    return {task: _checked(task, row) for task, row in values.items()}


def _checked(task: str, row: dict[str, Any]) -> FineTuning:
    try:
        return FineTuning.model_validate(row)
    except ValidationError as error:
        raise user_error(error, FineTuning, f"--set {task}") from None
