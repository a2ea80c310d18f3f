"""Makes a plan of a recipe: decides stage by stage, then the learning rates over all of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stacking.config.recipe import Recipe, WarmupStableDecay
from stacking.deepspeed_config.ds_config import UserConfig, compiles_adam, offloads
from stacking.deepspeed_config.findings import FinalConfig, Findings
from stacking.deepspeed_config.settle import OPTIMIZER_KEYS, given, settle_rates
from stacking.errors import UserError
from stacking.hardware.machine import Machine
from stacking.model.config import ModelConfig
from stacking.planning.batch import BatchSplit, automatic_ranks
from stacking.planning.cost import stage_flops
from stacking.planning.devices import Devices, find_devices
from stacking.planning.initial_model import Start, model_config, read_start
from stacking.planning.initial_vocabulary import compare_words
from stacking.planning.plan import Cost, Plan, PlannedData, PlannedLaunch, StagePlan, stage_name
from stacking.planning.plateau import check_until
from stacking.planning.schedule import Points, resolve_schedule
from stacking.planning.stage import DecidedStage, RunBasis, decide_stage, plan_stage, stage_config
from stacking.terminal.units import counted

_DEFAULT_VOCABULARY = 30_522
"""BERT's vocabulary, if there is no data yet."""


def make_plan(
    recipe: Recipe, manifest: Mapping[str, Any] | None, samples_per_epoch: int | None, machine: Machine
) -> Plan:
    """Resolves a recipe.

    Args:
        manifest: manifest of the prepared data; None to plan without data.
        samples_per_epoch: rows of the sample index; None if unknown.

    Raises:
        UserError: the recipe is invalid; names the key. Several mistakes in the stages are listed in one error.
    """
    devices, start = find_devices(recipe, machine), read_start(recipe)
    model = _initial_model(recipe, start, manifest)
    differences = compare_words(recipe, start)
    depth = start.model.layers if start else None
    run = RunBasis(recipe, model, depth, devices, automatic_ranks(recipe, devices.count), samples_per_epoch)
    findings = Findings()
    decided: list[DecidedStage] = []
    for index in range(len(recipe.stages)):
        decided.append(decide_stage(run, index, decided[-1] if decided else None, findings))
    rates, notes = _decide_rates(recipe, decided, findings)
    _check_decay(recipe, decided, rates, findings)
    command = _adopt_command(recipe, [stage.user for stage in decided], findings)
    findings.raise_if_any(command, lambda: [_final(run, stage) for stage in decided])
    stages: list[StagePlan] = []
    for stage, points in zip(decided, rates, strict=True):
        stages.append(plan_stage(run, stage, points, stages[-1] if stages else None))
    _check_epochs(recipe, stages, samples_per_epoch)
    check_until(recipe, stages)
    return Plan(
        name=recipe.name,
        seed=recipe.seed,
        recipe=recipe.file.name,
        data=_data(recipe, model, manifest, samples_per_epoch),
        model=model,
        start=str(start.path) if start else None,
        start_format=start.format if start else None,
        optimizer=decided[0].optimizer,
        schedule=_schedule(recipe, stages),
        stages=tuple(stages),
        checkpoint=recipe.checkpoint,
        evaluation=recipe.evaluation,
        attention=recipe.attention,
        log_every=recipe.log_every,
        launch=_launch(recipe, devices),
        cost=_cost(recipe, model, stages),
        warnings=(*differences, *_config_notes(decided, notes), *_warnings(recipe, stages, devices, machine)),
    )


def _initial_model(recipe: Recipe, start: Start | None, manifest: Mapping[str, Any] | None) -> ModelConfig:
    """Returns the model at the depth of the first stage.

    Raises:
        UserError: it contradicts the model to start from, the sequences are longer than its positions, or the data
            have more tokens than it has embeddings.
    """
    vocabulary = manifest["vocabulary"] if manifest else _DEFAULT_VOCABULARY
    padding_id = manifest.get("special", {}).get("pad") if manifest else None
    model = model_config(recipe, start, vocabulary, padding_id)
    length = recipe.data.sequence_length
    if length > model.max_positions:
        where = recipe.key("data", "sequence_length")
        problem = f"is {length}, but the model has {model.max_positions} positions"
        raise UserError(where, problem, f"give at most {model.max_positions}, or raise model.max_positions")
    if manifest and vocabulary > model.vocabulary:
        key = ("start",) if recipe.start and recipe.model.vocabulary is None else ("model", "vocabulary")
        problem = f"the model has {model.vocabulary:,} token embeddings, but the data {vocabulary:,} tokens"
        raise UserError(recipe.key(*key), problem, "prepare the data with the model's own tokenizer")
    return model


def _schedule(recipe: Recipe, stages: Sequence[StagePlan]) -> WarmupStableDecay | None:
    """Returns the schedule from which the plan is cut again when a stage has ended early."""
    automatic = any(stage.until for stage in stages)
    return recipe.schedule if automatic and isinstance(recipe.schedule, WarmupStableDecay) else None


def _decide_rates(
    recipe: Recipe, decided: Sequence[DecidedStage], findings: Findings
) -> tuple[list[Points], tuple[str, ...]]:
    """Decides the learning rates of all stages; notes say which of them the DeepSpeed configurations set."""
    settled, notes = settle_rates(recipe, [stage.user for stage in decided], findings)
    steps = [stage.steps for stage in decided if stage.steps is not None]
    if len(steps) < len(decided):
        return [], notes
    grown = [stage.growth is not None for stage in decided]
    return findings.attempt(resolve_schedule, settled, steps, grown) or [], notes


def _final(run: RunBasis, decided: DecidedStage) -> FinalConfig:
    """Returns what a stage would give to DeepSpeed, with any number where a complaint left it open."""
    recipe, name = run.recipe, stage_name(decided.index, decided.model.layers)
    ranks = recipe.stages[decided.index].ranks or recipe.launch.ranks or run.ranks
    batch = decided.batch or BatchSplit(1, 1, ranks)
    return FinalConfig(decided.user.where, name, stage_config(run, decided, batch, ((0, 1e-4),), name), batch.ranks)


def _check_decay(recipe: Recipe, decided: Sequence[DecidedStage], rates: Sequence[Points], findings: Findings) -> None:
    """Complain about a weight decay that erases the weights in one update."""
    for stage, points in zip(decided, rates, strict=False):
        decay, peak, key = stage.optimizer.weight_decay, max(rate for _, rate in points), OPTIMIZER_KEYS["weight_decay"]
        is_recipes = "weight_decay" in recipe.optimizer.model_fields_set
        if decay * peak < 1 or (not is_recipes and given(stage.user, key) is None):
            continue  # if the decay is only a default, the rate may be meant
        where = recipe.key("optimizer", "weight_decay") if is_recipes else stage.user.key(key)
        problem = f"is {decay:g}, which at a learning rate of {peak:g} erases the weights in every update"
        findings.add(UserError(where, problem, f"give less than {1 / peak:g}; 0.01 is usual"))


def _adopt_command(recipe: Recipe, users: Sequence[UserConfig], findings: Findings) -> str:
    """Returns the command that makes the first configuration fit the recipe; empty if that is not the mistake."""
    files = {user.where: user.path for user in users if user.path}
    if not any(error.where.partition(": ")[0] in files for error in findings.errors):
        return ""
    path = next(iter(files.values()))
    return f"stacking adopt {shlex.quote(str(path))} --recipe {shlex.quote(str(recipe.file))} --out DIR"


def _check_epochs(recipe: Recipe, stages: Sequence[StagePlan], samples_per_epoch: int | None) -> None:
    limit = recipe.data.max_epochs
    if limit is None or samples_per_epoch is None:
        return
    available = int(limit * samples_per_epoch)
    for stage in stages:
        if stage.last_sample > available:
            left = max(0, available - stage.first_sample) // stage.global_batch
            epoch = stage.last_sample / samples_per_epoch
            problem = f"{counted(stage.steps, 'step')} end in epoch {epoch:.2f} of {limit:g} allowed"
            fewer = f"give at most {counted(left, 'step')}, or " if left else ""
            key = "steps" if recipe.stages[stage.index].steps else "tokens"
            raise UserError(recipe.key("stages", stage.index, key), problem, f"{fewer}raise data.max_epochs")


def _data(
    recipe: Recipe, model: ModelConfig, manifest: Mapping[str, Any] | None, samples_per_epoch: int | None
) -> PlannedData:
    data = recipe.data
    return PlannedData(
        path=str(Path(data.path).absolute()) if data.path else None,
        digest=manifest["digest"] if manifest else None,
        samples=data.samples,
        sequence_length=data.sequence_length,
        mask_probability=data.mask_probability,
        samples_per_epoch=samples_per_epoch,
        vocabulary=manifest["vocabulary"] if manifest else model.vocabulary,
    )


def _launch(recipe: Recipe, devices: Devices) -> PlannedLaunch:
    launch = recipe.launch
    return PlannedLaunch(
        launcher=launch.launcher,
        accelerator="cuda" if devices.cuda else "cpu",
        device=devices.device.name,
        compiled=devices.device.compiled,
        elastic=launch.elastic,
        retries=launch.retries,
        retry_seconds=launch.retry_seconds,
        resources=launch.resources,
    )


def _cost(recipe: Recipe, model: ModelConfig, stages: Sequence[StagePlan]) -> Cost:
    deepest = model.with_layers(max(stage.layers for stage in stages))
    length, masked = recipe.data.sequence_length, recipe.data.mask_probability
    deep = [stage_flops(deepest, s.steps * s.global_batch, length, masked) for s in stages]
    return Cost(flops=sum(stage.all_flops for stage in stages), baseline_flops=sum(deep))


def _config_notes(decided: Sequence[DecidedStage], rates: Sequence[str]) -> list[str]:
    """Notes the origin of values and the keys that were changed, each once."""
    optimizers = [note for stage in decided for note in stage.notes]
    keys = [note for stage in decided for note in stage.user.notes]
    return list(dict.fromkeys([*optimizers, *rates, *keys]))


_COMPILED = (
    "torch_adam is false: DeepSpeed compiles its own Adam at the first start, which needs a C++ compiler and, on GPUs, "
    "the CUDA toolkit of torch's version; check with `stacking doctor`"
)


def _warnings(recipe: Recipe, stages: Sequence[StagePlan], devices: Devices, machine: Machine) -> list[str]:
    found, device = [], devices.device
    ranks = max(stage.ranks for stage in stages)
    if devices.cuda and machine.accelerators < ranks:
        found.append(f"planned for {ranks} x {device.name}; this machine has {counted(machine.accelerators, 'GPU')}")
    if recipe.data.path is None:
        found.append("planned without data: epochs are unknown")
    for precision in dict.fromkeys(stage.precision for stage in stages):
        if precision in device.emulated:
            found.append(f"{precision} is slow: {device.emulated[precision]}; set precision to auto")
    for stage in stages:
        if devices.memory and stage.memory_per_rank > devices.memory:
            need, have = stage.memory_per_rank / 2**30, devices.memory / 2**30
            found.append(f"{stage.name} needs about {need:.1f} GiB per rank, but a {device.name} has {have:.0f}")
        if compiles_adam(stage.ds_config):
            found.append(f"{stage.name}: {_COMPILED}")
        if not devices.cuda and offloads(stage.ds_config):
            found.append(f"{stage.name} offloads to the CPU on a CPU, which saves nothing")
    peak = max(value for stage in stages for _, value in stage.learning_rate)
    last = stages[-1].learning_rate[-1][1]
    if last > 0.1 * peak:
        found.append(f"the run ends at a learning rate of {last:.3g}, {last / peak:.0%} of its peak: not annealed")
    return found
