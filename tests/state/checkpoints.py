"""Makes small (or large) checkpoint folders in DeepSpeed's layout of ZeRO 1 and 2, with torch alone."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

Groups = list[dict[str, tuple[int, ...]]]
GROUPS: Groups = [{"tokens.weight": (5, 3), "layers.0.up.weight": (4, 3)}, {"layers.0.up.bias": (4,)}]


def write_checkpoint(folder: Path, groups: Groups = GROUPS, ranks: int = 2, step: int = 7) -> Path:
    """ZeRO 2: parameter k is filled with 100 (k + 1) + 0, 1, 2, …; its moments with half and a quarter of that."""
    folder.mkdir(parents=True)
    first, flats = 1, []
    for group in groups:
        parts = []
        for shape in group.values():
            size = torch.Size(shape).numel()
            parts.append(100.0 * first + torch.arange(size, dtype=torch.float32))
            first += 1
        flat = torch.cat(parts)
        flats.append(torch.cat([flat, torch.zeros(-flat.numel() % (2 * ranks))]))
    names = {name: torch.Size(shape) for group in groups for name, shape in group.items()}
    model: dict[str, Any] = {
        "module": OrderedDict((name, torch.zeros(shape, dtype=torch.bfloat16)) for name, shape in names.items()),
        "buffer_names": ["seen"],
        "optimizer": None,
        "param_shapes": [OrderedDict((n, torch.Size(s)) for n, s in group.items()) for group in groups],
        "frozen_param_shapes": OrderedDict(),
        "shared_params": {},
    }
    model["module"]["seen"] = torch.tensor([1.0, 2.0])
    torch.save(model, folder / "mp_rank_00_model_states.pt")
    for rank in range(ranks):
        torch.save({"optimizer_state_dict": _shard(flats, groups, rank, ranks, step)}, shard_file(folder, rank))
    return folder


def shard_file(folder: Path, rank: int) -> Path:
    return folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def _shard(flats: list[torch.Tensor], groups: Groups, rank: int, ranks: int, step: int) -> dict[str, object]:
    masters, state, paddings = [], {}, []
    for index, (flat, group) in enumerate(zip(flats, groups, strict=True)):
        part = flat.chunk(ranks)[rank].clone()
        used = sum(torch.Size(shape).numel() for shape in group.values())
        paddings.append(max(0, min(part.numel(), (rank + 1) * part.numel() - used)))
        masters.append(part[: part.numel() - paddings[-1]])
        state[index] = {"step": torch.tensor(float(step)), "exp_avg": part / 2, "exp_avg_sq": part / 4}
    return {
        "zero_stage": 2,
        "partition_count": [ranks] * len(groups),
        "group_paddings": paddings,
        "single_partition_of_fp32_groups": masters,
        "base_optimizer_state": {
            "state": state,
            "param_groups": [{"params": [index], "lr": 0.1} for index in range(len(groups))],
        },
    }
