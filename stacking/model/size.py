"""Computes the size and cost of a model from its description: parameter names and shapes, and training FLOPs."""

from __future__ import annotations

from math import prod

from stacking.model.config import VARIANTS, ModelConfig
from stacking.model.shapes import INTO_RESIDUAL, Shapes, named


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Returns name and shape of every parameter, in the order of ``build(config).named_parameters()``.

    These names are an interface: checkpoints, states, growth and export rely on them. The decoder of the MLM head is
    the token embedding itself, so it is listed once, as ``embeddings.tokens.weight``.
    """
    variant = VARIANTS[config.variant]
    shapes, block = named(variant.embeddings, config), named(variant.layer, config)
    for layer in range(config.layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | named(variant.heads, config)


def count_parameters(config: ModelConfig) -> int:
    """Returns the number of trained parameters; the tied embedding counts once."""
    return sum(prod(shape) for shape in parameter_shapes(config).values())


def training_flops(config: ModelConfig, sequence_length: int, predicted: float) -> float:
    """Returns the floating-point operations to train on one sequence, forward and backward.

    A multiply-add counts as two; the backward pass costs twice the forward pass. Included are the encoder's matrices,
    the attention scores, and the MLM head at the predicted positions. Norms, activations, the NSP head and
    recomputation are excluded, as is usual for model FLOPs.

    Args:
        sequence_length: tokens, without padding.
        predicted: average number of masked positions per sequence.
    """
    hidden, length = config.hidden, sequence_length
    encoder = 6 * sum(_matrices(config).values()) * length + 12 * hidden * length * length
    head = config.vocabulary * hidden + hidden * hidden
    return float(config.layers * encoder + 6 * predicted * head)


def executed_flops(config: ModelConfig, sequence_length: int, predicted: float) -> float:
    """Returns the part of `training_flops` that `stacking.model.bert` executes.

    Its last layer computes what keys and values depend on at every token, and all else only at the first token and the
    masked ones (`Bert.encode_needed`).
    """
    hidden, length, needed = config.hidden, sequence_length, min(1 + predicted, sequence_length)
    matrices = list(_matrices(config).items())
    before = [name for name, _ in matrices].index("attention.qkv")
    at_needed = sum(size for _, size in matrices[before:]) - 2 * hidden * hidden
    skipped = (length - needed) * (6 * at_needed + 12 * hidden * length)
    return training_flops(config, sequence_length, predicted) - skipped


def kept_values(config: ModelConfig) -> tuple[int, int]:
    """Returns how many values a layer keeps per token for the backward pass, and how many elements have a dropout mask.

    Kept are the input of every matrix and LayerNorm, and the output of every matrix that is not added to the residual
    stream: queries, keys, values, and what an activation function reads; also the activated values that a gate
    multiplies, and queries and keys once more where they are turned. Masks cover what is added to the residual stream,
    or, in a gated feed-forward network, what its last matrix reads. Attention probabilities are not included.
    """
    shapes = named(VARIANTS[config.variant].layer, config)
    gated = shapes["feed_forward.up.weight"][0] - shapes["feed_forward.down.weight"][1]
    values, masked = 0, 0
    for name, (outputs, inputs) in ((name, shape) for name, shape in shapes.items() if len(shape) == 2):
        module = name.split(".")[-2]
        values += inputs
        if module in INTO_RESIDUAL:
            values += config.hidden  # a norm's input
            masked += inputs if gated and module == "down" else config.hidden
        else:
            values += outputs
    turned = 2 * config.hidden if config.positions == "rotary" else 0
    return values + gated + turned, masked


def _matrices(config: ModelConfig) -> dict[str, int]:
    """Returns the elements of each matrix of a layer, in the order of computation."""
    shapes = named(VARIANTS[config.variant].layer, config).items()
    return {name.removesuffix(".weight"): prod(shape) for name, shape in shapes if len(shape) == 2}
