"""The plan of a run: a recipe with every default resolved, made once; workers get it and a stage number."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stacking.config.recipe import Checkpoint, Evaluation, Growth, Optimizer, Recipe, Resources
from stacking.deepspeed_config import ds_config
from stacking.deepspeed_config.ds_config import StageFacts, UserConfig
from stacking.deepspeed_config.findings import Findings
from stacking.deepspeed_config.settle import Settled, settle
from stacking.errors import DamagedFile, UserError
from stacking.hardware.machine import Machine
from stacking.hardware.presets import Compiled, Precision
from stacking.model.config import ModelConfig
from stacking.model.size import count_parameters
from stacking.planning.batch import Batch
from stacking.planning.cost import memory_per_rank, stage_flops
from stacking.planning.initial_model import Start, model_config, read_start
from stacking.planning.initial_vocabulary import compare_words
from stacking.planning.resolve import (
    Target,
    check_model,
    choose_batches,
    choose_growths,
    choose_precision,
    count_steps,
    find_target,
    user_config,
)
from stacking.planning.schedule import Points, resolve_schedule
from stacking.storage.files import read_sealed, write_sealed

_DEFAULT_VOCABULARY = 30_522
"""BERT's vocabulary, if there is no data yet."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedData(_Part):
    path: str | None
    """Absolute; null: planned without data."""
    digest: str | None
    samples: str
    sequence_length: int
    mask_probability: float
    samples_per_epoch: int | None
    vocabulary: int


class PlannedLaunch(_Part):
    launcher: str
    accelerator: Literal["cpu", "cuda"]
    device: str
    """The planned device class."""
    compiled: Compiled = "possible"
    """How torch.compile works on it."""
    elastic: bool = False
    retries: int | None = None
    retry_seconds: float = 10.0
    resources: Resources = Resources()
    """The scheduler resources of a job for the whole run."""


class Cost(BaseModel):
    """The cost of the run relative to training the deepest model for all steps; times are `stacking.estimate`'s."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # older plans also held hours

    flops: float
    baseline_flops: float


class PlannedKernels(_Part):
    """How the layers are computed, except for what the device decides (`stacking.model.kernels`)."""

    compile: bool = False
    activation_checkpointing: bool = False


class Stage(_Part):
    """One resolved stage."""

    index: int
    name: str
    layers: int
    steps: int
    global_batch: int
    """Sequences per update: micro_batch x accumulation x ranks."""
    micro_batch: int
    accumulation: int
    ranks: int
    first_step: int
    """Number of updates before this stage."""
    first_sample: int
    last_sample: int
    """Exclusive."""
    tokens: int
    epochs: float | None
    learning_rate: Points
    """See `stacking.planning.schedule`."""
    precision: Precision
    zero_stage: int
    ds_config: dict[str, Any]
    """The complete DeepSpeed configuration."""
    ds_config_digest: str
    kernels: PlannedKernels = PlannedKernels()
    growth: Growth | None
    """How the stage's initial weights derive from the previous model; null: random, or unchanged."""
    parameters: int
    flops: float
    memory_per_rank: int
    """Bytes, estimated."""
    resources: Resources = Resources()
    """The scheduler resources of the stage's job."""


class Plan(_Part):
    """The whole resolved run."""

    format: Literal[1] = 1
    name: str
    seed: int
    recipe: str
    data: PlannedData
    model: ModelConfig
    """The model at the depth of the first stage."""
    start: str | None
    """Absolute path of the folder to start from."""
    start_format: Literal["state", "huggingface"] | None
    optimizer: Optimizer
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    checkpoint: Checkpoint
    evaluation: Evaluation
    log_every: int
    launch: PlannedLaunch
    cost: Cost
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """Return the plan as unsealed JSON; the same recipe, data and machine give the same bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    @property
    def digest(self) -> str:
        """Return the XXH3-128 of ``to_json``, in hex."""
        return xxhash.xxh3_128_hexdigest(self.to_json().encode())


def write_plan(path: Path, plan: Plan) -> None:
    """Write ``plan.json``, sealed and atomically; the same plan gives the same bytes."""
    write_sealed(path, plan.model_dump(mode="json"))


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: there is none.
        DamagedFile: it was changed since it was written, or is not a plan of this program.
    """
    try:
        return Plan.model_validate(read_sealed(path))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "no object"
        raise DamagedFile(path, f"is not a plan that this version can read ({place})", "plan again") from None


def check_machine(plan: Plan, machine: Machine | None) -> None:
    """Reject a plan without data, or for devices this computer lacks; ``machine`` None: the computer is unknown.

    Raises:
        UserError: there are too few GPUs, or no data.
    """
    ranks = max(stage.ranks for stage in plan.stages)
    if machine and plan.launch.accelerator == "cuda" and machine.accelerators < ranks:
        problem = f"needs {ranks} GPUs, but this machine has {machine.accelerators}"
        raise UserError(plan.recipe, problem, "set launch.ranks or launch.accelerator=cpu, or run it elsewhere")
    if plan.data.path is None:
        raise UserError(f"{plan.recipe}: data.path", "is missing", "give the folder that 'stacking prepare' wrote")


def make_plan(
    recipe: Recipe, manifest: Mapping[str, Any] | None, samples_per_epoch: int | None, machine: Machine
) -> Plan:
    """Resolve a recipe.

    Args:
        manifest: manifest of the prepared data; None to plan without data.
        samples_per_epoch: rows of the sample index; None if unknown.

    Raises:
        UserError: the recipe is invalid; names the key.
    """
    target = find_target(recipe, machine)
    start = read_start(recipe)
    vocabulary, padding_id = (
        (manifest["vocabulary"], _padding_id(manifest)) if manifest else (_DEFAULT_VOCABULARY, None)
    )
    model = model_config(recipe, start, vocabulary, padding_id)
    check_model(recipe, model, manifest)
    users = [user_config(recipe, i) for i in range(len(recipe.stages))]
    differences = compare_words(recipe, start)
    stages: list[Stage] = []
    planned, settled = _decide(recipe, users, Findings(), start, model, target)
    for decided in planned:
        stages.append(_stage(recipe, stages, model, decided, samples_per_epoch, target.cuda))
    _check_epochs(recipe, stages, samples_per_epoch)
    accelerator: Literal["cpu", "cuda"] = "cuda" if target.cuda else "cpu"
    return Plan(
        name=recipe.name,
        seed=recipe.seed,
        recipe=recipe.file.name,
        data=_data(recipe, model, manifest, samples_per_epoch),
        model=model,
        start=str(start.path) if start else None,
        start_format=start.format if start else None,
        optimizer=settled.optimizers[0],
        stages=tuple(stages),
        checkpoint=recipe.checkpoint,
        evaluation=recipe.evaluation,
        log_every=recipe.log_every,
        launch=PlannedLaunch(
            launcher=recipe.launch.launcher,
            accelerator=accelerator,
            device=target.device.name,
            compiled=target.device.compiled,
            elastic=recipe.launch.elastic,
            retries=recipe.launch.retries,
            retry_seconds=recipe.launch.retry_seconds,
            resources=recipe.launch.resources,
        ),
        cost=_cost(recipe, model, stages),
        warnings=(*differences, *_config_notes(users, settled), *_warnings(recipe, stages, target, machine)),
    )


def _padding_id(manifest: Mapping[str, Any]) -> int | None:
    """Return the manifest's entry; manifests of tests may lack it."""
    special = manifest.get("special", {})
    return special.get("pad") if isinstance(special, Mapping) else None


class _Decided(NamedTuple):
    """The decisions about a stage."""

    batch: Batch
    steps: int
    points: Points
    growth: Growth | None
    config: dict[str, Any]
    kernels: PlannedKernels


def _decide(
    recipe: Recipe, users: list[UserConfig], findings: Findings, start: Start | None, model: ModelConfig, target: Target
) -> tuple[list[_Decided], Settled]:
    growths = choose_growths(recipe, start)
    for user in users:
        for error in user.errors:
            findings.add(error)
    settled = settle(recipe, users, findings)
    precisions: list[Precision] = []
    kernels: list[PlannedKernels] = []
    for user in users:
        precisions.append(target.device.precision)
        kernels.append(PlannedKernels())
        with findings.collecting():
            precisions[-1] = choose_precision(recipe, user, target.device)
        with findings.collecting():
            kernels[-1] = PlannedKernels(**vars(ds_config.stage_kernels(user, target.device.compiled)))
        for error in ds_config.optimizer_errors(user, target.fused_adam):
            findings.add(error)
    batches: list[Batch] = []
    with findings.collecting():
        batches = choose_batches(recipe, model, users, precisions, target)
    if not batches:
        findings.raise_if_any(adopt_command(recipe, users))
    steps = [count_steps(recipe, i, batch) for i, batch in enumerate(batches)]
    schedules: list[Points] = []
    with findings.collecting():
        schedules = resolve_schedule(settled.recipe, steps, [growth is not None for growth in growths])
    findings.raise_if_any(adopt_command(recipe, users))
    decided = []
    for i, (user, points) in enumerate(zip(users, schedules, strict=True)):
        facts = StageFacts(
            micro_batch=batches[i].micro,
            accumulation=batches[i].accumulation,
            ranks=batches[i].ranks,
            precision=precisions[i],
            peak_learning_rate=max(value for _, value in points),
            hidden=model.hidden,
            optimizer=settled.optimizers[i],
            cuda=target.cuda,
            fused_adam=target.fused_adam,
            stage=stage_name(i, recipe.stages[i].layers),
        )
        config = ds_config.resolve(user, facts)
        decided.append(_Decided(batches[i], steps[i], points, growths[i], config, kernels[i]))
    return decided, settled


def adopt_command(recipe: Recipe, users: list[UserConfig]) -> str:
    """Return the command that makes the first configuration fit the recipe; empty if none is a file."""
    path = next((user.path for user in users if user.path), None)
    return f"stacking adopt {shlex.quote(str(path))} --recipe {shlex.quote(str(recipe.file))} --out DIR" if path else ""


def stage_name(index: int, layers: int) -> str:
    """Return the name of a stage in folders and messages."""
    return f"{index}-L{layers}"


def _stage(
    recipe: Recipe,
    before: list[Stage],
    model: ModelConfig,
    decided: _Decided,
    samples_per_epoch: int | None,
    cuda: bool,
) -> Stage:
    batch, steps, points, growth, config, kernels = decided
    index, length = len(before), recipe.data.sequence_length
    deep = model.with_layers(recipe.stages[index].layers)
    sequences = steps * batch.total
    first_sample = before[-1].last_sample if before else 0
    return Stage(
        index=index,
        name=stage_name(index, deep.layers),
        layers=deep.layers,
        steps=steps,
        global_batch=batch.total,
        micro_batch=batch.micro,
        accumulation=batch.accumulation,
        ranks=batch.ranks,
        first_step=before[-1].first_step + before[-1].steps if before else 0,
        first_sample=first_sample,
        last_sample=first_sample + sequences,
        tokens=sequences * length,
        epochs=sequences / samples_per_epoch if samples_per_epoch else None,
        learning_rate=points,
        precision=ds_config.precision(config),
        zero_stage=ds_config.zero_stage(config),
        ds_config=config,
        ds_config_digest=xxhash.xxh3_128_hexdigest(json.dumps(config, sort_keys=True).encode()),
        kernels=kernels,
        growth=growth,
        parameters=count_parameters(deep),
        flops=stage_flops(deep, sequences, length, recipe.data.mask_probability),
        memory_per_rank=memory_per_rank(
            deep,
            batch.micro,
            length,
            batch.ranks,
            config,
            fused=cuda,
            recomputed=kernels.activation_checkpointing,
            mask_probability=recipe.data.mask_probability,
        ),
        resources=_resources(recipe, index, batch.ranks),
    )


def _resources(recipe: Recipe, index: int, ranks: int) -> Resources:
    """Return the resources that the job of one stage requests.

    Raises:
        UserError: the ranks do not divide over the nodes.
    """
    own = recipe.stages[index].resources
    asked = recipe.launch.resources.model_copy(update=own.model_dump(exclude_none=True))
    if asked.nodes and ranks % asked.nodes:
        where = recipe.key(*(("stages", index) if own.nodes else ("launch",)), "resources", "nodes")
        problem = f"is {asked.nodes}, over which {ranks} ranks do not divide"
        raise UserError(where, problem, f"give a divisor of {ranks}")
    if asked.min_nodes and not recipe.launch.elastic:
        where = recipe.key(*(("stages", index) if own.min_nodes else ("launch",)), "resources", "min_nodes")
        raise UserError(where, "is given, but launch.elastic is false", "set launch.elastic to true, or remove it")
    return asked


def _check_epochs(recipe: Recipe, stages: list[Stage], samples_per_epoch: int | None) -> None:
    limit = recipe.data.max_epochs
    if limit is None or samples_per_epoch is None:
        return
    available = int(limit * samples_per_epoch)
    for stage in stages:
        if stage.last_sample > available:
            left = max(0, available - stage.first_sample) // stage.global_batch
            epoch = stage.last_sample / samples_per_epoch
            problem = f"{stage.steps:,} steps end in epoch {epoch:.2f} of {limit:g} allowed"
            remedy = f"give at most {left:,} steps, or raise data.max_epochs" if left else "raise data.max_epochs"
            key = "steps" if recipe.stages[stage.index].steps else "tokens"
            raise UserError(recipe.key("stages", stage.index, key), problem, remedy)


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


def _cost(recipe: Recipe, model: ModelConfig, stages: list[Stage]) -> Cost:
    deepest = model.with_layers(max(stage.layers for stage in stages))
    length, masked = recipe.data.sequence_length, recipe.data.mask_probability
    deep = [stage_flops(deepest, s.steps * s.global_batch, length, masked) for s in stages]
    return Cost(flops=sum(stage.flops for stage in stages), baseline_flops=sum(deep))


def _config_notes(users: list[UserConfig], settled: Settled) -> list[str]:
    """Note the origin of values and the keys that were changed, each once."""
    return list(dict.fromkeys([*settled.notes, *(note for user in users for note in user.notes)]))


def _warnings(recipe: Recipe, stages: list[Stage], target: Target, machine: Machine) -> list[str]:
    found = []
    ranks = max(stage.ranks for stage in stages)
    if target.cuda and machine.accelerators < ranks:
        found.append(f"planned for {ranks} x {target.device.name}; this machine has {machine.accelerators} GPUs")
    if recipe.data.path is None:
        found.append("planned without data: epochs are unknown")
    for precision in dict.fromkeys(stage.precision for stage in stages):
        if precision in target.device.emulated:
            found.append(f"{precision} is slow: {target.device.emulated[precision]}; set precision to auto")
    for stage in stages:
        if target.memory and stage.memory_per_rank > target.memory:
            need, have = stage.memory_per_rank / 2**30, target.memory / 2**30
            found.append(f"{stage.name} needs about {need:.1f} GiB per rank, but a {target.device.name} has {have:.0f}")
        if not target.cuda and ds_config.offloads(stage.ds_config):
            found.append(f"{stage.name} offloads to the CPU on a CPU, which saves nothing")
    peak = max(value for stage in stages for _, value in stage.learning_rate)
    last = stages[-1].learning_rate[-1][1]
    if last > 0.1 * peak:
        found.append(f"the run ends at a learning rate of {last:.3g}, {last / peak:.0%} of its peak: not annealed")
    return found
