"""Detects which implementations really ran: the operators of one step, as torch's profiler sees them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

ATTENTION: Mapping[str, str] = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash for CPU",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_fused_attention_overrideable": "fused",
    "aten::_scaled_dot_product_attention_math": "plain (unfused)",
    "aten::_scaled_dot_product_attention_math_for_mps": "plain (unfused)",
    "aten::_flash_attention_forward": "flash",
    "aten::_efficient_attention_forward": "memory-efficient",
    "flash_attn::_flash_attn_varlen_forward": "flash-attn varlen",
}
"""Operators of `scaled_dot_product_attention` and the like; the first one found in a step is the one in use."""
NORM: Mapping[str, str] = {"aten::native_layer_norm": "torch", "aten::_fused_rms_norm": "torch"}


def operators_of(step: Callable[[], object], device: torch.device, rows: int = 25) -> tuple[set[str], str]:
    """Run ``step`` under the profiler; return the names of its operators and a table of the ``rows`` slowest."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        step()
    averages = profiler.key_averages()
    table = averages.table(sort_by="self_cuda_time_total" if cuda else "self_cpu_time_total", row_limit=rows)
    return {event.key for event in averages}, table


def observed(operators: Collection[str]) -> dict[str, str]:
    """Return which attention and LayerNorm ``operators`` show; empty if they show none."""
    found = {}
    for name, table in (("attention", ATTENTION), ("layer norm", NORM)):
        kernel = next((kernel for operator, kernel in table.items() if operator in operators), None)
        if kernel is not None:
            found[name] = kernel
    return found


def named(chosen: Mapping[str, str], ran: Mapping[str, str]) -> dict[str, str]:
    """Return what was chosen, followed by what ran where that is something else: SDPA chooses among several kernels."""
    words = {kind: name if ran.get(kind, name) == name else f"{name}: {ran[kind]}" for kind, name in chosen.items()}
    return {**ran, **words}
