"""Has DeepSpeed validate configurations: reads a JSON list from stdin, writes a JSON list of complaints to stdout.

`stacking.deepspeed_config.own_check` starts this process. Each item is ``{"config": ..., "ranks": ...}``; each answer
is a list of ``{"section": ..., "key": ..., "message": ...}``.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from stacking.deepspeed_config.examination import Examination, get, leaves
from stacking.deepspeed_config.facts import TITLES


def main() -> None:
    """Answers on the real stdout, away from DeepSpeed's own output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    from deepspeed import comm

    comm.get_rank = lambda *_, **__: 0  # DeepSpeed only reads the number of ranks from ``mpu`` in a distributed run
    json.dump([_complaints(item["config"], item["ranks"]) for item in asked], answers)
    answers.flush()


class _Ranks:
    """Tells DeepSpeed the number of data-parallel ranks."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def get_data_parallel_world_size(self) -> int:
        return self.ranks


_MOST = 10
_NEEDED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer")
"""Without these DeepSpeed would complain about something else."""


def _complaints(config: dict[str, Any], ranks: int) -> list[dict[str, str]]:
    """Returns the first complaint, and those about the rest without the key that it names."""
    rest, found = Examination(config), list[dict[str, str]]()
    while len(found) < _MOST and (complaint := _complaint(rest.content, ranks)):
        found.append(complaint)
        key = ".".join(filter(None, (complaint["section"], complaint["key"])))
        if rest.get(key) is None or key.partition(".")[0] in _NEEDED:
            break
        rest.remove(key)
    return found


def _complaint(config: dict[str, Any], ranks: int) -> dict[str, str] | None:
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        read = DeepSpeedConfig(copy.deepcopy(config), mpu=_Ranks(ranks))
        _check_data_types(read)
        _check_partitioning(read, config)
        _build_optimizer(config)
    except ValidationError as error:
        return _of_model(error, config)
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        return {"section": "", "key": _mentioned(config, message), "message": message}
    return None


def _of_model(error: ValidationError, config: Mapping[str, Any]) -> dict[str, str]:
    detail = error.errors(include_url=False, include_context=False)[0]
    section = TITLES.get(error.title, "")
    key, message = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
    if not key and section:
        mentioned = _mentioned(get(config, section, {}), message, section)
        key = mentioned.removeprefix(f"{section}.")
    return {"section": section, "key": key, "message": message.removeprefix("Assertion failed, ")}


def _mentioned(config: Mapping[str, Any], message: str, above: str = "") -> str:
    """Returns the dotted key of ``config`` that the message names; the longest name if there are several."""
    paths = [path for path, _ in leaves(config, above)]
    found = [path for path in paths if path.rpartition(".")[2].lower() in message.lower()]
    return max(found, key=lambda path: len(path.rpartition(".")[2]), default="")


def _check_data_types(read: Any) -> None:
    """Checks what `DeepSpeedEngine._do_optimizer_sanity_check` rejects after the ranks have started."""
    import torch
    from deepspeed.runtime.config import DtypeEnum

    wide = torch.float32
    model = torch.bfloat16 if read.bfloat16_config.enabled else torch.float16 if read.float16_config.enabled else wide
    wanted = read.grad_accum_dtype
    accumulated = model if wanted is None else DtypeEnum(wanted).value
    stage = read.zero_optimization_stage
    if stage == 0 and accumulated != model:
        raise ValueError(f"grad_accum_dtype {wanted} needs ZeRO or the same precision as the model's, {model}")
    offloaded = read.zero_config.offload_optimizer is not None
    mixed = stage == 1 and model == torch.bfloat16 and accumulated == wide and not offloaded
    if mixed and not read.zero_config.compute_grad_norm:
        raise ValueError("compute_grad_norm=false does not support ZeRO stage 1 with bf16 and fp32 accumulation")


def _check_partitioning(read: Any, config: Mapping[str, Any]) -> None:
    """Checks what the ZeRO optimizers reject in their constructors."""
    zero, stage = read.zero_config, read.zero_optimization_stage
    offload = zero.offload_optimizer
    offloaded = offload is not None and offload.device != "none"
    averaged = stage == 3 or read.gradient_allreduce_op == "mean"
    if stage >= 2 and zero.reduce_scatter and averaged:
        if read.gradient_predivide_factor != 1.0:
            raise ValueError(f"gradient_predivide_factor is not supported at ZeRO stage {stage} with reduce_scatter")
        if read.prescale_gradients:
            raise ValueError(f"prescale_gradients is not supported at ZeRO stage {stage} with reduce_scatter")
    if not zero.compute_grad_norm and (read.gradient_clipping > 0 or offloaded):
        raise ValueError("compute_grad_norm=false needs gradient clipping 0 and no offload_optimizer")
    fused_on_cpu = offloaded and not config["optimizer"]["params"].get("torch_adam")
    if offload is not None and (offload.ratio < 1 or offload.super_offload) and not fused_on_cpu:
        name = "super_offload" if offload.super_offload else "ratio"
        raise ValueError(f"{name} needs offload_optimizer with DeepSpeedCPUAdam, but PyTorch's Adam is built here")


def _build_optimizer(config: Mapping[str, Any]) -> None:
    """Builds PyTorch's Adam on one parameter, if DeepSpeed will build that class."""
    import torch

    class Adam(torch.optim.AdamW):
        def add_param_group(self, param_group: dict[str, Any]) -> None:  # torch's own loads the compiler, for seconds
            self.param_groups.append(param_group)

    parameters = dict(config["optimizer"]["params"])
    if parameters.pop("torch_adam", False):
        parameters.pop("adam_w_mode", None)
        Adam([torch.nn.Parameter(torch.zeros(1))], **parameters)


if __name__ == "__main__":
    main()
