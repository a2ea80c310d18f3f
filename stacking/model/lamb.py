"""LAMB for large batches (You et al., 2020, arXiv 1904.00962, algorithm 2): Adam, scaled to the norm of each tensor.

As in the authors' code and in apex, only tensors with weight decay are scaled; biases and norms get Adam's update.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """LAMB in plain PyTorch, for any device.

    Args:
        params: parameter groups; the update of a tensor [...] needs all of it.
        weight_decay: added to Adam's update, times the weights, before that is scaled.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient, and its moments; ``closure`` is not called."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient, (beta1, beta2) = self.state[parameter], parameter.grad, group["betas"]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        state["step"] += 1
        mean = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
        update = (mean / root).div_(1 - beta1 ** state["step"])
        if group["weight_decay"]:
            update.add_(parameter, alpha=group["weight_decay"])
            update.mul_(_trust(parameter, update))
        parameter.sub_(update.mul_(group["lr"]))


def _trust(parameter: Tensor, update: Tensor) -> Tensor:
    """Returns the ratio of the two norms, 1 where one is zero, without waiting for the device."""
    weight, step = parameter.norm(), update.norm()
    return torch.where((weight > 0) & (step > 0), weight / step, 1.0)


def apex_lamb(params: Iterable[Any], **settings: Any) -> torch.optim.Optimizer:
    """Makes the same optimizer from NVIDIA's apex: ``apex/optimizers/fused_lamb.py``, for GPUs alone."""
    apex = import_module("apex.optimizers")
    made: torch.optim.Optimizer = apex.FusedLAMB(params, **settings, max_grad_norm=math.inf)  # DeepSpeed clips already
    return made
