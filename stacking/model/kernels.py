"""Which kernel computes what. The layers take their operations from here and from nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Kernel = Callable[..., Any]

KERNELS: dict[str, Kernel] = {
    # Chooses by device and dtype: flash from sm_80 on, memory-efficient on Pascal and Volta, fused on the CPU.
    "attention": F.scaled_dot_product_attention,
    # Reduces in fp32 whatever the input's precision.
    "layer_norm": nn.LayerNorm,
    # Given fp32 logits at masked positions only, so that it is never a [batch, sequence, vocabulary] tensor.
    "cross_entropy": F.cross_entropy,
}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
