"""Selects the kernel for each operation and device; layers only take their operations from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stacking.model import trials
from stacking.model.attention import explicit, sdpa, varlen_flash
from stacking.model.cross_entropy import apex_cross_entropy, summed_cross_entropy, triton_cross_entropy
from stacking.model.dropout import add_dropout_bits, dropout_bits
from stacking.model.lamb import Lamb, apex_lamb
from stacking.model.norms import apex_norm, torch_norm
from stacking.model.tokens import Layout
from stacking.model.trials import Kernel, TrialInputs, refusal
from stacking.model.vocabulary import aligned_rows, columns, rows


def add_dropout(residual: Tensor, hidden: Tensor, probability: float) -> Tensor:
    """``residual + dropout(hidden)``."""
    return residual + F.dropout(hidden, probability)


ATTENTION: Mapping[str, Kernel] = {"sdpa": sdpa, "explicit": explicit, "varlen_flash": varlen_flash}
DROPOUT: Mapping[str, tuple[Kernel, Kernel]] = {
    "torch": (F.dropout, add_dropout),
    "bits": (dropout_bits, add_dropout_bits),
}
"""Dropout, and dropout added to a residual."""
NORMS: Mapping[str, Kernel] = {"torch": torch_norm, "apex": apex_norm}
DECODERS: Mapping[str, Kernel] = {"rows": rows, "columns": columns, "aligned_rows": aligned_rows}
"""Vocabulary scores, by memory layout."""
CROSS_ENTROPY: Mapping[str, Kernel] = {
    "in_place": summed_cross_entropy,
    "triton": triton_cross_entropy,
    "apex": apex_cross_entropy,
}
"""No device has ``apex``, which needs two more copies of the logits, before a measurement shows that it pays."""
LAMBS: Mapping[str, Kernel] = {"torch": Lamb, "apex": apex_lamb}
"""Makers of the optimizer, where the recipe asks for LAMB."""
LAYERS: Mapping[str, Kernel] = {"eager": lambda layer: layer, "compiled": torch.compile}
"""Makers of what computes a layer; compiled, its biases, GELU, dropout, residual sums and LayerNorms are fused."""
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
    precisions: tuple[str, ...]
    """The precisions that suit the device; the plan rejects the others (`stacking.hardware.presets`)."""
    why: str
    norm: str = "torch"
    cross_entropy: str = "in_place"
    lamb: str = "torch"
    layers: str = "eager"
    """Compiled where the plan asks for it (`stacking.deepspeed_config.ds_config.stage_kernels`)."""

    @property
    def grouped(self) -> bool:
        """Whether sequences of similar length share a rectangle; otherwise one is as wide as the longest.

        `varlen_flash` needs no rectangles, and each number of groups would be compiled separately.
        """
        return self.attention != "varlen_flash" and self.layers == "eager"

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, dropout: float
    ) -> Tensor:
        """Computes attention as in `stacking.model.attention`."""
        mixed: Tensor = ATTENTION[self.attention](query, key, value, queries, keys, dropout)
        return mixed

    def drop(self, hidden: Tensor, probability: float) -> Tensor:
        """Dropout."""
        dropped: Tensor = DROPOUT[self.dropout][0](hidden, probability) if probability else hidden
        return dropped

    def add(self, residual: Tensor, hidden: Tensor, probability: float) -> Tensor:
        """Computes a residual sum with dropout."""
        total: Tensor = DROPOUT[self.dropout][1](residual, hidden, probability) if probability else residual + hidden
        return total

    def normalise(self, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """Computes a LayerNorm as in `stacking.model.norms`."""
        normed: Tensor = NORMS[self.norm](hidden, weight, bias, eps)
        return normed

    def decode(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Computes vocabulary scores as in `stacking.model.vocabulary`."""
        scores: Tensor = DECODERS[self.decoder](hidden, weight, bias)
        return scores

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Computes cross-entropy as in `stacking.model.cross_entropy`."""
        total: Tensor = CROSS_ENTROPY[self.cross_entropy](logits, labels)
        return total


PLAIN = Kernels(
    attention="sdpa",
    dropout="torch",
    decoder="rows",
    precisions=("fp32",),
    why="plain PyTorch, on any device",
)
KERNELS: Mapping[str, Kernels] = {
    "cpu": Kernels(
        attention="explicit",
        dropout="bits",
        decoder="columns",
        precisions=("fp32", "bf16"),
        why="the fused CPU kernel has no dropout, random numbers cost most, and matrix products leave little to fuse",
    ),
    "pascal": replace(
        PLAIN,
        decoder="aligned_rows",
        why="memory-efficient attention; Triton needs sm_70",
        norm="apex",
        lamb="apex",
    ),
    "volta": replace(
        PLAIN,
        decoder="aligned_rows",
        precisions=("fp32", "fp16"),
        why="memory-efficient attention on tensor cores",
        norm="apex",
        lamb="apex",
    ),
    "ampere": Kernels(
        attention="varlen_flash",
        dropout="torch",
        decoder="aligned_rows",
        precisions=("fp32", "fp16", "bf16"),
        why="flash attention and Triton; bf16",
        cross_entropy="triton",
        lamb="apex",
    ),
}
"""By the oldest generation that a row covers. What `TRIALS` names is used where it works, and else replaced."""
_SINCE: Mapping[str, tuple[int, int]] = {"ampere": (8, 0), "volta": (7, 0), "pascal": (0, 0)}


def generation(device: torch.device) -> str:
    """Returns the row of `KERNELS` for ``device``."""
    if device.type != "cuda":
        return "cpu"
    capability = torch.cuda.get_device_capability(device)
    return next(name for name, since in _SINCE.items() if capability >= since)


class KernelTrial(NamedTuple):
    """Decides whether a kernel is used on a machine that may lack it."""

    operation: str
    """The field of `Kernels`."""
    name: str
    kernels: Mapping[str, Kernel]
    """The table of the operation."""
    results: trials.Results
    instead: str
    """The kernel that needs no trial."""


TRIALS: tuple[KernelTrial, ...] = (
    KernelTrial("layers", "compiled", LAYERS, trials.compiled_layer, "eager"),
    KernelTrial("attention", "varlen_flash", ATTENTION, trials.varlen_attention, "sdpa"),
    KernelTrial("norm", "apex", NORMS, trials.layer_norm, "torch"),
    KernelTrial("cross_entropy", "triton", CROSS_ENTROPY, trials.cross_entropy, "in_place"),
    KernelTrial("cross_entropy", "apex", CROSS_ENTROPY, trials.cross_entropy, "in_place"),
    KernelTrial("lamb", "apex", LAMBS, trials.lamb, "torch"),
)


def kernels_for(
    device: torch.device, dtype: torch.dtype, head: int, dropout: float, compiled: bool = False, lamb: bool = False
) -> Kernels:
    """Chooses the kernels for ``device`` and ``dtype``, after trying those that may be missing or fail there.

    Args:
        head: dimensions of an attention head.
        dropout: dropout of the attention probabilities.
        compiled: whether the plan asks for compiled layers.
        lamb: whether the recipe asks for LAMB; otherwise its kernel is not tried.
    """
    row = KERNELS[generation(device)]
    kernels = replace(row, layers="compiled" if compiled else "eager", lamb=row.lamb if lamb else PLAIN.lamb)
    inputs = TrialInputs(device, dtype, head, dropout)
    for operation, name, table, results, instead in TRIALS:
        if getattr(kernels, operation) != name:
            continue
        if problem := refusal(results, table[name], table[instead], inputs):
            why = f"{kernels.why}; {operation.replace('_', ' ')}: {instead} instead of {name}: {problem}"
            changes: dict[str, Any] = {operation: instead, "why": why}
            kernels = replace(kernels, **changes)
    return kernels


def use(model: nn.Module, kernels: Kernels) -> None:
    """Sets the kernels of every part of ``model`` that uses them."""
    for module in model.modules():
        if hasattr(module, "kernels"):
            vars(module)["kernels"] = kernels
