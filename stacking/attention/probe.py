"""Runs models and takes their attention probabilities. The only module of this package that needs torch.

Shapes: L layers, B sequences, A heads, S positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor

from stacking.attention.found import FoundModel
from stacking.attention.tally import F32, Bool
from stacking.errors import UserError
from stacking.evaluate.mlm import load_model, model_of
from stacking.model.bert import Bert
from stacking.model.kernels import PLAIN, Kernels
from stacking.model.layers import SelfAttention
from stacking.model.tokens import Layout, padded_tokens
from stacking.state.zero import ZeroCheckpoint
from stacking.terminal.units import counted

I64 = npt.NDArray[np.int64]

_ENCODERS = "give a BERT, or another encoder with attention, for transformers"


def open_probe(found: FoundModel) -> Probe:
    """Loads the model, in fp32 on the CPU, without dropout.

    Raises:
        UserError: it is not an encoder, or cannot be read.
        DamagedFile: a file is truncated or altered.
    """
    if found.kind == "huggingface":
        return HuggingFaceProbe(found.path)
    if found.kind == "state":
        return OwnProbe(load_model(found.path))
    checkpoint = ZeroCheckpoint(found.path)
    if checkpoint.model is None:
        remedy = "make a state of it: stacking consolidate CHECKPOINT --config CONFIG --out STATE"
        raise UserError(found.path, "does not describe its model", remedy)
    return OwnProbe(model_of(checkpoint, checkpoint.model))


class OwnProbe:
    """A model of this project."""

    def __init__(self, model: Bert) -> None:
        self._model = model.eval()
        config = model.config
        self.layers, self.heads, self.vocabulary = config.layers, config.heads, config.vocabulary
        self.longest: int | None = config.max_positions
        self.padding_id = config.padding_id

    @torch.no_grad()
    def attend(self, input_ids: I64, segment_ids: I64, mask: Bool) -> F32:
        """Returns the probabilities [L, B, A, S, S], the last dimension over keys.

        Args:
            input_ids: [B, S].
            segment_ids: [B, S].
            mask: [B, S], True at real tokens, with all padding at the ends.
        """
        nothing = np.empty(0, dtype=np.int64)
        tokens = padded_tokens(input_ids, segment_ids, mask, nothing)
        with _recorded(self._model) as probabilities:
            self._model.encode(tokens)
        return torch.stack(probabilities).numpy()


@dataclass(frozen=True)
class _Recording(Kernels):
    """Kernels whose attention computes explicit probabilities, uses them, and keeps them."""

    probabilities: list[Tensor] = field(default_factory=list)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, dropout: float
    ) -> Tensor:
        (group,) = keys.groups
        q, k, v = (rows.unflatten(0, (group.sequences, group.length)).transpose(1, 2) for rows in (query, key, value))
        scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5
        if group.mask is not None:
            scores = scores.masked_fill(~group.mask, -torch.inf)
        self.probabilities.append(scores.softmax(-1))
        mixed: Tensor = self.probabilities[-1] @ v
        return mixed.transpose(1, 2).flatten(0, 1)


@contextmanager
def _recorded(model: Bert) -> Iterator[list[Tensor]]:
    """Records the probabilities [B, A, S, S] of every layer that runs inside the block."""
    recording = _Recording(**vars(PLAIN))
    modules = [module for module in model.modules() if isinstance(module, SelfAttention)]
    before = [module.kernels for module in modules]
    for module in modules:
        module.kernels = recording
    try:
        yield recording.probabilities
    finally:
        for module, kernels in zip(modules, before, strict=True):
            module.kernels = kernels


class HuggingFaceProbe:
    """Any encoder that transformers loads from a folder and that returns its attention."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model = _loaded(folder).eval()
        config = self._model.config
        self.layers, self.heads = self._counted("num_hidden_layers"), self._counted("num_attention_heads")
        self.vocabulary = self._counted("vocab_size")
        self.padding_id = getattr(config, "pad_token_id", None) or 0
        self.longest = _longest(config)
        parameters = inspect.signature(self._model.forward).parameters
        self._segments = getattr(config, "type_vocab_size", 0) if "token_type_ids" in parameters else 0

    @torch.no_grad()
    def attend(self, input_ids: I64, segment_ids: I64, mask: Bool) -> F32:
        """Returns the same as `OwnProbe.attend`.

        Raises:
            UserError: the model cannot be used.
        """
        inputs = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask).long()}
        if self._segments > 1:
            inputs["token_type_ids"] = torch.from_numpy(segment_ids)
        try:
            found = self._model(**inputs, output_attentions=True).get("attentions")
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise self._refused(f"does not run on text ({_first_line(error)})") from None
        return self._checked(found, mask)

    def _checked(self, found: tuple[Tensor, ...] | None, mask: Bool) -> F32:
        """Returns the probabilities as one array.

        Raises:
            UserError: there are none, they are not from all to all tokens, or none looks to the right.
        """
        batch, length = mask.shape
        if not found or any(layer is None for layer in found):
            raise self._refused("returns no attention probabilities")
        if {tuple(layer.shape) for layer in found} != {(batch, self.heads, length, length)}:
            raise self._refused("does not attend from every token to every token")
        probabilities = torch.stack([layer.float() for layer in found]).numpy()
        self.layers = len(found)
        if length > 1 and not np.triu(probabilities[..., :, :], 1).any():
            raise self._refused("attends only to earlier tokens, so it is a decoder, not an encoder")
        return probabilities

    def _counted(self, key: str) -> int:
        value = getattr(self._model.config, key, None)
        if type(value) is not int or value < 1:
            raise self._refused(f"has no {key}, so it is not an encoder of text")
        return value

    def _refused(self, problem: str) -> UserError:
        return UserError(self._folder, problem, _ENCODERS)


Probe = OwnProbe | HuggingFaceProbe


def _loaded(folder: Path) -> Any:
    """Loads the bare model of a Hugging Face folder, with attention computed explicitly."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        remedy = "check its config.json; for an old BERT folder: stacking import FOLDER --out STATE"
        raise UserError(folder, f"is not read by transformers ({_first_line(error)})", remedy) from None
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise UserError(folder, f"is not an encoder ({config.model_type})", _ENCODERS)
    try:
        model, report = transformers.AutoModel.from_pretrained(
            folder,
            config=config,
            attn_implementation="eager",
            local_files_only=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        problem = f"is not loaded by transformers ({_first_line(error)})"
        raise UserError(folder, problem, _ENCODERS) from None
    if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
        problem = f"lacks {counted(len(missing), 'weight')} of its model, such as {missing[0]}"
        raise UserError(folder, problem, "take the complete folder")
    return model


def _longest(config: Any) -> int | None:
    """Returns the most tokens of a sequence; RoBERTa's positions begin behind its padding id."""
    positions = getattr(config, "max_position_embeddings", None)
    if type(positions) is not int or positions < 1:
        return None
    shifted = config.model_type in ("roberta", "xlm-roberta", "camembert", "longformer")
    return positions - (config.pad_token_id or 0) - 1 if shifted else positions


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
