"""The one place where a DeepSpeed engine is made."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import deepspeed
import torch
import torch._dynamo
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import nn
from torch.overrides import TorchFunctionMode

from stacking.model.bert import Bert, build
from stacking.model.kernels import kernels_for, use
from stacking.planning.plan import Plan, Stage
from stacking.state.deepspeed_private import compile_no_operations
from stacking.storage.partition import PARAMETER_NAMES

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def connect() -> None:
    """Join the other ranks of this job, which the launcher's environment names."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        _use_gloo_alone()
    if get_accelerator().device_name() == "cuda":
        # DeepSpeed does so when its engine is made; the kernels are chosen before that, on this rank's own device.
        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of random numbers, which takes most of the time in which a model is built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def start_engine(plan: Plan, stage: Stage, drawn: bool = True) -> DeepSpeedEngine:
    """A DeepSpeed engine around the model of ``stage``, with fresh weights drawn from the plan's seed.

    The same seed gives the same weights on every rank and at every world size.

    Args:
        drawn: False where all weights will be loaded, and may be anything until then.
    """
    torch.manual_seed(plan.seed)
    with nullcontext() if drawn else _Undrawn():
        model = build(plan.model.with_layers(stage.layers))
    choose_kernels(model, stage)
    weight_decay = stage.ds_config["optimizer"]["params"]["weight_decay"]
    groups = parameter_groups(model, weight_decay, plan.optimizer.weight_decay_on)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=stage.ds_config)
    engine.global_samples = stage.first_sample  # the monitors' axis: one for all stages
    return engine


def choose_kernels(model: Bert, stage: Stage) -> None:
    """Let ``model`` use what suits this rank's device, and what the stage asks for besides."""
    device = torch.device(get_accelerator().current_device_name())
    head = model.config.hidden // model.config.heads
    kernels = kernels_for(device, _DTYPES[stage.precision], head, model.config.attention_dropout)
    if stage.kernels.compile:
        kernels = replace(kernels, grouped=False)  # each number of groups would be compiled by itself
        _compile(model)
    use(model, kernels)
    model.recompute = stage.kernels.activation_checkpointing


def _compile(model: Bert) -> None:
    """Compile every layer, for sequences of any lengths.

    All layers share one cache: for all rows and for those that a head needs, with and without gradients, each with its
    static and its dynamic shapes. Torch's limit of 8 would leave some of them uncompiled without an error.
    """
    torch._dynamo.config.recompile_limit = 64
    for layer in model.layers:
        layer.compile()


def chosen_kernels(engine: DeepSpeedEngine, stage: Stage) -> dict[str, str]:
    """What `choose_kernels` chose, for people."""
    kernels = engine.module.kernels
    return {
        "attention": kernels.attention,
        "dropout": kernels.dropout,
        "vocabulary scores": kernels.decoder,
        "cross-entropy": kernels.cross_entropy,
        "compile": "each layer" if stage.kernels.compile else "no",
        "activation checkpointing": "each layer" if stage.kernels.activation_checkpointing else "no",
    }


def parameter_groups(model: nn.Module, weight_decay: float, decay_on: str) -> list[dict[str, Any]]:
    """AdamW's parameter groups: decay on every parameter, or on matrices alone, as Google's BERT has it.

    Each group lists its parameters' names, so that a checkpoint of it can be read without the model.
    """
    named = list(model.named_parameters())
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


def set_learning_rate(engine: DeepSpeedEngine, value: float) -> None:
    """The step size of the next update, for all parameters."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def _use_gloo_alone() -> None:
    """Keep CPU ranks from DeepSpeed's shared-memory collectives, which spin for ever when a peer dies; gloo notices."""
    compile_no_operations()
