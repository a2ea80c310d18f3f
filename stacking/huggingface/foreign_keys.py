"""Classifies keys of a ``config.json`` that are not BERT's: some change the function, others have no effect."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from stacking.errors import UserError

_LOADING_AND_LABELS = """
    _name_or_path name_or_path architectures auto_map transformers_version torch_dtype dtype id2label label2id
    num_labels _num_labels num_choices problem_type finetuning_task task_specific_params use_cache output_past
    output_attentions output_hidden_states return_dict use_return_dict torchscript xla_device gradient_checkpointing
    chunk_size_feed_forward attn_implementation _attn_implementation _attn_implementation_autoset use_bfloat16
    tie_word_embeddings tie_encoder_decoder is_encoder_decoder bos_token_id eos_token_id eos_token_ids sep_token_id
    cls_token_id mask_token_id unk_token_id decoder_start_token_id tokenizer_class prefix language classifier_dropout
    cross_attention_hidden_size add_pooling_layer sentence_transformers matryoshka_dimensions
"""
_GENERATION = """
    max_length min_length do_sample early_stopping num_beams num_beam_groups temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size suppress_tokens
    begin_suppress_tokens bad_words_ids num_return_sequences diversity_penalty forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty output_scores return_dict_in_generate
"""
_IN_GOOGLES_CONFIGS = """
    directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
"""
WITHOUT_EFFECT = frozenset((_LOADING_AND_LABELS + _GENERATION + _IN_GOOGLES_CONFIGS).split())
"""Keys that do not affect what the encoder computes."""

ANOTHER_FUNCTION: dict[str, str] = {
    "layer_norm_large_model": "moves the LayerNorms",
    "num_hidden_groups": "lets layers share their weights, as ALBERT does",
    "inner_group_num": "lets layers share their weights, as ALBERT does",
    "use_relative_position": "makes positions relative",
    "use_relative_positions": "makes positions relative",
    "relative_attention": "makes positions relative, as DeBERTa does",
    "max_relative_position": "makes positions relative, as NEZHA does",
    "attention_window": "restricts attention, as Longformer does",
    "use_bottleneck": "narrows the layers, as MobileBERT does",
    "pruned_heads": "removes attention heads",
    "quantization_config": "quantises the weights",
    "quant_mode": "quantises the weights, as I-BERT does",
}
"""Keys of models similar to BERT, and the effect of each."""

_MECHANISM = re.compile(
    r"(^|_)(layer|norm|pos|rotary|rope|alibi|relative|attention|attn|embed|hidden|head|num_expert|expert|moe|s?glu|geglu"
    r"|gate|gating|conv_|residual|window|sparse|shar|group|bias|scal|bottleneck|adapter|quant|prun|highway|activation"
    r"|parallel_|recurren|qk_|pre_(ln|layer|norm)|ffn|mlp|feed_forward|token_type|type_vocab)"
)
"""Parts of key names that refer to the encoder's function; dropout only affects training."""

_SYNONYMS = {
    "embedding_size": "hidden_size",
    "embedding_dim": "hidden_size",
    "hidden_dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
    "max_seq_length": "max_position_embeddings",
}
"""Keys that have no effect if they agree with BERT's."""

_AS_IN_BERT: dict[str, tuple[Any, ...]] = {
    "attention_type": ("original_full", "full"),
    "attention_bias": (True,),
    "use_bias": (True,),
    "mlp_bias": (True,),
    "norm_type": ("layer_norm", "layernorm", "LayerNorm"),
    "layer_norm_type": ("post", "post_ln", "layer_norm"),
    "position_biased_input": (True,),
}
"""Values of unknown keys that describe an ordinary BERT."""


def foreign_keys(content: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Returns the keys outside ``known`` that are set and may have an effect."""
    return {
        key: value
        for key, value in content.items()
        if key not in known
        and key not in WITHOUT_EFFECT
        and value
        and value not in _AS_IN_BERT.get(key, ())
        and not (key in _SYNONYMS and value == content.get(_SYNONYMS[key]))
    }


def check_foreign_keys(content: Mapping[str, Any], known: Collection[str], where: Path) -> None:
    """Rejects keys that change, or may change, BERT's function.

    Raises:
        UserError: there is such a key; the message names it and its effect, if known.
    """
    for key, value in foreign_keys(content, known).items():
        if key in ANOTHER_FUNCTION:
            problem = f"is {short_repr(value)}, which {ANOTHER_FUNCTION[key]}"
            raise UserError(f"{where}: {key}", problem, "only an ordinary BERT can be used here")
        if _MECHANISM.search(key.lower()) and "drop" not in key.lower():
            problem = f"is {short_repr(value)}: BERT has no such key, and it may change what the model computes"
            raise UserError(f"{where}: {key}", problem, "remove the key if it does not")
