"""Maps ``post_ln`` models to `transformers.BertForPreTraining`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stacking.huggingface.architecture import Architecture
from stacking.huggingface.names import config_notes, from_hugging_face, hugging_face_names, to_hugging_face
from stacking.model.config import ModelConfig


class BertFolder(Architecture):
    """Every parameter stands there unchanged; folders of other programs are read too."""

    model_type = "bert"
    tied = True
    use = "`BertForPreTraining` loads the next-sentence head as well."

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return to_hugging_face(model)

    def names(self, model: ModelConfig) -> dict[str, tuple[str, ...]]:
        return hugging_face_names(model)

    def model(self, content: Any, where: Path) -> ModelConfig:
        return from_hugging_face(content, where)

    def notes(self, content: dict[str, Any]) -> list[str]:
        return config_notes(content)
