"""Small models and batches that the model tests share."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from stacking.model.config import ModelConfig
from tests.states import SMALL

CONFIGS = {
    "post_ln": ModelConfig(variant="post_ln", **SMALL),
    "pre_ln": ModelConfig(variant="pre_ln", positions="sinusoidal", norm_affine=False, norm_eps=1e-5, **SMALL),
    "pre_ln, learned positions, affine norms": ModelConfig(variant="pre_ln", **SMALL),
}


class Inputs(NamedTuple):
    """What a model's ``forward`` takes, in its order."""

    input_ids: Tensor
    segment_ids: Tensor
    attention_mask: Tensor | None
    mlm_positions: Tensor
    mlm_labels: Tensor
    nsp_labels: Tensor | None


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
    """A batch, see ``example``."""
    return example()
