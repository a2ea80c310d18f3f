"""DeepSpeed's CUDA kernels beside PyTorch's: compiled here, timed on the shapes of BERT-large.

python -m tools.benchmarks.deepspeed_ops FILE [--no-deepspeed], by `tools/gpu_bench`, in a process of its own; what does
not compile is a row of the result like any other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stacking.hardware.presets import SHAPES
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes

_WARMUP, _REPEATS = 5, 20
_BATCH, _LENGTH, _DROPOUT = 64, 128, 0.1
_LARGE = SHAPES["bert-large"]
_DEVICE = torch.device("cuda")
Step = Callable[[], Any]
Row = dict[str, Any]


def seconds_of(step: Step) -> float:
    """Median seconds of ``step`` on the GPU."""
    for _ in range(_WARMUP):
        step()
    times: list[float] = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return sorted(times)[_REPEATS // 2]


def measured(group: str, name: str, make: Callable[[], Step]) -> Row:
    """A row of the result: what ``make`` took (compiling, mostly) and what its step takes, or why there is none."""
    started = time.perf_counter()
    try:
        step = make()
        step()
        torch.cuda.synchronize()
        ready = time.perf_counter() - started
        return {"group": group, "name": name, "seconds": seconds_of(step), "ready_seconds": ready, "message": ""}
    except Exception as error:  # compilers, drivers and kernels fail in many ways, and each is a result
        return {"group": group, "name": name, "seconds": None, "ready_seconds": None, "message": reason(error)}
    finally:
        torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """Returns what went wrong on one line: of a compiler's output, its first error."""
    lines = str(error).splitlines()
    said = next((line for line in lines if "error:" in line or "not found" in line), " ".join(lines))
    return " ".join(said.split())[:300] or type(error).__name__


def _parameters() -> list[nn.Parameter]:
    """Those of BERT-large in fp32, as the optimizer sees master weights, each with a gradient."""
    config = ModelConfig(
        layers=_LARGE.layers,
        hidden=_LARGE.hidden,
        heads=_LARGE.heads,
        intermediate=_LARGE.intermediate,
        vocabulary=30_522,
    )
    parameters = [nn.Parameter(torch.randn(shape, device=_DEVICE)) for shape in parameter_shapes(config).values()]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return parameters


def _torch_adam(fused: bool) -> Step:
    return torch.optim.AdamW(_parameters(), lr=1e-4, fused=fused, foreach=not fused).step


def _deepspeed_adam() -> Step:
    from deepspeed.ops.adam import FusedAdam

    step: Step = FusedAdam(_parameters(), lr=1e-4, set_grad_none=False).step
    return step


def _deepspeed_lamb() -> Step:
    from deepspeed.ops.lamb import FusedLamb

    step: Step = FusedLamb(_parameters(), lr=1e-4).step
    return step


def _hidden(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(_BATCH, _LENGTH, _LARGE.hidden, device=_DEVICE, dtype=dtype, requires_grad=True)


def _forward_backward(layer: Callable[..., Any], *more: Any, dtype: torch.dtype = torch.float16) -> Step:
    hidden = _hidden(dtype)
    gradient = torch.ones_like(hidden)

    def step() -> None:
        output = layer(hidden, *more)
        output = output[0] if isinstance(output, tuple) else output
        output.backward(gradient)

    return step


def _deepspeed_layer(stochastic: bool) -> Step:
    from deepspeed.ops.transformer import DeepSpeedTransformerConfig, DeepSpeedTransformerLayer

    config = DeepSpeedTransformerConfig(
        batch_size=_BATCH,
        hidden_size=_LARGE.hidden,
        intermediate_size=_LARGE.intermediate,
        heads=_LARGE.heads,
        attn_dropout_ratio=_DROPOUT,
        hidden_dropout_ratio=_DROPOUT,
        num_hidden_layers=_LARGE.layers,
        initializer_range=0.02,
        local_rank=torch.cuda.current_device(),
        seed=0,
        fp16=True,
        pre_layer_norm=False,
        stochastic_mode=stochastic,
    )
    layer = DeepSpeedTransformerLayer(config).to(_DEVICE).half()
    mask = torch.zeros(_BATCH, 1, 1, _LENGTH, device=_DEVICE, dtype=torch.float16)
    return _forward_backward(layer, mask)


def _hugging_face_layer(compiled: bool) -> Step:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    config = BertConfig(
        hidden_size=_LARGE.hidden, num_attention_heads=_LARGE.heads, intermediate_size=_LARGE.intermediate
    )
    config._attn_implementation = "sdpa"
    layer = BertLayer(config).to(_DEVICE).half().train()
    if compiled:
        layer.compile()
    return _forward_backward(layer)


_LAYER = "layer, fp16, forward and backward"
OPERATIONS: tuple[tuple[str, str, Callable[[], Step]], ...] = (
    ("Adam, a step", "torch AdamW, foreach", lambda: _torch_adam(fused=False)),
    ("Adam, a step", "torch AdamW, fused", lambda: _torch_adam(fused=True)),
    ("Adam, a step", "DeepSpeed FusedAdam", _deepspeed_adam),
    ("LAMB, a step", "DeepSpeed FusedLamb", _deepspeed_lamb),
    (_LAYER, "transformers, SDPA", lambda: _hugging_face_layer(compiled=False)),
    (_LAYER, "transformers, SDPA, compiled", lambda: _hugging_face_layer(compiled=True)),
    (_LAYER, "DeepSpeed transformer", lambda: _deepspeed_layer(stochastic=False)),
    (
        _LAYER,
        "DeepSpeed transformer, stochastic",
        lambda: _deepspeed_layer(stochastic=True),
    ),
)
"""All of BERT-large: its parameters, or one layer on 64 sequences of 128 tokens with dropout 0.1."""


def main(arguments: list[str]) -> int:
    rows: list[Row] = []
    for group, name, make in OPERATIONS:
        if "--no-deepspeed" in arguments and name.startswith("DeepSpeed"):
            continue
        rows.append(measured(group, name, make))
        Path(arguments[0]).write_text(
            json.dumps(rows, indent=2), encoding="utf-8"
        )  # what there is, if the next one crashes
        print(rows[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
