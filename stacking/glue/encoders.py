"""Defines the encoders to fine-tune: this project's model, without padding, or any encoder of transformers, padded.

Shapes: B sequences with T tokens in total, the longest of S; H hidden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stacking.data.unpad import Unpadded
from stacking.errors import DamagedFile, UserError, first_line
from stacking.glue.model_source import ModelSource
from stacking.glue.recipes import FineTuning
from stacking.huggingface.export import read_model, read_weights
from stacking.huggingface.folder import read_config
from stacking.huggingface.importing import read_hugging_face
from stacking.model.bert import Bert, build
from stacking.model.config import ModelConfig
from stacking.model.kernels import kernels_for, use
from stacking.model.tokens import copied, to, unpadded_tokens

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SentenceEncoder(nn.Module, ABC):
    """Maps each sequence to one vector."""

    name: str
    """The implementation that computes it, in words for the user."""
    width: int
    """H."""
    longest: int
    """Positions of the model."""
    vocabulary: int
    """Rows of the token embedding."""

    @abstractmethod
    def forward(self, batch: Unpadded) -> Tensor:
        """Returns the vectors [B, H] of the sequences, on the encoder's device."""


class StackingEncoder(SentenceEncoder):
    """This project's BERT: real tokens alone, and the last layer only at the first token of each sequence."""

    name = "stacking, without padding"

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self.bert = bert
        self.width, self.longest, self.vocabulary = (
            bert.config.hidden,
            bert.config.max_positions,
            bert.config.vocabulary,
        )

    def forward(self, batch: Unpadded) -> Tensor:
        tokens = to(unpadded_tokens(batch), next(self.parameters()).device)
        hidden = self.bert.encode_needed(tokens)
        return self.bert.pooled(hidden.index_select(0, tokens.first))


class TransformersEncoder(SentenceEncoder):
    """An encoder of transformers, on padded sequences."""

    name = "transformers, padded"

    def __init__(self, model: Any, has_pooler: bool, padded_to: int | None = None) -> None:
        """Takes a loaded ``AutoModel``.

        Args:
            has_pooler: whether its pooler is trained.
            padded_to: tokens; None: pad to the longest sequence of the batch.
        """
        super().__init__()
        self.model = model
        self._padded_to = padded_to
        self._has_pooler = has_pooler
        self.width, self.vocabulary = model.config.hidden_size, model.config.vocab_size
        self._padding = model.config.pad_token_id or 0
        self.longest = getattr(model.config, "max_position_embeddings", 0) or 512
        if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
            self.longest -= self._padding + 1  # positions are counted from there
        self._has_segments = (getattr(model.config, "type_vocab_size", 0) or 0) > 1

    def forward(self, batch: Unpadded) -> Tensor:
        device = next(self.parameters()).device
        mask = np.arange(self._padded_to or batch.lengths.max()) < batch.lengths[:, None]
        inputs = {"input_ids": _padded(batch.input_ids, mask, self._padding), "attention_mask": mask.astype(np.int64)}
        if self._has_segments:
            inputs["token_type_ids"] = _padded(batch.segment_ids, mask, 0)
        output = self.model(**{name: copied(torch.from_numpy(value), device) for name, value in inputs.items()})
        vectors: Tensor = output.pooler_output if self._has_pooler else output.last_hidden_state[:, 0]
        return vectors


def _padded(values: np.ndarray, mask: np.ndarray, filler: int) -> np.ndarray:
    rows = np.full(mask.shape, filler, dtype=np.int64)
    rows[mask] = values
    return rows


def open_encoder(source: ModelSource, recipe: FineTuning, device: torch.device) -> tuple[SentenceEncoder, list[str]]:
    """Loads a model in fp32 on ``device``; also returns notes for the user.

    A Hugging Face BERT is loaded into this project's model, anything else into transformers' own.

    Raises:
        UserError: the model cannot be loaded.
        DamagedFile: a file of it is damaged.
    """
    notes: list[str] = []
    if source.kind == "state":
        state, config = read_model(source.path)
        weights = ((name, torch.from_numpy(values)) for name, values in read_weights(state, config))
        return StackingEncoder(_bert(config, weights, recipe, device)), notes
    try:
        config, parameters, missing = read_hugging_face(source.path)
        encoder: SentenceEncoder = StackingEncoder(_bert(config, parameters, recipe, device))
        if any(name.startswith("pooler.") for name in missing):
            notes.append("the model has no pooler; a new one is drawn with seed 0")
    except DamagedFile:
        raise
    except UserError as error:
        notes.append(f"transformers computes the model, because {error.problem} ({error.where})")
        encoder = of_transformers(source, recipe).to(device)
    return encoder, notes


def is_bert(source: ModelSource) -> bool:
    """Returns whether the tokenizer must be WordPiece, as for every model that this project can hold."""
    return source.kind == "state" or read_config(source.path)[1].get("model_type", "bert") == "bert"


def _bert(config: ModelConfig, weights: Iterable[tuple[str, Tensor]], recipe: FineTuning, device: torch.device) -> Bert:
    if recipe.dropout is not None:
        config = config.model_copy(update={"dropout": recipe.dropout, "attention_dropout": recipe.dropout})
    model = build(config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in weights:
            parameters[name].copy_(values)
    dtype = _DTYPES[recipe.precision]
    use(model, kernels_for(device, dtype, config.hidden // config.heads, config.attention_dropout))
    return model.to(device)


def of_transformers(source: ModelSource, recipe: FineTuning, padded_to: int | None = None) -> TransformersEncoder:
    """Loads an encoder in fp32 with transformers, on the CPU.

    Args:
        padded_to: as for `TransformersEncoder`.

    Raises:
        UserError: transformers cannot load it, it is not an encoder, or lacks a part.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    dropout = {} if recipe.dropout is None else _dropouts(source, recipe.dropout)
    try:
        loaded: Any = transformers.AutoModel.from_pretrained(
            str(source.path), local_files_only=True, trust_remote_code=False, output_loading_info=True, **dropout
        )
    except Exception as error:  # each class of transformers raises its own types
        reason = first_line(error)[:160]
        problem = f"is not a BERT, and transformers cannot load it ({reason})"
        raise UserError(source.path, problem, "give an encoder that transformers.AutoModel loads") from None
    model, report = loaded
    missing = list(report["missing_keys"])
    if getattr(model.config, "is_encoder_decoder", False) or not hasattr(model.config, "hidden_size"):
        raise UserError(source.path, f"is a {type(model).__name__}, not an encoder", "give an encoder such as BERT")
    if encoder_missing := [name for name in missing if "pooler" not in name]:
        raise UserError(source.path, f"lacks {encoder_missing[0]}", "give a complete model")
    has_pooler = getattr(model, "pooler", None) is not None and not missing
    return TransformersEncoder(model.float(), has_pooler, padded_to)


def _dropouts(source: ModelSource, dropout: float) -> dict[str, float]:
    """Returns the keys of a configuration that say how much dropout there is, with a new value."""
    _, content = read_config(source.path)
    return {key: dropout for key, value in content.items() if "dropout" in key and isinstance(value, float | int)}
