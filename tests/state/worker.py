"""One rank of the state tests: builds engines, trains, loads and saves as a list of jobs (JSON) says."""

from __future__ import annotations

import functools
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cpuinfo
import deepspeed
import numpy as np
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

from stacking.state.deepspeed_private import leave_muon_uncompiled
from stacking.state.format import MOMENTS, State, step_of
from stacking.state.load import begin, load
from stacking.state.zero import ZeroCheckpoint
from stacking.train.engine import parameter_groups as own_groups

BATCH = 4


class Layer(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, 3 * hidden)
        self.down = nn.Linear(3 * hidden, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.down(torch.tanh(self.up(x))))


class Tiny(nn.Module):
    """A tied output projection, a persistent buffer, and odd sizes, so that partitions cut through parameters."""

    seen: torch.Tensor
    count: torch.Tensor

    def __init__(self, hidden: int = 7, words: int = 13, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(words, hidden)
        self.layers = nn.ModuleList(Layer(hidden) for _ in range(layers))
        self.decoder = nn.Linear(hidden, words)
        self.decoder.weight = self.tokens.weight
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.add_(1.5)
            self.count.add_(1)
        x = self.tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return nn.functional.cross_entropy(self.decoder(x).float(), ids)


def ds_config(job: dict[str, Any], ranks: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": job["zero"]}
    if job.get("offload"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    optimizer = {"lr": 0.01, "betas": [0.9, 0.98], "weight_decay": 0.01, "torch_adam": job.get("torch_adam", True)}
    config = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // ranks,
        "zero_optimization": {**zero, **job.get("zero_options", {})},
        "optimizer": {"type": "AdamW", "params": optimizer},
        "gradient_clipping": 1.0,
    }
    if job["precision"] != "fp32":
        config[job["precision"]] = {"enabled": True, **({"loss_scale": 16} if job["precision"] == "fp16" else {})}
    return {**config, **job.get("options", {})}


def parameter_groups(model: nn.Module, named: bool) -> list[dict[str, Any]]:
    groups = []
    for matrices in (True, False):
        chosen = {n: p for n, p in model.named_parameters() if (p.ndim > 1) == matrices}
        group: dict[str, Any] = {"params": list(chosen.values()), "weight_decay": 0.01 * matrices}
        groups.append({**group, "parameter_names": list(chosen)} if named else group)
    return groups


def make_engine(job: dict[str, Any], ranks: int) -> Any:
    torch.manual_seed(job.get("seed", 0))
    model = Tiny(**job.get("model", {}))
    groups = parameter_groups(model, job.get("named", False))
    if job.get("ages"):
        groups = own_groups(model, 0.01, "matrices", partial(step_of, open_source(job)))
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=ds_config(job, ranks))
    return engine


def open_source(job: dict[str, Any]) -> State | ZeroCheckpoint:
    source = job["load"]
    return State(source) if (Path(source) / "weights.safetensors").exists() else ZeroCheckpoint(source)


def train(engine: Any, rank: int, ranks: int, steps: range) -> None:
    for step in steps:
        ids = torch.randint(0, 13, (BATCH, 5), generator=torch.Generator().manual_seed(step))
        engine.backward(engine(ids.chunk(ranks)[rank].flatten()))
        engine.step()


def probe(engine: Any, zero: int) -> dict[str, np.ndarray]:
    """Masters and moments through DeepSpeed's public calls, and the weights that the model computes with."""
    values: dict[str, Any] = {}
    if zero in (1, 2):  # DeepSpeed links the moments after the first group's first step, so not those of later groups
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=zero == 3):
            values[f"model {name}"] = parameter.detach().float().clone()
        if zero:
            values[f"weights {name}"] = safe_get_full_fp32_param(parameter)
            values.update({f"{kind} {name}": safe_get_full_optimizer_state(parameter, kind) for kind in MOMENTS})
        elif engine.optimizer is engine.basic_optimizer:
            values.update({f"{kind} {name}": engine.optimizer.state[parameter][kind] for kind in MOMENTS})
    return {key: value.numpy() for key, value in values.items()}


def run(job: dict[str, Any], rank: int, ranks: int) -> None:
    engine = make_engine(job, ranks)
    if job.get("begin"):
        begin(engine)
    if "load" in job:
        load(engine, open_source(job))
    first, last = job["steps"]
    train(engine, rank, ranks, range(first, last))
    engine.save_checkpoint(job["save"], tag="step")
    if "probe" in job:
        values = probe(engine, job["zero"])
        if rank == 0:
            np.savez(job["probe"], allow_pickle=False, **values)
    engine.destroy()


def main() -> None:
    if "--no-compiling" in sys.argv:
        deepspeed.ops.__compatible_ops__ = {}  # else DeepSpeed compiles collectives for CPU ranks, a minute long
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)  # a second each time an offloading engine is created
    leave_muon_uncompiled()
    deepspeed.init_distributed("gloo", verbose=False)
    torch.set_num_threads(1)
    deepspeed.get_accelerator().is_fp16_supported = lambda: True  # slow without AVX512-FP16, but exact enough
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job, torch.distributed.get_rank(), torch.distributed.get_world_size())
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
