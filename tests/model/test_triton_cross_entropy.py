"""The one-pass cross-entropy gives what PyTorch gives: on a GPU where there is one, else in Triton's interpreter, which
`.ci/null_gpu` chooses."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or Triton and TRITON_INTERPRET=1 as in .ci/null_gpu", allow_module_level=True)

from stacking.model.triton_cross_entropy import one_pass_cross_entropy  # noqa: E402

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def aligned(count: int, classes: int, dtype: torch.dtype) -> Tensor:
    """Random logits whose rows begin at multiples of 64 elements, as `stacking.model.vocabulary` makes them."""
    return (3 * torch.randn(count, -(-classes // 64) * 64, device=DEVICE)).to(dtype)[:, :classes]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("count", "classes"), [(3, 101), (1, 4096), (5, 4097), (2, 30_522)])
def test_losses_and_gradients_are_those_of_pytorch(count: int, classes: int, dtype: torch.dtype) -> None:
    logits = aligned(count, classes, dtype)
    labels = torch.randint(classes, (count,), device=DEVICE)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, labels, reduction="sum")
    (0.37 * expected).backward()

    leaf = logits.clone().requires_grad_()
    loss = one_pass_cross_entropy(leaf.view_as(leaf), labels)
    (0.37 * loss).backward()

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    assert leaf.grad is not None and leaf.grad.dtype == dtype
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 10)


def test_the_gradient_takes_the_place_of_the_logits() -> None:
    logits = aligned(3, 101, torch.bfloat16).requires_grad_()
    scores = logits.view_as(logits)
    one_pass_cross_entropy(scores, torch.zeros(3, dtype=torch.int64, device=DEVICE)).backward()
    assert logits.grad is not None and torch.equal(scores.detach(), logits.grad)


def test_no_label_costs_nothing() -> None:
    logits = torch.zeros(0, 50, device=DEVICE, requires_grad=True)
    loss = one_pass_cross_entropy(logits.view_as(logits), torch.zeros(0, dtype=torch.int64, device=DEVICE))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and logits.grad.shape == (0, 50)
