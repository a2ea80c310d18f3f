"""Tries a kernel that a machine may lack against one that runs anywhere, on small inputs."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stacking.data.unpad import Unpadded
from stacking.errors import first_line
from stacking.model.tokens import to, unpadded_tokens

Kernel = Callable[..., Any]
_ROWS, _HIDDEN = 28, 96


class TrialInputs(NamedTuple):
    """What a kernel has to work with."""

    device: torch.device
    dtype: torch.dtype
    head: int
    """Dimensions of an attention head."""
    dropout: float
    """Dropout of the attention probabilities."""

    def drawn(self, seed: int, *shape: int) -> Tensor:
        """Returns normal numbers, the same for the same ``seed``; torch's own generator stays as it is."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device, self.dtype).requires_grad_()


Results = Callable[[Kernel, TrialInputs], list[Tensor]]
"""Computes values and gradients with a kernel, the same inputs for all kernels."""


def refusal(results: Results, kernel: Kernel, plain: Kernel, inputs: TrialInputs) -> str:
    """Returns why ``kernel`` cannot be used here; empty if its values and gradients agree with those of ``plain``."""
    try:
        with _quiet():
            pairs = zip(results(kernel, inputs), results(plain, inputs), strict=True)
            agree = all(_close(found, expected) for found, expected in pairs)
    except Exception as error:  # private operators change, and any package may have the name of one that is meant
        return _reason(error)
    return "" if agree else "its results differ"


@contextmanager
def _quiet() -> Iterator[None]:
    """Withholds the listings of a compiler that fails, which are thousands of lines."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _reason(error: Exception) -> str:
    """Returns one line: an assembler's own, inside the messages of its callers, or the first."""
    return next((line for line in str(error).splitlines() if line.startswith("ptxas")), first_line(error))


def _close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-4 if expected.dtype == torch.float32 else 0.05
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


def compiled_layer(compiler: Kernel, inputs: TrialInputs) -> list[Tensor]:
    """Computes what a layer surrounds its matrix products with: bias, GELU, residual sum and LayerNorm."""

    def layer(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(hidden + F.gelu(F.linear(hidden, weight, bias)), bias.shape, bias, bias, 1e-12)

    hidden, weight, bias = inputs.drawn(0, _ROWS, _HIDDEN), inputs.drawn(1, _HIDDEN, _HIDDEN), inputs.drawn(2, _HIDDEN)
    output = compiler(layer)(hidden, weight, bias)
    return [output, *_gradients(output, inputs, hidden, weight, bias)]


def varlen_attention(attend: Kernel, inputs: TrialInputs) -> list[Tensor]:
    """Attends within three short sequences; with dropout too, whose results are random."""
    if inputs.dtype == torch.float32:
        raise TypeError("it computes in 16 bits only")
    lengths = np.array([3, 17, 8])
    nothing = np.zeros(int(lengths.sum()), dtype=np.int64)
    batch = Unpadded(nothing, nothing, nothing, lengths, nothing[:0], nothing[:0], None)
    layout = to(unpadded_tokens(batch), inputs.device).layout
    parts = inputs.drawn(0, len(nothing), 3, 2, inputs.head)
    mixed = attend(*parts.unbind(1), layout, layout, 0.0)
    attend(*parts.unbind(1), layout, layout, inputs.dropout).sum().backward()
    return [mixed, *_gradients(mixed, inputs, parts)]


def layer_norm(norm: Kernel, inputs: TrialInputs) -> list[Tensor]:
    """Normalises with scale and bias, and without."""
    hidden, weight, bias = inputs.drawn(0, _ROWS, _HIDDEN), inputs.drawn(1, _HIDDEN), inputs.drawn(2, _HIDDEN)
    affine, plain = norm(hidden, weight, bias, 1e-12), norm(hidden, None, None, 1e-12)
    return [
        affine,
        *_gradients(affine, inputs, hidden, weight, bias),
        plain,
        *_gradients(plain, inputs, hidden),
    ]


def cross_entropy(loss: Kernel, inputs: TrialInputs) -> list[Tensor]:
    """Sums over 2 classes and over an odd number of them; label 0, padding to some kernels, is among them."""
    results = []
    for classes in (2, 2 * _HIDDEN + 1):
        logits = inputs.drawn(0, _ROWS, classes)
        labels = torch.arange(_ROWS, device=inputs.device) % classes
        total = loss(logits * 1, labels)  # a copy: a kernel may overwrite its logits
        results += [total, *torch.autograd.grad(total, logits)]
    return results


def lamb(maker: Kernel, inputs: TrialInputs) -> list[Tensor]:
    """Updates a matrix and a vector without weight decay three times, in fp32, as masters are."""
    wide = inputs._replace(dtype=torch.float32)
    matrix, vector = wide.drawn(0, _ROWS, _HIDDEN), wide.drawn(1, _HIDDEN)
    groups = [{"params": [matrix]}, {"params": [vector], "weight_decay": 0.0}]
    optimizer = maker(groups, lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    for update in range(3):
        matrix.grad, vector.grad = (wide.drawn(2 + update, *leaf.shape).detach() for leaf in (matrix, vector))
        optimizer.step()
    return [matrix.detach(), vector.detach()]


def _gradients(output: Tensor, inputs: TrialInputs, *leaves: Tensor) -> tuple[Tensor, ...]:
    weights = inputs.drawn(3, *output.shape)
    return torch.autograd.grad((output * weights).sum(), leaves)
