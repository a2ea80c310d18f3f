"""Estimates the memory and arithmetic of a stage, each by a documented formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stacking.deepspeed_config.ds_config import offloads, precision, zero_stage
from stacking.hardware.presets import VALUE_BYTES
from stacking.model.config import ModelConfig
from stacking.model.size import count_parameters, kept_values, training_flops

_WORKSPACES = 2 * (32 << 20)
"""Bytes that PyTorch gives cuBLAS and cuBLASLt as workspaces on Hopper GPUs; older cards get a quarter of it."""


def state_bytes(parameters: int, ranks: int, config: Mapping[str, Any], cuda: bool) -> int:
    """Returns the bytes per rank of weights, gradients, master weights and Adam's two moments.

    Rajbhandari et al., 2020 (ZeRO, arXiv 1910.02054), section 3: per parameter, 16-bit training keeps 2 + 2 bytes of
    weights and gradients and 4 + 8 of master weights and moments; fp32 training keeps 4 + 4 and 8. DeepSpeed's ZeRO
    keeps master weights in fp32 too, a copy. Stage 1 shards master weights and moments over the ranks, stage 2 also
    gradients, stage 3 also weights; offloaded parts are not on the device. A bucket of gradients in flight is added,
    two where ZeRO 1 or 2 overlaps. A GPU holds it whole; on a CPU only what is used takes memory.
    """
    size, stage, away = VALUE_BYTES[precision(config)], zero_stage(config), offloads(config)
    share = [ranks if stage >= least else 1 for least in (3, 2, 1)]
    weights = 0 if "param" in away else parameters * size // share[0]
    gradients = parameters * size // share[1]
    moments = 0 if "optimizer" in away else parameters * (12 if stage or size == 2 else 8) // share[2]
    zero = config.get("zero_optimization", {})
    bucket = int(zero.get("reduce_bucket_size", 5e8)) if stage else 0
    buckets = bucket * (2 if stage < 3 and zero.get("overlap_comm") else 1) if cuda else min(bucket, parameters)
    return weights + gradients + moments + buckets * size


def activation_bytes(
    model: ModelConfig,
    micro_batch: int,
    sequence_length: int,
    size: int,
    fused: bool,
    recomputed: bool = False,
    mask_probability: float = 0.15,
) -> int:
    """Returns the bytes that the backward pass needs for one micro-batch.

    Korthikanti et al., 2022 (arXiv 2205.05198), section 4.1: per token and layer the values of `kept_values` (BERT:
    8 hidden + 2 intermediate) of ``size`` bytes each, and a byte for every element of a dropout mask; without fused
    attention also 2 values and a mask byte per head and position. The MLM head only processes masked positions: logits,
    their fp32 copy and its gradient. With checkpointing (``recomputed``) a layer only keeps its input, and one layer at
    a time is recomputed: Chen et al., 2016 (arXiv 1604.06174).
    """
    tokens = micro_batch * sequence_length
    values, masked = kept_values(model)
    layer = values * size + masked
    if not fused:
        layer += model.heads * sequence_length * (2 * size + 1)
    head = round(tokens * mask_probability) * model.vocabulary * (size + 8)
    layers = layer * model.layers
    if recomputed:
        layers = min(layers, layer + model.hidden * size * model.layers)
    return tokens * layers + head


def memory_per_rank(
    model: ModelConfig,
    micro_batch: int,
    sequence_length: int,
    ranks: int,
    config: Mapping[str, Any],
    fused: bool,
    recomputed: bool = False,
    mask_probability: float = 0.15,
) -> int:
    """Returns the bytes on one rank's device: the training state, one micro-batch's activations, cuBLAS' workspaces."""
    state = state_bytes(count_parameters(model), ranks, config, cuda=fused)
    size = VALUE_BYTES[precision(config)]
    activations = activation_bytes(
        model, micro_batch, sequence_length, size, fused, recomputed, mask_probability=mask_probability
    )
    return state + activations + (_WORKSPACES if fused else 0)


def stage_flops(model: ModelConfig, sequences: int, sequence_length: int, mask_probability: float) -> float:
    """Returns the floating-point operations to train on ``sequences``."""
    return training_flops(model, sequence_length, mask_probability * sequence_length) * sequences
