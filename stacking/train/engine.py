"""Creates DeepSpeed engines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import partial
from typing import Any

import deepspeed
import torch
import torch._dynamo
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import nn
from torch.overrides import TorchFunctionMode

from stacking.deepspeed_config.ds_config import LAMB, compiles_adam
from stacking.launch.rank import own_gpu
from stacking.model.bert import Bert, build
from stacking.model.kernels import LAMBS, kernels_for, use
from stacking.planning.growth import Rates
from stacking.planning.plan import Plan, StagePlan
from stacking.state.deepspeed_private import compile_no_operations, leave_muon_uncompiled
from stacking.state.format import TrainingState, step_of
from stacking.state.layers import layer_of
from stacking.storage.partition import PARAMETER_NAMES
from stacking.train.allocator import let_segments_grow
from stacking.train.builds import wait_for_builds

_ADDED = "added"
"""Key of an optimizer's parameter group: whether its layers have the learning rate of added ones."""
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def connect() -> None:
    """Selects this rank's device and joins the job's process group, using the launcher's environment."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        _use_gloo_alone()
    if get_accelerator().device_name() == "cuda":
        # DeepSpeed does this with its engine, but kernels are chosen earlier, for this rank's device.
        get_accelerator().set_device(own_gpu(torch.cuda.device_count()))
        let_segments_grow()
    leave_muon_uncompiled()
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


class _Undrawn(TorchFunctionMode):
    """Skips random initialisation, which takes most of the time of building a model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def start_engine(
    plan: Plan, stage: StagePlan, drawn: bool = True, source: TrainingState | None = None
) -> DeepSpeedEngine:
    """Returns a DeepSpeed engine with the model of ``stage``, initialised from the plan's seed.

    The same seed gives the same weights on every rank and at every world size.

    Args:
        drawn: False if all weights will be loaded later; they are uninitialised until then.
        source: what will be loaded later. Parameters with different step counts get groups of their own.
    """
    torch.manual_seed(plan.seed)
    with nullcontext() if drawn else _Undrawn():
        model = build(plan.model.with_layers(stage.layers))
    choose_kernels(model, stage)
    weight_decay = stage.ds_config["optimizer"]["params"]["weight_decay"]
    apart = stage.growth.apart if stage.growth else frozenset()

    def kind_of(name: str) -> Hashable:
        return layer_of(name) in apart, step_of(source, name) if source else 0

    groups = parameter_groups(model, weight_decay, plan.optimizer.weight_decay_on, kind_of)
    for group in groups:
        group[_ADDED] = layer_of(group[PARAMETER_NAMES][0]) in apart
    if compiles_adam(stage.ds_config):
        wait_for_builds()
    made = lamb_maker(model, stage.ds_config["optimizer"])
    engine, *_ = deepspeed.initialize(model=model, optimizer=made, model_parameters=groups, config=stage.ds_config)
    engine.global_samples = stage.first_sample  # the monitors' x-axis, shared by all stages
    return engine


def choose_kernels(model: Bert, stage: StagePlan) -> None:
    """Selects the model's kernels for this rank's device and the stage's settings; rank 0 logs the reasons."""
    device = torch.device(get_accelerator().current_device_name())
    head = model.config.hidden // model.config.heads
    kernels = kernels_for(
        device,
        _DTYPES[stage.precision],
        head,
        model.config.attention_dropout,
        compiled=stage.kernels.compile,
        lamb=stage.ds_config["optimizer"]["type"] == LAMB,
    )
    if deepspeed.comm.get_rank() == 0:
        print(f"kernels: {kernels.why}", file=sys.stderr, flush=True)
    if kernels.layers == "compiled":
        _compile(model)
    use(model, kernels)
    model.recompute = stage.kernels.activation_checkpointing


def _compile(model: Bert) -> None:
    """Compiles every layer, for sequences of any length.

    All layers share one cache, with entries for all rows and for the rows of a head, with and without gradients, and
    for static and dynamic shapes. With torch's limit of 8, some would silently stay uncompiled.
    """
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # torch < 2.6
    setattr(torch._dynamo.config, limit, 64)
    for layer in model.layers:
        layer.compile()


def lamb_maker(model: Bert, optimizer: dict[str, Any]) -> Callable[..., torch.optim.Optimizer] | None:
    """Returns what makes LAMB of parameter groups on this rank's device; None where DeepSpeed makes the optimizer."""
    if optimizer["type"] != LAMB:
        return None
    return partial(LAMBS[model.kernels.lamb], **optimizer["params"])


def chosen_kernels(engine: DeepSpeedEngine, stage: StagePlan) -> dict[str, str]:
    """Describes the kernels selected by `choose_kernels`, for users."""
    kernels = engine.module.kernels
    return {
        "attention": kernels.attention,
        "dropout": kernels.dropout,
        "layer norm": kernels.norm,
        "vocabulary scores": kernels.decoder,
        "cross-entropy": kernels.cross_entropy,
        "compile": "each layer" if kernels.layers == "compiled" else "no",
        "activation checkpointing": "each layer" if stage.kernels.activation_checkpointing else "no",
    }


def _same(name: str) -> int:
    return 0


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_on: str, kind_of: Callable[[str], Hashable] = _same
) -> list[dict[str, Any]]:
    """Returns AdamW's parameter groups, with weight decay on all parameters or only on matrices, as in Google's BERT.

    Each group lists its parameters' names, so that its checkpoints can be read without the model.

    Args:
        kind_of: parameters for which it differs are in different groups. The kinds are in the order in which the model
            first has them, so that the groups are the same after a restart.
    """
    kinds: dict[Hashable, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        kinds.setdefault(kind_of(name), []).append((name, parameter))
    return [group for named in kinds.values() for group in _groups(named, weight_decay, decay_on)]


def _groups(named: list[tuple[str, nn.Parameter]], weight_decay: float, decay_on: str) -> list[dict[str, Any]]:
    """Returns the groups of one kind."""
    if decay_on == "all":
        return [_group(named, weight_decay)]
    matrices = [(name, p) for name, p in named if p.ndim >= 2]
    vectors = [(name, p) for name, p in named if p.ndim < 2]
    return [_group(matrices, weight_decay), _group(vectors, 0.0)]


def _group(named: list[tuple[str, nn.Parameter]], weight_decay: float) -> dict[str, Any]:
    return {
        "params": [parameter for _, parameter in named],
        PARAMETER_NAMES: [name for name, _ in named],
        "weight_decay": weight_decay,
    }


def set_learning_rates(engine: DeepSpeedEngine, rates: Rates) -> None:
    """Sets the learning rates of the next update.

    A rate of 0 leaves weights as they are, to the bit, since decay is multiplied by it; moments follow the gradients.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = rates.added if group[_ADDED] else rates.rest


def _use_gloo_alone() -> None:
    """Disables DeepSpeed's shared-memory collectives on CPUs, which hang if a peer dies; gloo raises an error."""
    compile_no_operations()
