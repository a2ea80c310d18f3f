"""Selects the kernel for each operation and device; layers only take their operations from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stacking.data.unpad import Unpadded
from stacking.model.attention import explicit, sdpa, varlen_flash
from stacking.model.cross_entropy import summed_cross_entropy
from stacking.model.dropout import add_dropout_bits, dropout_bits
from stacking.model.tokens import Layout, to, unpadded_tokens
from stacking.model.vocabulary import aligned_rows, columns, rows

Kernel = Callable[..., Any]


def add_dropout(residual: Tensor, hidden: Tensor, probability: float) -> Tensor:
    """``residual + dropout(hidden)``."""
    return residual + F.dropout(hidden, probability)


ATTENTION: Mapping[str, Kernel] = {"sdpa": sdpa, "explicit": explicit, "varlen_flash": varlen_flash}
DROPOUT: Mapping[str, tuple[Kernel, Kernel]] = {
    "torch": (F.dropout, add_dropout),
    "bits": (dropout_bits, add_dropout_bits),
}
"""Dropout, and dropout added to a residual."""
DECODERS: Mapping[str, Kernel] = {"rows": rows, "columns": columns, "aligned_rows": aligned_rows}
"""Vocabulary scores, by memory layout."""
CROSS_ENTROPY: Mapping[str, Kernel] = {"in_place": summed_cross_entropy}
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True)
class Kernels:
    """The choice for one kind of device: keys of the tables above."""

    attention: str
    dropout: str
    decoder: str
    compiled: bool
    """Whether torch.compile is worthwhile: it fuses a layer's biases, GELU, dropout, residual sums and LayerNorms. The
    plan decides (`stacking.deepspeed_config.ds_config.stage_kernels`), by the same device classes."""
    grouped: bool
    """Whether sequences of similar length share a rectangle; False: one rectangle as wide as the longest."""
    precisions: tuple[str, ...]
    """The precisions that suit the device; the plan rejects the others (`stacking.hardware.presets`)."""
    why: str
    cross_entropy: str = "in_place"

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, dropout: float
    ) -> Tensor:
        """Compute attention as in `stacking.model.attention`."""
        mixed: Tensor = ATTENTION[self.attention](query, key, value, queries, keys, dropout)
        return mixed

    def drop(self, hidden: Tensor, probability: float) -> Tensor:
        """Dropout."""
        dropped: Tensor = DROPOUT[self.dropout][0](hidden, probability) if probability else hidden
        return dropped

    def add(self, residual: Tensor, hidden: Tensor, probability: float) -> Tensor:
        """Compute a residual sum with dropout."""
        total: Tensor = DROPOUT[self.dropout][1](residual, hidden, probability) if probability else residual + hidden
        return total

    def decode(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute vocabulary scores as in `stacking.model.vocabulary`."""
        scores: Tensor = DECODERS[self.decoder](hidden, weight, bias)
        return scores

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute cross-entropy as in `stacking.model.cross_entropy`."""
        total: Tensor = CROSS_ENTROPY[self.cross_entropy](logits, labels)
        return total


KERNELS: Mapping[str, Kernels] = {
    "cpu": Kernels(
        attention="explicit",
        dropout="bits",
        decoder="columns",
        compiled=False,
        grouped=True,
        precisions=("fp32", "bf16"),
        why="the fused CPU kernel has no dropout, random numbers cost most, and matrix products leave little to fuse",
    ),
    "pascal": Kernels(
        attention="sdpa",
        dropout="torch",
        decoder="aligned_rows",
        compiled=False,
        grouped=True,
        precisions=("fp32",),
        why="memory-efficient attention; Triton needs sm_70",
    ),
    "volta": Kernels(
        attention="sdpa",
        dropout="torch",
        decoder="aligned_rows",
        compiled=False,
        grouped=True,
        precisions=("fp32", "fp16"),
        why="memory-efficient attention on tensor cores; Triton dropped Volta's tensor cores and does not test it",
    ),
    "ampere": Kernels(
        attention="varlen_flash",
        dropout="torch",
        decoder="aligned_rows",
        compiled=True,
        grouped=False,
        precisions=("fp32", "fp16", "bf16"),
        why="flash attention and Triton; bf16",
    ),
}
"""By the oldest generation that a row covers."""
PLAIN = replace(KERNELS["pascal"], decoder="rows", why="plain PyTorch, on any device")
_SINCE: Mapping[str, tuple[int, int]] = {"ampere": (8, 0), "volta": (7, 0), "pascal": (0, 0)}


def generation(device: torch.device) -> str:
    """Return the row of `KERNELS` for ``device``."""
    if device.type != "cuda":
        return "cpu"
    capability = torch.cuda.get_device_capability(device)
    return next(name for name, since in _SINCE.items() if capability >= since)


def kernels_for(device: torch.device, dtype: torch.dtype, head: int, dropout: float) -> Kernels:
    """Choose the kernels for ``device`` and ``dtype``, after trying the attention kernel if it may be unsupported.

    Args:
        head: dimensions of an attention head.
        dropout: dropout of the attention probabilities.
    """
    kernels = KERNELS[generation(device)]
    if kernels.attention == "varlen_flash" and (refusal := _refusal(kernels, device, dtype, head, dropout)):
        why = f"{kernels.why}; sdpa instead of varlen_flash: {refusal}"
        return replace(kernels, attention="sdpa", grouped=True, why=why)
    return kernels


def use(model: nn.Module, kernels: Kernels) -> None:
    """Set the kernels of every part of ``model`` that uses them."""
    for module in model.modules():
        if hasattr(module, "kernels"):
            vars(module)["kernels"] = kernels


def _refusal(kernels: Kernels, device: torch.device, dtype: torch.dtype, head: int, dropout: float) -> str:
    """Return why the attention kernel cannot be used here; empty if it agrees with SDPA on three short sequences."""
    if dtype == torch.float32:
        return "it computes in 16 bits only"
    lengths = np.array([3, 17, 8])
    nothing = np.zeros(int(lengths.sum()), dtype=np.int64)
    batch = Unpadded(nothing, nothing, nothing, lengths, nothing[:0], nothing[:0], None)
    layout = to(unpadded_tokens(batch), device).layout
    parts = torch.randn(len(nothing), 3, 2, head, device=device, dtype=dtype, requires_grad=True)
    weights = torch.randn(len(nothing), 2, head, device=device, dtype=dtype)
    results = []
    try:
        for attend in (kernels.attend, sdpa):
            query, key, value = parts.unbind(1)
            mixed = attend(query, key, value, layout, layout, 0.0)
            results.append([mixed, *torch.autograd.grad((mixed * weights).sum(), parts)])
        kernels.attend(query, key, value, layout, layout, dropout).sum().backward()
    except (RuntimeError, AttributeError, TypeError) as error:  # the operator is private, so it may have changed
        return str(error).splitlines()[0]
    agree = all(torch.allclose(found, expected, atol=0.05) for found, expected in zip(*results, strict=True))
    return "" if agree else "its results differ"
