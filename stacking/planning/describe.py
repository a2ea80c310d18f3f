"""Describes the model of a checkpoint that does not: from a Hugging Face config or a recipe, without torch."""

from __future__ import annotations

import re
from pathlib import Path

from stacking.config.recipe import load_recipe
from stacking.errors import UserError
from stacking.huggingface.architecture import model_in
from stacking.huggingface.described import DescribedCheckpoint
from stacking.huggingface.folder import read_config
from stacking.huggingface.tensor_names import TOKENS
from stacking.model.config import ModelConfig
from stacking.planning.initial_model import model_config, read_start
from stacking.state.format import TrainingState
from stacking.state.zero import ZeroCheckpoint
from stacking.storage.files import read_json

_OUR_TOKENS = "embeddings.tokens.weight"
_LAYER = re.compile(r"(?:^|\.)(?:layers|encoder\.layer)\.(\d{1,9})\.")


def described(config: Path, checkpoint: ZeroCheckpoint) -> DescribedCheckpoint:
    """Returns ``checkpoint`` as a state of the model that ``config`` describes.

    Raises:
        UserError: ``config`` does not describe a BERT, or describes another model than the checkpoint's.
    """
    return DescribedCheckpoint(checkpoint, described_model(config, checkpoint))


def described_model(config: Path, checkpoint: TrainingState) -> ModelConfig:
    """Returns the model that ``config`` describes; a recipe's missing depth and vocabulary come from ``checkpoint``.

    Args:
        config: a Hugging Face ``config.json``, its folder, or a recipe.

    Raises:
        UserError: it is none of these, or does not describe a BERT.
    """
    if config.is_dir():
        where, content = read_config(config)
        return model_in(content, where)
    if config.suffix == ".json":
        return model_in(read_json(config), config)
    recipe = load_recipe(config)
    tokens = next((name for name in checkpoint.names if name.endswith((_OUR_TOKENS, TOKENS))), None)
    if tokens is None:
        raise UserError(config, "describes a BERT, but the checkpoint has no token embedding", "check the checkpoint")
    found = model_config(recipe, read_start(recipe), vocabulary=checkpoint.shape(tokens)[0])
    layers = {match[1] for name in checkpoint.names if (match := _LAYER.search(name))}
    return found.with_layers(len(layers)) if layers else found
