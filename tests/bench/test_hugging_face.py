"""What `stacking bench --against hf` trains: a class with the same matrices."""

from __future__ import annotations

import pytest

from stacking.model.config import VARIANTS, ModelConfig
from stacking.model.size import parameter_shapes
from tests.states import SMALL

pytest.importorskip("transformers.models.modernbert")
from stacking.bench.hugging_face import untrained


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_encoder_has_matrices_of_the_same_shapes(variant: str, pairs: bool) -> None:
    config = ModelConfig(**{**SMALL, "variant": variant})
    model = untrained(config, pairs)
    ours = [shape for name, shape in parameter_shapes(config).items() if name.startswith("layers.") and len(shape) == 2]
    theirs = [p.numel() for name, p in model.named_parameters() if ".layer" in name and p.ndim == 2]
    assert sum(theirs) == sum(rows * columns for rows, columns in ours)
    head = "PreTraining" if pairs and variant != "modern" else "MaskedLM"
    assert type(model).__name__ == f"{'ModernBert' if variant == 'modern' else 'Bert'}For{head}"


def test_the_counterpart_of_modern_has_the_same_dropout_and_positions() -> None:
    config = untrained(ModelConfig(**{**SMALL, "variant": "modern", "dropout": 0.2}), pairs=False).config
    assert (config.mlp_dropout, config.embedding_dropout, config.attention_dropout) == (0.2, 0.2, 0.1)
    assert set(config.layer_types) == {"full_attention"}
    assert config.rope_parameters["full_attention"]["rope_theta"] == 10_000
