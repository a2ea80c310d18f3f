"""Turns a small DeepSpeed checkpoint of ZeRO 1 or 2 into one of a larger model, with one rank's tensors in memory.

Everything that does not depend on the sizes stays as the engine saved it. What does is computed as DeepSpeed 0.19.8
does (runtime/zero/stage_1_and_2.py): a group's parameters one after another, padded to a multiple of twice the ranks,
cut into equal parts. A test compares the result with what an engine of that size saves.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.utils.tensor_fragment import fragment_address
from torch import nn

from stacking.errors import UserError
from stacking.model.bert import build
from stacking.planning.plan import Plan
from stacking.run.checkpoints import tag
from stacking.state.format import MOMENTS, WEIGHTS
from stacking.storage.files import read_sealed, seal_folder, write_sealed
from stacking.storage.partition import Piece, cut, packed
from stacking.train.checkpoint import PROGRESS
from stacking.train.engine import parameter_groups
from tools.benchmarks.noise import NoisyState


def enlarge(checkpoints: Path, plan: Plan) -> None:
    """Rewrites the checkpoint of a small model in ``checkpoints`` for the model of the plan's first stage.

    Raises:
        UserError: it is of another ZeRO stage.
    """
    stage = plan.stages[0]
    if stage.zero_stage not in (1, 2):
        problem = f"is {stage.zero_stage}, and no engine of this size fits into memory here"
        raise UserError("--zero-stage", problem, "give 1 or 2, or a smaller --shape")
    folder = checkpoints / tag(stage.steps)
    config = plan.model.with_layers(stage.layers)
    with torch.device("meta"):
        model = build(config)
    groups = parameter_groups(model, plan.optimizer.weight_decay, plan.optimizer.weight_decay_on)
    noise = NoisyState(config)
    _rewrite(next(folder.glob("mp_rank_*_model_states.pt")), lambda saved: _model(saved, model, groups, noise))
    for rank in range(stage.ranks):
        file = next(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_*_optim_states.pt"))
        _rewrite(file, lambda saved, rank=rank: _shard(saved["optimizer_state_dict"], groups, rank, stage.ranks, noise))
    write_sealed(folder / PROGRESS, {**read_sealed(folder / PROGRESS), "model": config.model_dump()})
    seal_folder(folder, {"kind": "checkpoint", "format": 1})


def _rewrite(file: Path, change: Any) -> None:
    saved = torch.load(file, weights_only=False)
    change(saved)
    torch.save(saved, file.with_suffix(".large"))
    os.replace(file.with_suffix(".large"), file)


def _model(saved: dict[str, Any], model: nn.Module, groups: list[dict[str, Any]], noise: NoisyState) -> None:
    """Puts the large model's weights and the shapes of its parameters into the model file's content."""
    dtype = next(t.dtype for name, t in saved["module"].items() if name not in saved["buffer_names"])
    buffers = {name: saved["module"][name] for name in saved["buffer_names"]}
    made: dict[int, torch.Tensor] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    module = OrderedDict()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in buffers:
            module[name] = buffers[name]
            continue
        if id(tensor) not in made:  # a tied one is saved once
            values = torch.from_numpy(noise.read(WEIGHTS, names[id(tensor)]))
            made[id(tensor)] = values.view(tensor.shape).to(dtype)
        module[name] = made[id(tensor)]
    saved["module"] = module
    saved["param_shapes"] = [OrderedDict((names[id(p)], p.shape) for p in group["params"]) for group in groups]


def _shard(saved: dict[str, Any], groups: list[dict[str, Any]], rank: int, ranks: int, noise: NoisyState) -> None:
    """Puts one rank's parts of the large model's groups into an optimizer file's content."""
    for index, group in enumerate(groups):
        shapes = [(name, tuple(p.shape)) for name, p in zip(group["parameter_names"], group["params"], strict=True)]
        numel = sum(math.prod(shape) for _, shape in shapes)
        size = (numel + -numel % (2 * ranks)) // ranks
        pieces = cut(packed(shapes), rank * size, (rank + 1) * size)
        padding = max(0, min(size, (rank + 1) * size - numel))
        saved["single_partition_of_fp32_groups"][index] = _flat(noise, WEIGHTS, pieces, size)[: size - padding]
        state = saved["base_optimizer_state"]["state"][index]
        state.update({kind: _flat(noise, kind, pieces, size) for kind in MOMENTS})
        saved["base_optimizer_state"]["param_groups"][index]["parameter_names"] = group["parameter_names"]
        saved["group_paddings"][index] = padding
        saved["param_alignment_paddings"][index] = [0] * len(shapes)
        saved["param_slice_mappings"][index] = _mapping(pieces)


def _mapping(pieces: list[Piece]) -> OrderedDict[str, fragment_address]:
    starts = accumulate((piece.numel for piece in pieces), initial=0)
    return OrderedDict(
        (p.name, fragment_address(numel=p.numel, start=start)) for p, start in zip(pieces, starts, strict=False)
    )


def _flat(noise: NoisyState, kind: str, pieces: list[Piece], size: int) -> torch.Tensor:
    flat = np.zeros(size, np.float32)
    for piece in pieces:
        noise.fill(kind, piece.name, piece.start, flat[piece.offset : piece.offset + piece.numel])
    return torch.from_numpy(flat)
