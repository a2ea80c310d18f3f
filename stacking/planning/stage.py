"""Decides about one stage, one function per decision, and makes its `StagePlan` once the learning rates are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil

import xxhash

from stacking.config.recipe import Optimizer, Recipe
from stacking.config.resources import Resources
from stacking.deepspeed_config import ds_config
from stacking.deepspeed_config.ds_config import StageKernels, UserConfig
from stacking.deepspeed_config.examination import get
from stacking.deepspeed_config.findings import Findings
from stacking.deepspeed_config.settle import settle_optimizer
from stacking.errors import UserError
from stacking.hardware.presets import DeviceClass, Precision
from stacking.model.config import ModelConfig
from stacking.model.size import count_parameters
from stacking.planning.batch import BatchSplit, decide_batch, fits_device, has_own_batch
from stacking.planning.cost import memory_per_rank, stage_flops
from stacking.planning.devices import Devices
from stacking.planning.growth import PlannedGrowth, decide_growth
from stacking.planning.plan import StagePlan, stage_name
from stacking.planning.schedule import Points


@dataclass(frozen=True)
class RunBasis:
    """What the decisions about every stage start from."""

    recipe: Recipe
    model: ModelConfig
    depth: int | None
    """Layers of the model to start from; None: random weights."""
    devices: Devices
    ranks: int
    """Where the recipe leaves the number of ranks open."""
    samples_per_epoch: int | None


@dataclass(frozen=True)
class DecidedStage:
    """The decisions about a stage, except its learning rate. What a complaint leaves open is None or the default."""

    index: int
    user: UserConfig
    model: ModelConfig
    growth: PlannedGrowth | None
    optimizer: Optimizer
    notes: tuple[str, ...]
    """Which values of the optimizer the configuration sets."""
    precision: Precision
    kernels: StageKernels
    batch: BatchSplit | None
    steps: int | None
    resources: Resources


def decide_stage(run: RunBasis, index: int, before: DecidedStage | None, findings: Findings) -> DecidedStage:
    """Decides about one stage; complaints are added to ``findings``, and the decisions continue.

    Args:
        before: the previous stage.

    Raises:
        UserError: the stage's DeepSpeed configuration cannot be read.
    """
    recipe, devices = run.recipe, run.devices
    model = run.model.with_layers(recipe.stages[index].layers)
    user = user_config(recipe, index)
    findings.extend(user.errors)
    optimizer, notes = settle_optimizer(recipe, user, findings)
    precision = findings.attempt(decide_precision, recipe, user, devices.device) or devices.device.precision
    kernels = findings.attempt(ds_config.stage_kernels, user, devices.device.compiled, model.hidden) or StageKernels()
    findings.extend(ds_config.optimizer_errors(user, optimizer))
    batch = None
    if before is None or before.batch or has_own_batch(recipe, index, user):
        inherited = before.batch.total if before and before.batch else None
        fits = fits_device(recipe, model, precision, devices)
        batch = findings.attempt(decide_batch, recipe, index, user, run.ranks, inherited, fits)
    resources = findings.attempt(decide_resources, recipe, index, batch.ranks if batch else None) or Resources()
    steps = decide_steps(recipe, index, batch)
    growth = findings.attempt(decide_growth, recipe, index, before.model.layers if before else run.depth, steps)
    return DecidedStage(index, user, model, growth, optimizer, notes, precision, kernels, batch, steps, resources)


def user_config(recipe: Recipe, index: int) -> UserConfig:
    """Examines the DeepSpeed configuration that a stage refers to.

    Raises:
        UserError: it is missing, or neither JSON nor HJSON.
    """
    stage = recipe.stages[index]
    own = stage.ds_config is not None
    reference = stage.ds_config if own else recipe.ds_config
    where = recipe.key("stages", index, "ds_config") if own else recipe.key("ds_config")
    return ds_config.load(reference, where, recipe.file.parent)


def decide_precision(recipe: Recipe, user: UserConfig, device: DeviceClass) -> Precision:
    """Decides the precision of a stage: the recipe's, else the DeepSpeed configuration's, else the device's default.

    Raises:
        UserError: the two disagree, or the device does not support it well.
    """
    asked, wanted = ds_config.requested_precision(user, device), recipe.precision
    explicit = asked is not None and get(user.content, f"{asked}.enabled") is True
    off = get(user.content, f"{wanted}.enabled") is False
    if wanted != "auto" and (off or (explicit and asked != wanted)):
        key = f"{asked if explicit else wanted}.enabled"
        says = f"asks for {asked}" if explicit else "is false"
        raise user.error(key, f"{says}, but the recipe's precision is {wanted}", "change one of them")
    chosen = (asked or device.precision) if wanted == "auto" else wanted
    if chosen in device.unfit:
        where = user.key(f"{asked}.enabled") if asked and wanted == "auto" else recipe.key("precision")
        raise UserError(where, f"{chosen} on {device.name}: {device.unfit[chosen]}", f"use {device.precision}")
    return chosen


def decide_steps(recipe: Recipe, index: int, batch: BatchSplit | None) -> int | None:
    """Returns the updates of a stage; if it is given in tokens, they are rounded up to whole updates."""
    stage = recipe.stages[index]
    if stage.until is not None:
        return stage.until.at_most
    if stage.steps is not None or batch is None:
        return stage.steps
    assert stage.tokens is not None  # the recipe sets one of the three
    return ceil(stage.tokens / (batch.total * recipe.data.sequence_length))


def decide_resources(recipe: Recipe, index: int, ranks: int | None) -> Resources:
    """Returns the resources that the job of one stage requests.

    Raises:
        UserError: the ranks do not divide over the nodes, or fewer nodes are accepted without ``launch.elastic``.
    """
    own = recipe.stages[index].resources
    asked = recipe.launch.resources.model_copy(update=own.model_dump(exclude_none=True))
    if ranks and asked.nodes and ranks % asked.nodes:
        where = recipe.key(*(("stages", index) if own.nodes else ("launch",)), "resources", "nodes")
        problem = f"is {asked.nodes}, over which {ranks} ranks do not divide"
        raise UserError(where, problem, f"give a divisor of {ranks}")
    if asked.min_nodes and not recipe.launch.elastic:
        where = recipe.key(*(("stages", index) if own.min_nodes else ("launch",)), "resources", "min_nodes")
        raise UserError(where, "is given, but launch.elastic is false", "set launch.elastic to true, or remove it")
    return asked


def plan_stage(run: RunBasis, decided: DecidedStage, points: Points, before: StagePlan | None) -> StagePlan:
    """Returns the plan of a stage from its decisions and learning rate.

    Args:
        before: the plan of the previous stage.
    """
    batch, steps, model = decided.batch, decided.steps, decided.model
    assert batch is not None  # without a batch there are complaints, and no plan
    assert steps is not None
    name, data = stage_name(decided.index, model.layers), run.recipe.data
    config = stage_config(run, decided, batch, points, name)
    sequences = steps * batch.total
    first_sample = before.last_sample if before else 0
    return StagePlan(
        index=decided.index,
        name=name,
        layers=model.layers,
        steps=steps,
        global_batch=batch.total,
        micro_batch=batch.micro,
        accumulation=batch.accumulation,
        ranks=batch.ranks,
        first_step=before.first_step + before.steps if before else 0,
        first_sample=first_sample,
        last_sample=first_sample + sequences,
        tokens=sequences * data.sequence_length,
        epochs=sequences / run.samples_per_epoch if run.samples_per_epoch else None,
        learning_rate=points,
        precision=ds_config.precision(config),
        zero_stage=ds_config.zero_stage(config),
        ds_config=config,
        ds_config_digest=xxhash.xxh3_128_hexdigest(json.dumps(config, sort_keys=True).encode()),
        kernels=decided.kernels,
        until=run.recipe.stages[decided.index].until,
        growth=decided.growth,
        parameters=count_parameters(model),
        flops=stage_flops(model, sequences, data.sequence_length, data.mask_probability),
        memory_per_rank=memory_per_rank(
            model,
            batch.micro,
            data.sequence_length,
            batch.ranks,
            config,
            fused=run.devices.cuda,
            recomputed=decided.kernels.activation_checkpointing,
            mask_probability=data.mask_probability,
        ),
        resources=decided.resources,
    )


def stage_config(run: RunBasis, decided: DecidedStage, batch: BatchSplit, points: Points, name: str) -> ds_config.Json:
    """Returns the complete DeepSpeed configuration."""
    return ds_config.resolve(
        decided.user,
        micro_batch=batch.micro,
        accumulation=batch.accumulation,
        ranks=batch.ranks,
        precision=decided.precision,
        peak_learning_rate=max(value for _, value in points),
        hidden=decided.model.hidden,
        optimizer=decided.optimizer,
        cuda=run.devices.cuda,
        stage=name,
    )
