"""Small models and batches that the model tests share."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from stacking.data.batch import Batch
from stacking.model.config import ModelConfig
from stacking.model.tokens import Tokens, padded_tokens
from tests.states import SMALL

CONFIGS = {
    "post_ln": ModelConfig(variant="post_ln", **SMALL),
    "pre_ln": ModelConfig(variant="pre_ln", positions="sinusoidal", norm_affine=False, norm_eps=1e-5, **SMALL),
    "macaron": ModelConfig(variant="macaron", positions="sinusoidal", norm_affine=False, norm_eps=1e-5, **SMALL),
    "modern": ModelConfig(variant="modern", norm_eps=1e-5, **SMALL),
    "pre_ln, learned positions, affine norms": ModelConfig(variant="pre_ln", **SMALL),
}


class Inputs(NamedTuple):
    """Padded sequences, their masked positions, and the labels."""

    input_ids: Tensor
    segment_ids: Tensor
    attention_mask: Tensor | None
    mlm_positions: Tensor
    mlm_labels: Tensor
    nsp_labels: Tensor | None

    @property
    def tokens(self) -> Tokens:
        """The sequences with their padding, as a model reads them."""
        mask = None if self.attention_mask is None else self.attention_mask.numpy()
        return padded_tokens(self.input_ids.numpy(), self.segment_ids.numpy(), mask, self.mlm_positions.numpy())

    @property
    def arguments(self) -> tuple[Tokens, Tensor, Tensor | None]:
        """The arguments of a model's ``forward``, in its order."""
        return self.tokens, self.mlm_labels, self.nsp_labels


def as_batch(inputs: Inputs) -> Batch:
    """``inputs`` as a sampler would return them."""
    assert inputs.attention_mask is not None and inputs.nsp_labels is not None
    arrays = (tensor.numpy() for tensor in inputs if tensor is not None)
    return Batch(*arrays)


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Each variant in turn."""
    return request.param


def example() -> Inputs:
    """Three sequences of 16, 16 and 9 real tokens with five masked positions."""
    generator = torch.Generator().manual_seed(5)
    input_ids = torch.randint(1, 101, (3, 16), generator=generator)
    attention_mask = torch.ones(3, 16, dtype=torch.bool)
    attention_mask[2, 9:] = False
    input_ids[~attention_mask] = 0
    segment_ids = (torch.arange(16) >= 7).long().expand(3, 16) * attention_mask
    mlm_positions = torch.tensor([2, 11, 17, 30, 38])
    mlm_labels = torch.randint(1, 101, (5,), generator=generator)
    return Inputs(input_ids, segment_ids, attention_mask, mlm_positions, mlm_labels, torch.tensor([0, 1, 0]))


@pytest.fixture
def inputs() -> Inputs:
    """A batch; see ``example``."""
    return example()
