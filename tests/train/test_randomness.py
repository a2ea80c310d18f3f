"""Dropout depends on where the training is, and on nothing else."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from stacking.train.randomness import seed_dropout


def draw(*place: int) -> list[float]:
    seed_dropout(*place)
    return torch.rand(4).tolist()


def test_the_same_place_draws_the_same_numbers_whatever_was_drawn_before() -> None:
    first = draw(1, 20, 3, 0)
    torch.rand(100)
    assert draw(1, 20, 3, 0) == first


def test_the_numbers_are_those_of_torch_manual_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    generator = torch.default_generator
    monkeypatch.setattr(torch, "default_generator", SimpleNamespace(manual_seed=seeds.append))
    seed_dropout(1, 20, 3, 0)
    monkeypatch.undo()
    torch.manual_seed(seeds[0])
    assert torch.default_generator is generator and torch.rand(4).tolist() == draw(1, 20, 3, 0)


def test_every_seed_step_micro_step_and_rank_draws_its_own_numbers() -> None:
    places = itertools.product(range(3), range(5), range(3), range(3))
    drawn = [tuple(draw(*place)) for place in places]
    assert len(set(drawn)) == len(drawn) == 135
