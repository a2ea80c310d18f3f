"""Creates engines of all kinds that need no compiler, on one rank; prints what `deepspeed_private` finds, as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_optimizer_state

from stacking.state import deepspeed_private as private
from stacking.state.loss_scale import as_backward_takes_it
from tests.state.worker import make_engine, train

private.compile_no_operations()
private.leave_muon_uncompiled()

JOBS: dict[str, dict[str, Any]] = {
    "plain": {"zero": 0, "precision": "fp32"},
    "unfused": {"zero": 0, "precision": "fp16"},
    "zero": {"zero": 2, "precision": "fp32"},
    "bf16": {"zero": 1, "precision": "bf16", "options": {"data_types": {"grad_accum_dtype": "fp32"}}},
    "stage3": {"zero": 3, "precision": "fp16"},
}


def examine(engine: Any) -> dict[str, Any]:
    optimizer, total = engine.optimizer, sum(private_size(p) for p in engine.module.parameters())
    found: dict[str, Any] = {"class": type(optimizer).__name__, "parameters": total}
    found["wraps"] = private.inner_optimizer(engine) is not optimizer
    found["compiler"] = "torch._inductor.compile_fx" in sys.modules
    found["nvme"] = private.offloads_to_nvme(optimizer)
    scaler = private.loss_scaler(engine) if engine.fp16_enabled() else None
    found["scale"] = None if scaler is None else [hasattr(scaler, "cur_scale"), private.smallest_loss_scale(scaler)]
    LOOKS.get(found["class"], lambda engine, found: None)(engine, found)
    return found


def private_size(parameter: torch.Tensor) -> int:
    return torch.Size(private.whole_shape(parameter)).numel()


def unfused(engine: Any, found: dict[str, Any]) -> None:
    weight = next(engine.module.parameters())
    scale, small = private.loss_scaler(engine).cur_scale, 2**-8  # fp16 ends below the first scale
    engine.backward(as_backward_takes_it(engine, small * weight.float().sum()))
    found["unscaled"] = private.leaves_loss_unscaled(engine)
    found["gradient"] = weight.grad.flatten()[0].item() / scale / small
    groups = list(private.unfused_groups(engine.optimizer))
    found["held"] = sum(master.numel() for _, masters in groups for master in masters)
    groups[0][1][0].data.fill_(7.0)
    private.refresh_masters(engine.optimizer)
    found["refreshed"] = not bool((groups[0][1][0] == 7).any())


def partitioned(engine: Any, found: dict[str, Any]) -> None:
    bf16 = found["class"] == "BF16_Optimizer"
    parts = (private.partitions_bf16 if bf16 else private.partitions)(engine.optimizer)
    found["held"] = sum(p.numel() for part in parts for p in part.parameters)
    found["fits"] = all(part.master.numel() >= sum(p.numel() for p in part.parameters) for part in parts)
    low = private.low_precision_parts(engine.optimizer)
    found["low"] = None if low is None else [len(ranks) for ranks in low]
    parts[0].master.data.fill_(0.5)
    private.gather_low_precision(engine.optimizer)
    found["gathered"] = bool((parts[0].parameters[0] == 0.5).all())
    inner = private.inner_optimizer(engine)
    inner.state[parts[0].master]["exp_avg"] = torch.full_like(parts[0].master, 0.25)
    private.relink_optimizer_states(engine.optimizer)
    linked = safe_get_full_optimizer_state(parts[0].parameters[0], "exp_avg")
    found["linked"] = bool((linked == 0.25).all())


def sharded(engine: Any, found: dict[str, Any]) -> None:
    private.release_parameters(engine.optimizer)
    parts = private.sub_groups(engine.optimizer)
    found["held"] = sum(private_size(p) for part in parts for p in part.parameters)
    found["released"] = all(p.numel() == 0 for part in parts for p in part.parameters)
    found["group"] = [part.group for part in parts]
    for part in parts:
        part.master.data.fill_(0.5)
    private.reshard_from_masters(engine.optimizer)
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        found["gathered"] = all(bool((p == 0.5).all()) for p in engine.module.parameters())


LOOKS = {
    "FP16_UnfusedOptimizer": unfused,
    "DeepSpeedZeroOptimizer": partitioned,
    "BF16_Optimizer": partitioned,
    "DeepSpeedZeroOptimizer_Stage3": sharded,
}


def main() -> None:
    deepspeed.init_distributed("gloo", verbose=False)
    deepspeed.get_accelerator().is_fp16_supported = lambda: True
    found = {}
    for name, job in JOBS.items():
        engine = make_engine({"save": "", "steps": [0, 1], **job}, 1)
        train(engine, 0, 1, range(1))
        found[name] = examine(engine)
        engine.destroy()
    print("\n" + json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
