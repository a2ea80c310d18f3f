"""Stands in for NVIDIA's apex, which needs a GPU: its interface, as in NVIDIA/apex, computed by plain PyTorch.

It says nothing about apex' own numbers or speed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


def fused_layer_norm_affine(
    input: Tensor, weight: Tensor, bias: Tensor, normalized_shape: Sequence[int], eps: float = 1e-6
) -> Tensor:
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def fused_layer_norm(input: Tensor, normalized_shape: Sequence[int], eps: float = 1e-6) -> Tensor:
    return F.layer_norm(input, normalized_shape, eps=eps)


class SoftmaxCrossEntropyLoss(torch.autograd.Function):
    """Losses of rows; as in apex, those whose label is ``padding_idx`` are zero, and no rows are an error."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        smoothing: float = 0.0,
        padding_idx: int = 0,
        half_to_float: bool = False,
    ) -> Tensor:
        assert logits.numel() and labels.dtype == torch.int64 and not smoothing
        assert half_to_float == (logits.dtype != torch.float32), "conversion is supported for 16 bits only"
        kept = labels != padding_idx
        ctx.save_for_backward(logits, labels, kept)
        return F.cross_entropy(logits.float(), labels, reduction="none") * kept

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, labels, kept = ctx.saved_tensors
        off = logits.float().softmax(1) - F.one_hot(labels, logits.size(1))
        return ((gradient * kept)[:, None] * off).to(logits.dtype), None, None, None, None


class FusedLAMB(torch.optim.Optimizer):
    """As in apex: a group's step count is in the group, only decayed tensors are scaled, gradients are lost."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ) -> None:
        assert bias_correction and max_grad_norm == float("inf"), "the rest of apex' FusedLAMB is not imitated"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, **group)

    def _update(
        self, p: Tensor, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, step: int, **_: object
    ) -> None:
        state = self.state[p]
        if len(state) == 0:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        gradient, mean, square = p.grad, state["exp_avg"], state["exp_avg_sq"]
        assert gradient is not None
        mean.copy_(betas[0] * mean + (1 - betas[0]) * gradient)
        square.copy_(betas[1] * square + (1 - betas[1]) * gradient**2)
        unbiased = mean / (1 - betas[0] ** step), square / (1 - betas[1] ** step)
        gradient.copy_(unbiased[0] / (unbiased[1].sqrt() + eps) + weight_decay * p)
        norms = p.norm(), gradient.norm()
        p -= lr * (norms[0] / norms[1] if weight_decay and all(norms) else 1) * gradient


def install(patch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Make ``import apex`` find the stand-in; return its modules by name."""
    modules = {
        "apex": {},
        "apex.normalization": {},
        "apex.normalization.fused_layer_norm": {
            "fused_layer_norm_affine": fused_layer_norm_affine,
            "fused_layer_norm": fused_layer_norm,
        },
        "apex.optimizers": {"FusedLAMB": FusedLAMB},
        "apex.contrib": {},
        "apex.contrib.xentropy": {"SoftmaxCrossEntropyLoss": SoftmaxCrossEntropyLoss},
    }
    made = {name: ModuleType(name) for name in modules}
    for name, content in modules.items():
        vars(made[name]).update(content)
        patch.setitem(sys.modules, name, made[name])
    return made
