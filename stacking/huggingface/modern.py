"""Maps ``modern`` models to `transformers.ModernBertForMaskedLM` with full attention in every layer."""

from __future__ import annotations

from typing import Any, ClassVar

from stacking.huggingface.architecture import OWN_MODEL, Architecture
from stacking.huggingface.names import ACTIVATIONS
from stacking.model.config import ROTARY_BASE, ModelConfig

_CONFIG_KEYS = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "intermediate": ("intermediate_size",),
    "vocabulary": ("vocab_size",),
    "max_positions": ("max_position_embeddings",),
    "norm_eps": ("norm_eps",),
    "dropout": ("embedding_dropout", "mlp_dropout"),
    "attention_dropout": ("attention_dropout",),
    "initializer_range": ("initializer_range",),
    "padding_id": ("pad_token_id",),
}
_BIASES = {
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "classifier_bias": False,
    "decoder_bias": True,
}
_NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
"""The defaults are numbers of ModernBERT's own tokens; the tokenizer knows this model's."""


class ModernFolder(Architecture):
    """Holds every parameter unchanged; the attention norm of the lowest layer is the norm of the embeddings."""

    model_type = "modernbert"
    use = (
        "`ModernBertForMaskedLM` has no next-sentence head; that is in `nsp_head.safetensors`: one logit of the "
        "first token's vector."
    )
    rival = True
    inputs = ("input_ids", "attention_mask")
    aside = ("nsp_head.",)
    outside: ClassVar = {
        "embeddings.tokens": "model.embeddings.tok_embeddings",
        "layers.0.attention_norm": "model.embeddings.norm",
        "final_norm": "model.final_norm",
        "mlm_head.bias": "decoder.bias",
        "mlm_head.transform": "head.dense",
        "mlm_head.norm": "head.norm",
        "nsp_head": "nsp_head",
    }
    layers = "model.layers"
    inside: ClassVar = {
        "attention.qkv": ("attn.Wqkv",),
        "attention.output": ("attn.Wo",),
        "attention_norm": ("attn_norm",),
        "feed_forward.up": ("mlp.Wi",),
        "feed_forward.down": ("mlp.Wo",),
        "feed_forward_norm": ("mlp_norm",),
    }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        rotary = {"rope_type": "default", "rope_theta": ROTARY_BASE}
        activation = ACTIVATIONS[model.activation]
        return {
            "architectures": ["ModernBertForMaskedLM"],
            "model_type": self.model_type,
            **{their: getattr(model, ours) for ours, theirs in _CONFIG_KEYS.items() for their in theirs},
            **_BIASES,
            **_NO_TOKENS,
            "hidden_activation": activation,
            "classifier_activation": activation,
            "tie_word_embeddings": True,
            "layer_types": ["full_attention"] * model.layers,
            "rope_parameters": {"full_attention": rotary, "sliding_attention": rotary},
            # The same for transformers 4.
            "global_attn_every_n_layers": 1,
            "global_rope_theta": ROTARY_BASE,
            OWN_MODEL: model.model_dump(),
        }
