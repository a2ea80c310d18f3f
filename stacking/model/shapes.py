"""Lists the names and shapes of a model's parts, from its widths alone. A variant's row lists which parts it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

Shapes = dict[str, tuple[int, ...]]

INTO_RESIDUAL = ("output", "down")
"""Names of the modules that write into the residual stream: a layer in which they are zero computes the identity."""


class Widths(Protocol):
    """What the shapes depend on: `stacking.model.config.ModelConfig`."""

    @property
    def hidden(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def segments(self) -> int: ...
    @property
    def positions(self) -> str: ...
    @property
    def norm_affine(self) -> bool: ...


Part = Callable[[Widths], Shapes]
"""Returns the parameters of one part under names within it; the name of a single bare parameter is empty."""


def named(parts: Mapping[str, Part], widths: Widths) -> Shapes:
    """Returns the parameters of all ``parts`` under their full names, in order."""
    return {
        f"{part}.{name}".removesuffix("."): shape
        for part, shapes in parts.items()
        for name, shape in shapes(widths).items()
    }


def without_biases(part: Part) -> Part:
    """Returns ``part`` without its biases."""

    def bare(widths: Widths) -> Shapes:
        return {name: shape for name, shape in part(widths).items() if not name.endswith("bias")}

    return bare


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    """Returns the weight [outputs, inputs] and the bias [outputs] of a linear layer called ``name`` in its part."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def token_embedding(widths: Widths) -> Shapes:
    """One vector for each token; also the decoder of the MLM head."""
    return {"weight": (widths.vocabulary, widths.hidden)}


def position_embedding(widths: Widths) -> Shapes:
    """One vector for each position, if they are learned."""
    return {"weight": (widths.max_positions, widths.hidden)} if widths.positions == "learned" else {}


def segment_embedding(widths: Widths) -> Shapes:
    """One vector for each segment."""
    return {"weight": (widths.segments, widths.hidden)}


def affine_norm(widths: Widths) -> Shapes:
    """A LayerNorm with scale and bias."""
    return {"weight": (widths.hidden,), "bias": (widths.hidden,)}


def encoder_norm(widths: Widths) -> Shapes:
    """A LayerNorm of the encoder, which may have neither scale nor bias."""
    return affine_norm(widths) if widths.norm_affine else {}


def attention(widths: Widths) -> Shapes:
    """Queries, keys and values from one matrix, and the output projection."""
    return {**linear("qkv", widths.hidden, 3 * widths.hidden), **linear("output", widths.hidden, widths.hidden)}


def feed_forward(widths: Widths) -> Shapes:
    """Two matrices, up and down."""
    return {
        **linear("up", widths.hidden, widths.intermediate),
        **linear("down", widths.intermediate, widths.hidden),
    }


def gated_feed_forward(widths: Widths) -> Shapes:
    """Without biases: up to a value and its gate, stacked by rows, and down."""
    return {
        "up.weight": (2 * widths.intermediate, widths.hidden),
        "down.weight": (widths.hidden, widths.intermediate),
    }


def half_feed_forward(widths: Widths) -> Shapes:
    """Two matrices of half the width, for layers that have two of them."""
    half = widths.intermediate // 2
    return {**linear("up", widths.hidden, half), **linear("down", half, widths.hidden)}


def square(widths: Widths) -> Shapes:
    """A linear layer [H, H]."""
    return {"weight": (widths.hidden, widths.hidden), "bias": (widths.hidden,)}


def one_score(widths: Widths) -> Shapes:
    """A linear layer [1, H]."""
    return {"weight": (1, widths.hidden), "bias": (1,)}


def two_scores(widths: Widths) -> Shapes:
    """A linear layer [2, H]."""
    return {"weight": (2, widths.hidden), "bias": (2,)}


def token_bias(widths: Widths) -> Shapes:
    """A bare bias for every token's score."""
    return {"": (widths.vocabulary,)}
