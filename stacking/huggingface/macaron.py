"""Writes ``macaron`` models for `transformers`, which has no such class: with `modeling_macaron.py` beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from stacking.huggingface.architecture import OWN_MODEL, Architecture
from stacking.huggingface.names import ACTIVATIONS, CONFIG_KEYS
from stacking.model.config import ModelConfig
from stacking.model.sinusoids import sinusoids
from stacking.model.size import parameter_shapes

_HEADS = ("mlm_head.", "nsp_head.")
_CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForMaskedLM": "ForMaskedLM"}


class MacaronFolder(Architecture):
    """Holds every parameter unchanged, the encoder's under ``encoder.``, and positions always as a table."""

    model_type = "macaron-bert"
    code = "modeling_macaron.py"
    use = (
        "The class is `modeling_macaron.py` in this folder. It has no next-sentence head; that is in "
        "`nsp_head.safetensors`: one logit of the first token's vector."
    )
    aside = ("nsp_head.",)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return {
            "architectures": ["MacaronBertForMaskedLM"],
            "auto_map": {auto: f"modeling_macaron.MacaronBert{name}" for auto, name in _CLASSES.items()},
            "model_type": self.model_type,
            **{theirs: getattr(model, ours) for ours, theirs in CONFIG_KEYS.items()},
            "hidden_act": ACTIVATIONS[model.activation],
            "norm_affine": model.norm_affine,
            OWN_MODEL: model.model_dump(),
        }

    def names(self, model: ModelConfig) -> dict[str, tuple[str, ...]]:
        return {name: (name if name.startswith(_HEADS) else f"encoder.{name}",) for name in parameter_shapes(model)}

    def constants(self, model: ModelConfig) -> dict[str, np.ndarray]:
        if model.positions == "learned":
            return {}
        return {"encoder.embeddings.positions.weight": sinusoids(model.max_positions, model.hidden)}
