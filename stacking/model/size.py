"""Size and cost of a model, from its description: parameter names and shapes, and training FLOPs."""

from __future__ import annotations

from math import prod

from stacking.model.config import VARIANTS, ModelConfig
from stacking.model.shapes import Shapes, linear, norm


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Return name and shape of every parameter, in the order of ``build(config).named_parameters()``.

    These names are an interface: checkpoints, states, growth and export rely on them. The decoder of the MLM head is
    the token embedding itself, so it is listed once, as ``embeddings.tokens.weight``.
    """
    shapes = _embeddings(config)
    for layer in range(config.layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in _block(config).items()}
    return shapes | VARIANTS[config.variant].heads(config)


def count_parameters(config: ModelConfig) -> int:
    """Return the number of trained parameters; the tied embedding counts once."""
    return sum(prod(shape) for shape in parameter_shapes(config).values())


def training_flops(config: ModelConfig, sequence_length: int, predicted: float) -> float:
    """Return the floating-point operations to train on one sequence, forward and backward.

    A multiply-add counts as two; the backward pass costs twice the forward pass. Included are the encoder's matrices,
    the attention scores, and the MLM head at the predicted positions. Norms, activations, the NSP head and
    recomputation are excluded, as is usual for model FLOPs.

    Args:
        sequence_length: tokens, without padding.
        predicted: average number of masked positions per sequence.
    """
    hidden, length = config.hidden, sequence_length
    matrices = 4 * hidden * hidden + 2 * hidden * config.intermediate
    encoder = 6 * matrices * length + 12 * hidden * length * length
    head = config.vocabulary * hidden + hidden * hidden
    return float(config.layers * encoder + 6 * predicted * head)


def executed_flops(config: ModelConfig, sequence_length: int, predicted: float) -> float:
    """Return the part of `training_flops` that `stacking.model.bert` executes.

    Its last layer computes keys and values of every token, and all else only at the first token and the masked ones
    (`Bert.encode_needed`).
    """
    hidden, length, needed = config.hidden, sequence_length, min(1 + predicted, sequence_length)
    at_needed = 2 * hidden * hidden + 2 * hidden * config.intermediate
    skipped = (length - needed) * (6 * at_needed + 12 * hidden * length)
    return training_flops(config, sequence_length, predicted) - skipped


def _embeddings(config: ModelConfig) -> Shapes:
    shapes: Shapes = {"embeddings.tokens.weight": (config.vocabulary, config.hidden)}
    if config.positions == "learned":
        shapes["embeddings.positions.weight"] = (config.max_positions, config.hidden)
    shapes["embeddings.segments.weight"] = (config.segments, config.hidden)
    return shapes | norm("embeddings.norm", config.hidden, VARIANTS[config.variant].norms_embeddings)


def _block(config: ModelConfig) -> Shapes:
    hidden, intermediate = config.hidden, config.intermediate
    return {
        **linear("attention.qkv", hidden, 3 * hidden),
        **linear("attention.output", hidden, hidden),
        **norm("attention_norm", hidden, config.norm_affine),
        **linear("feed_forward.up", hidden, intermediate),
        **linear("feed_forward.down", intermediate, hidden),
        **norm("feed_forward_norm", hidden, config.norm_affine),
    }
