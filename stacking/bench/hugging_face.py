"""Writes the same training step with `transformers` and DeepSpeed, as its users would.

It has a class of the same shape and vocabulary with its default attention (SDPA), labels at every position with -100
where nothing is predicted, padded inputs with an attention mask, the model's own loss, and the stage's exact DeepSpeed
configuration.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import deepspeed
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, BertForPreTraining

from stacking.bench.contender import Contender, Sections, unmeasured
from stacking.bench.trial import Trial
from stacking.data.sampler import SAMPLERS
from stacking.data.unpad import Unpadded
from stacking.huggingface.architecture import architecture_of
from stacking.huggingface.bert import BertFolder
from stacking.model.config import ModelConfig
from stacking.train.engine import parameter_groups

_IGNORED = -100


def untrained(model: ModelConfig, pairs: bool) -> Any:
    """Returns the class of transformers that does what ``model`` does, in fp32, with random weights.

    It is BERT, or ModernBERT for ``modern``, whose class has no next-sentence head.

    Args:
        pairs: whether there is a next-sentence task.
    """
    architecture = architecture_of(model)
    rival = architecture if architecture.rival else BertFolder()
    config = AutoConfig.for_model(**rival.config(model))  # type: ignore[no-untyped-call]
    if pairs and isinstance(rival, BertFolder):
        return BertForPreTraining._from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    return AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")


class HuggingFace(Contender):
    """A model of transformers in its own training loop, with or without `torch.compile`."""

    def __init__(self, trial: Trial, compiled: bool = False) -> None:
        super().__init__(trial)
        torch.manual_seed(self.plan.seed)
        model = untrained(self.plan.model.with_layers(self.stage.layers), SAMPLERS[self.plan.data.samples].pairs)
        self._takes = inspect.signature(model.forward).parameters
        self._compiled = compiled
        if compiled:
            model.compile()
        groups = parameter_groups(model, self.plan.optimizer.weight_decay, self.plan.optimizer.weight_decay_on)
        self.engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=self.stage.ds_config)
        self.engine.train()

    def prepare(self, unpadded: Unpadded) -> dict[str, Tensor]:
        batch = self.padded(unpadded)
        labels = np.full(batch.input_ids.size, _IGNORED, dtype=np.int64)
        labels[batch.mlm_positions] = batch.mlm_labels
        arrays = {
            "input_ids": batch.input_ids,
            "token_type_ids": batch.segment_ids,
            "labels": labels.reshape(batch.input_ids.shape),
        }
        if not batch.attention_mask.all():  # the model is fastest without a mask
            arrays["attention_mask"] = batch.attention_mask.astype(np.int64)
        if batch.nsp_labels is not None:
            arrays["next_sentence_label"] = batch.nsp_labels
        return {name: self._to_device(array) for name, array in arrays.items() if name in self._takes}

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor, device = torch.from_numpy(array), self.engine.device
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    def update(self, micro_batches: Sequence[dict[str, Tensor]], step: int, sections: Sections = unmeasured) -> None:
        for micro in micro_batches:
            with sections("forward"):
                loss = self.engine(**micro).loss
            with sections("backward"):
                self.engine.backward(loss)
            with sections("optimizer"):
                self.engine.step()

    def chosen(self) -> dict[str, str]:
        model: Any = self.engine.module
        return {
            "optimizer": self.optimizer_name(),
            "compile": "whole model" if self._compiled else "no",
            "attention asked for": model.config._attn_implementation,
            "model": type(model).__name__,
        }
