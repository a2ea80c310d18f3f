"""LayerNorm over the last dimension H, reduced in fp32 for any precision of the input (Ba et al., 2016)."""

from __future__ import annotations

from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor


def torch_norm(hidden: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalises ``hidden`` [..., H], then scales by ``weight`` [H] and shifts by ``bias`` [H] where there are any."""
    return F.layer_norm(hidden, hidden.shape[-1:], weight, bias, eps)


def apex_norm(hidden: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Computes the same with the kernel of NVIDIA's apex: ``apex/normalization/fused_layer_norm.py``.

    PyTorch's is used for a scale without a bias, which apex has no kernel for, and inside compiled layers, where the
    compiler fuses it with its neighbours.
    """
    if torch.compiler.is_compiling():
        return torch_norm(hidden, weight, bias, eps)
    apex = import_module("apex.normalization.fused_layer_norm")
    normed: Tensor
    if weight is not None and bias is not None:
        normed = apex.fused_layer_norm_affine(hidden, weight, bias, hidden.shape[-1:], eps)
    elif weight is None:
        normed = apex.fused_layer_norm(hidden, hidden.shape[-1:], eps)
    else:
        normed = torch_norm(hidden, weight, bias, eps)
    return normed
