"""LAMB follows algorithm 2 of You et al. (2020), written anew here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stacking.model.lamb import Lamb

SETTINGS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6}


def stepped(weights: Tensor, gradients: list[Tensor], weight_decay: float) -> Tensor:
    parameter = weights.clone().requires_grad_()
    optimizer = Lamb([parameter], **SETTINGS, weight_decay=weight_decay)  # type: ignore[arg-type]
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_a_tensor_moves_by_its_own_norm_along_adam_s_update_and_the_decay() -> None:
    weights, gradients = drawn(5, 3), [drawn(5, 3) for _ in range(4)]
    x, m, v = weights, torch.zeros(5, 3), torch.zeros(5, 3)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        r = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-6) + 0.2 * x
        x = x - 0.1 * x.norm() / r.norm() * r
    torch.testing.assert_close(stepped(weights, gradients, 0.2), x)


def test_a_tensor_without_weight_decay_gets_adam_s_update() -> None:
    weights, gradients = drawn(7), [drawn(7) for _ in range(4)]
    expected = weights.clone().requires_grad_()
    adam = torch.optim.Adam([expected], **SETTINGS)  # type: ignore[arg-type]
    for gradient in gradients:
        expected.grad = gradient
        adam.step()
    torch.testing.assert_close(stepped(weights, gradients, 0.0), expected.detach())


def test_a_tensor_of_zeros_moves_all_the_same() -> None:
    moved = stepped(torch.zeros(4), [torch.ones(4)], 0.2)
    torch.testing.assert_close(moved, torch.full((4,), -0.1))


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_without_a_gradient_nothing_moves_and_at_a_rate_of_zero_no_bit(weight_decay: float) -> None:
    weights = torch.randn(6)
    parameter, other = weights.clone().requires_grad_(), weights.clone().requires_grad_()
    optimizer = Lamb([parameter, other], **{**SETTINGS, "lr": 0.0}, weight_decay=weight_decay)  # type: ignore[arg-type]
    parameter.grad = torch.randn(6)
    optimizer.step()
    assert torch.equal(parameter, weights) and torch.equal(other, weights)
    assert optimizer.state[parameter]["step"] == 1 and other not in optimizer.state
