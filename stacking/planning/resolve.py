"""The decisions of a plan, one by one: device, depth, precision, batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from stacking.config.recipe import Growth, Recipe
from stacking.deepspeed_config import ds_config
from stacking.deepspeed_config.ds_config import UserConfig
from stacking.deepspeed_config.examination import get
from stacking.errors import UserError
from stacking.growth.operators import reachable
from stacking.hardware.machine import Machine
from stacking.hardware.presets import DEVICE_CLASSES, DeviceClass, Precision
from stacking.model.config import ModelConfig
from stacking.model.size import count_parameters
from stacking.planning.batch import Batch, recipe_total, resolve_batch
from stacking.planning.cost import activation_bytes
from stacking.planning.initial_model import Start

_CPU_MICRO_TOKENS = 4096
"""Larger micro-batches do not speed up a CPU, they only take memory."""
_USABLE = 0.8
"""Share of a GPU's memory that an estimate may fill."""
_CPU_RANKS = 2
"""The meaning of ``auto`` on a CPU: enough to be distributed; more would compete for the same cores."""


@dataclass(frozen=True)
class Target:
    """The devices to plan for: the machine's, or the class that the recipe names."""

    cuda: bool
    device: DeviceClass
    memory: int
    """Bytes per GPU, or of the host; 0: unknown."""
    devices: int
    cores: int
    fused_adam: bool
    """Whether to use DeepSpeed's CUDA kernel for Adam, which is compiled at first use."""


def find_target(recipe: Recipe, machine: Machine) -> Target:
    """Return the devices to plan for.

    Raises:
        UserError: the recipe wants a GPU, but there is none and it names no class.
    """
    wanted, named = recipe.launch.accelerator, recipe.launch.device
    cuda = named != "cpu" if named != "auto" else machine.accelerators > 0
    if wanted == "cpu":
        cuda = False
    if wanted == "cuda" and not cuda:
        remedy = "set it to cpu, or name the class to plan for as launch.device"
        raise UserError(recipe.key("launch", "accelerator"), "is cuda, but there is no GPU here", remedy)
    if not cuda:
        if named not in ("auto", "cpu"):
            raise UserError(recipe.key("launch", "device"), f"is {named}, but the accelerator is cpu", "remove one")
        memory = 0 if machine.accelerators else machine.memory
        return Target(False, machine.cpu, memory, _CPU_RANKS, machine.cores, False)
    if named == "auto":
        return Target(True, machine.device, machine.memory, machine.accelerators, machine.cores, machine.has_nvcc)
    device = DEVICE_CLASSES[named]
    fused_adam = machine.has_nvcc or machine.accelerators == 0  # a login node says nothing about the compute nodes
    return Target(True, device, device.memory, max(machine.accelerators, 1), machine.cores, fused_adam)


def check_model(recipe: Recipe, model: ModelConfig, manifest: Mapping[str, Any] | None) -> None:
    """Reject a model that does not fit the data.

    Raises:
        UserError: the sequences are longer than its positions, or there are more tokens than embeddings.
    """
    length = recipe.data.sequence_length
    if length > model.max_positions:
        where = recipe.key("data", "sequence_length")
        problem = f"is {length}, but the model has {model.max_positions} positions"
        raise UserError(where, problem, f"give at most {model.max_positions}, or raise model.max_positions")
    if manifest and manifest["vocabulary"] > model.vocabulary:
        key = ("start",) if recipe.start and recipe.model.vocabulary is None else ("model", "vocabulary")
        problem = f"the model has {model.vocabulary:,} token embeddings, but the data {manifest['vocabulary']:,} tokens"
        raise UserError(recipe.key(*key), problem, "prepare the data with the model's own tokenizer")


def choose_growths(recipe: Recipe, start: Start | None) -> list[Growth | None]:
    """Decide how each stage grows out of the previous one.

    Raises:
        UserError: the number of layers shrinks, or the operator cannot produce it.
    """
    growths: list[Growth | None] = []
    before = start.model.layers if start else None
    for i, stage in enumerate(recipe.stages):
        if before is None or stage.layers == before:
            growths.append(None)
            before = stage.layers
            continue
        changes = stage.growth.model_dump(exclude_none=True) if stage.growth else {}
        growth = recipe.growth.model_copy(update=changes)
        where = recipe.key("stages", i, "layers")
        if stage.layers < before:
            raise UserError(where, f"is {stage.layers} after {before}", "layers can only grow")
        if not reachable(growth.operator, before, stage.layers):
            depths = [n for n in range(before, stage.layers + before + 1) if reachable(growth.operator, before, n)]
            near = min(depths, key=lambda n: abs(n - stage.layers))
            problem = f"is {stage.layers}, which {growth.operator} cannot grow from {before}"
            remedy = f"give {near} or another multiple of {before}, or growth.operator: identity"
            raise UserError(where, problem, remedy)
        growths.append(growth)
        before = stage.layers
    return growths


def user_config(recipe: Recipe, index: int) -> UserConfig:
    """Examine the DeepSpeed configuration that a stage refers to.

    Raises:
        UserError: it is missing, or neither JSON nor HJSON.
    """
    stage = recipe.stages[index]
    own = stage.ds_config is not None
    reference = stage.ds_config if own else recipe.ds_config
    where = recipe.key("stages", index, "ds_config") if own else recipe.key("ds_config")
    return ds_config.load(reference, where, recipe.file.parent)


def choose_precision(recipe: Recipe, user: UserConfig, device: DeviceClass) -> Precision:
    """Decide the precision of a stage: the recipe's, else the DeepSpeed configuration's, else the device's default.

    Raises:
        UserError: the two disagree, or the device does not support it well.
    """
    asked = ds_config.requested_precision(user, device)
    wanted = recipe.precision
    if wanted == "auto":
        chosen = asked or device.precision
        named = f"{user.where}: {asked}.enabled" if asked else recipe.key("precision")
        ds_config.check_precision(chosen, device, named)
        return chosen
    explicit = asked is not None and get(user.content, f"{asked}.enabled") is True
    if (explicit and asked != wanted) or ds_config.switched_off(user, wanted):
        key = f"{asked if explicit else wanted}.enabled"
        says = f"asks for {asked}" if explicit else "is false"
        raise user.error(key, f"{says}, but the recipe's precision is {wanted}", "change one of them")
    ds_config.check_precision(wanted, device, recipe.key("precision"))
    return wanted


def choose_batches(
    recipe: Recipe, model: ModelConfig, users: list[UserConfig], precisions: list[Precision], target: Target
) -> list[Batch]:
    """Choose the batch of every stage.

    Raises:
        UserError: a batch is missing or does not divide.
    """
    batches: list[Batch] = []
    totals = [recipe_total(recipe, i) for i in range(len(recipe.stages))]
    auto = next(n for n in range(target.devices, 0, -1) if all(t % n == 0 for t in totals if t))
    for i, (stage, user) in enumerate(zip(recipe.stages, users, strict=True)):
        ranks = stage.ranks or recipe.launch.ranks or auto
        fits = _fits(recipe, model.with_layers(stage.layers), precisions[i], target)
        inherited = batches[-1].total if batches else None
        batches.append(resolve_batch(recipe, i, user, ds_config.batch_keys(user), ranks, inherited, fits))
    return batches


def _fits(recipe: Recipe, model: ModelConfig, precision: Precision, target: Target) -> Callable[[int], bool]:
    """Whether a micro-batch fits: on a GPU next to an unsharded training state, on a CPU within reach of the caches."""
    length, size = recipe.data.sequence_length, 4 if precision == "fp32" else 2
    if not target.cuda:
        return lambda micro: micro * length <= _CPU_MICRO_TOKENS
    free = target.memory * _USABLE - 16 * count_parameters(model)
    return lambda micro: (
        activation_bytes(model, micro, length, size, fused=True, mask_probability=recipe.data.mask_probability) <= free
    )


def count_steps(recipe: Recipe, index: int, batch: Batch) -> int:
    """Return the updates of a stage; if it is given in tokens, they are rounded up to whole updates."""
    stage = recipe.stages[index]
    if stage.steps is not None:
        return stage.steps
    assert stage.tokens is not None  # the recipe sets one of the two
    return ceil(stage.tokens / (batch.total * recipe.data.sequence_length))
