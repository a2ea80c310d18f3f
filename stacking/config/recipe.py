"""Defines and validates recipes, the YAML files in which users describe a run.

Every key has a default, except the depth and length of each stage, the first batch and the first learning rate.
Unknown keys are rejected, and the message suggests the nearest name. `plan` resolves the recipe; this module does not.
"""

from __future__ import annotations

import re
from collections import ChainMap
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from stacking.config.reading import (
    Section,
    complaint,
    dotted,
    nearest,
    one_of,
    parse_yaml,
    read_yaml_mapping,
    user_error,
)
from stacking.config.resources import Count, Positive, Resources, whole
from stacking.data.sampler import SAMPLERS
from stacking.errors import UserError
from stacking.growth.operators import OPERATORS, OPTIMIZER_STATES, TRIAL
from stacking.hardware.presets import DEVICE_CLASSES, SHAPES
from stacking.launch.registry import LAUNCHERS
from stacking.model.config import MOST_LAYERS, VARIANTS, WIDEST

RECIPES = Path(__file__).parent / "recipes"


def _auto(value: Any) -> Any:
    return None if value == "auto" else whole(value)


def _path_or_mapping(value: Any) -> Any:
    if value is None or isinstance(value, (str, dict)):
        return value
    raise complaint("is neither a path nor a mapping", "give the path of a JSON file, or its content")


Width = Annotated[int, BeforeValidator(whole), Field(gt=0, le=WIDEST)]
CountOrZero = Annotated[int, BeforeValidator(whole), Field(ge=0)]
AutoCount = Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(_auto)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
DsConfig = Annotated[Any, BeforeValidator(_path_or_mapping)]
Operator = Annotated[str, one_of(OPERATORS)]
OperatorOrTrial = Annotated[str, one_of(ChainMap({TRIAL: None}, OPERATORS))]
OptimizerState = Annotated[str, one_of(OPTIMIZER_STATES)]
Samples = Annotated[str, one_of(SAMPLERS)]
LauncherName = Annotated[str, one_of(LAUNCHERS)]
Device = Annotated[str, one_of(ChainMap({"auto": None}, DEVICE_CLASSES))]


class Data(Section):
    """Defines the training data."""

    path: str | None = None
    """The folder written by `stacking prepare`. Optional for a plan, required for a run."""
    samples: Samples = "segment-pair"
    """``sentence-pair`` (Gong et al.), ``segment-pair`` (Google's BERT) or ``packed`` (no next-sentence task)."""
    sequence_length: Annotated[int, BeforeValidator(whole), Field(ge=8, le=WIDEST)] = 128
    """Tokens per sample, including special tokens and padding."""
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that are masked and predicted."""
    max_epochs: Positive | None = None
    """Reject schedules with more passes over the data than this; null: no limit."""


class Model(Section):
    """Defines the model except its depth, which each stage sets."""

    variant: Annotated[str, one_of(VARIANTS)] = "post_ln"
    """``post_ln`` is Google's and Hugging Face's BERT; ``pre_ln`` that of Gong et al., ``macaron`` that of Lu et al.,
    ``modern`` that of Warner et al."""
    shape: Annotated[str, one_of(SHAPES)] = "bert-base"
    """The source of ``hidden``, ``heads`` and ``intermediate`` where they are not given."""
    hidden: Width | None = None
    """Width of the residual stream; null: the shape's."""
    heads: Width | None = None
    """Attention heads; null: the shape's, or one per 64 of a given ``hidden``."""
    intermediate: Width | None = None
    """Width of the feed-forward layer; null: 4 x hidden. ``modern`` has three matrices of this width, not two."""
    vocabulary: Annotated[int, BeforeValidator(whole), Field(gt=0, lt=2**31)] | None = None
    """Rows of the token embedding; null: the data's vocabulary size, or 30,522 without data."""
    max_positions: Width = 512
    """Maximum sequence length of the model, in tokens."""
    positions: Literal["learned", "sinusoidal", "rotary"] | None = None
    """Null: the variant's: ``rotary`` for ``modern``, ``learned`` for the others."""
    norm_affine: bool = True
    """Whether the encoder's LayerNorms have a scale and a bias; those of ``modern`` have a scale only."""
    norm_eps: Positive = 1e-12
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    dropout: Share = 0.1
    attention_dropout: Share = 0.1
    initializer_range: Positive = 0.02
    """Standard deviation of the initial weights (``post_ln``, ``modern``)."""


class Optimizer(Section):
    """Defines Adam or LAMB, with decoupled weight decay."""

    type: Literal["adam", "lamb"] = "adam"
    """``lamb``, for large batches, scales each tensor's update to its norm (You et al., 2020); it needs ZeRO 0."""
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.999)
    eps: Positive = 1e-6
    weight_decay: NotNegative = 0.01
    weight_decay_on: Literal["matrices", "all"] = "matrices"
    """``matrices`` excludes biases and LayerNorms; ``all`` decays every parameter, as in Gong et al."""
    clip: NotNegative = 1.0
    """Maximum norm of the gradient; 0: no clipping."""


class StagesSchedule(Section):
    """Gives each stage its own warm-up and slope; a stage starts where the previous one ended."""

    kind: Literal["stages"] = "stages"
    rewarmup_steps: CountOrZero = 0
    """Steps of a linear rise from 0 after each growth; 0: none."""


class WarmupStableDecay(Section):
    """Applies one warm-up, one plateau and one decay to the whole run, independent of its stages."""

    kind: Literal["warmup-stable-decay"]
    peak: Positive
    """The learning rate of the plateau."""
    warmup_steps: CountOrZero = 0
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the run's steps during which the rate falls linearly to ``final``."""
    final: NotNegative = 0.0
    rewarmup_steps: CountOrZero = 0
    """Steps of a linear rise from 0 after each growth; 0: none."""


class _Warmup(Section):
    """Holds the common keys of DeepSpeed's schedules with a warm-up."""

    warmup_num_steps: Count = 1000
    """Updates until the warm-up ends; DeepSpeed uses at least 2."""
    warmup_type: Literal["log", "linear"] = "log"
    """Whether the rate rises with the logarithm of the step or linearly."""
    rewarmup_steps: CountOrZero = 0
    """Steps of a linear rise from 0 after each growth; 0: none."""


class WarmupLR(_Warmup):
    """DeepSpeed's schedule of this name over the whole run: a warm-up, then a constant rate."""

    kind: Literal["WarmupLR"]
    warmup_min_lr: NotNegative = 0.0
    warmup_max_lr: Positive
    """The learning rate after the warm-up."""


class WarmupDecayLR(_Warmup):
    """DeepSpeed's schedule of this name over the whole run: a warm-up, then a linear decay to 0."""

    kind: Literal["WarmupDecayLR"]
    warmup_min_lr: NotNegative = 0.0
    warmup_max_lr: Positive = 0.001
    total_num_steps: Count | None = None
    """The update at which the rate reaches 0; null: the end of the run."""


class WarmupCosineLR(_Warmup):
    """DeepSpeed's schedule of this name over the whole run: a warm-up, then half a cosine."""

    kind: Literal["WarmupCosineLR"]
    peak: Positive
    """The rate after the warm-up: in DeepSpeed's JSON, the optimizer's ``lr``."""
    warmup_min_ratio: NotNegative = 0.0
    cos_min_ratio: NotNegative = 0.0001
    """The final rate, as a share of the peak."""
    total_num_steps: Count | None = None
    """The update at which the cosine ends; null: the end of the run."""


class OneCycle(Section):
    """DeepSpeed's schedule of this name over the whole run, with constant momentum: up, down, then a slow decay."""

    kind: Literal["OneCycle"]
    cycle_min_lr: NotNegative
    cycle_max_lr: Positive
    cycle_first_step_size: Count = 2000
    """Updates of the rising phase."""
    cycle_second_step_size: CountOrZero | None = None
    """Updates of the falling phase; null: the same as the rising phase."""
    cycle_first_stair_count: CountOrZero = 0
    cycle_second_stair_count: CountOrZero | None = None
    """Stair steps of the falling phase; null: the same as the rising phase."""
    decay_step_size: CountOrZero = 0
    decay_lr_rate: NotNegative = 0.0
    rewarmup_steps: CountOrZero = 0
    """Steps of a linear rise from 0 after each growth; 0: none."""


DeepSpeedSchedule = WarmupLR | WarmupDecayLR | WarmupCosineLR | OneCycle


def _default_kind(value: Any) -> Any:
    return {"kind": "stages", **value} if isinstance(value, dict) else value


Schedule = Annotated[
    Annotated[StagesSchedule | WarmupStableDecay | DeepSpeedSchedule, Field(discriminator="kind")],
    BeforeValidator(_default_kind),
]


class NewLayers(Section):
    """Defines how the layers that a growth has added are trained; by default like the rest of the model."""

    alone_steps: CountOrZero = 0
    """Updates at the beginning of the stage that change only the added layers."""
    rewarmup_steps: CountOrZero = 0
    """Updates over which the added layers' learning rate rises from 0 to ``peak_factor`` times the schedule's."""
    peak_factor: Positive = 1.0
    """From its peak, the factor returns to 1 linearly until the end of the stage."""


class OperatorTrial(Section):
    """Defines how the best operator is found: every candidate trains for a while from the same state."""

    operators: Annotated[tuple[Operator, ...], Field(strict=False, min_length=2)] | None = None
    """The candidates; null: all that reach the depth."""
    steps: Count
    """Updates of each candidate. The one with the lowest held-out loss then begins the stage."""


class Growth(Section):
    """Defines how a shallow model grows into the next, deeper one."""

    operator: OperatorOrTrial = "stack"
    trial: OperatorTrial | None = None
    """With ``operator: trial``."""
    optimizer_state: OptimizerState = "reset"
    """The treatment of Adam's moments and step count."""
    new_layers: NewLayers = NewLayers()


class StageGrowth(Section):
    """Overrides ``growth`` for one stage."""

    operator: OperatorOrTrial | None = None
    trial: OperatorTrial | None = None
    optimizer_state: OptimizerState | None = None
    layers_from: Annotated[tuple[int | str, ...], Field(strict=False, min_length=1, max_length=MOST_LAYERS)] | None = (
        None
    )
    """The source of each layer, instead of an operator: ``[0, 1, 2, 1, 2, 3]``; ``3 silent`` adds nothing at first."""
    new_layers: NewLayers | None = None

    @model_validator(mode="after")
    def _one_mapping(self) -> StageGrowth:
        if self.operator and self.layers_from:
            raise complaint("has both operator and layers_from", "give one of them")
        return self


class LearningRate(Section):
    """Defines the rate of a stage: ``start`` rises to ``peak`` over ``warmup_steps``, then falls to ``end``."""

    start: NotNegative | None = None
    """Null: the previous stage's end; in the first stage 0 with a warm-up, otherwise the peak."""
    peak: Positive | None = None
    """Null: the previous stage's end. Required in the first stage."""
    end: NotNegative | None = None
    """Null: the peak."""
    warmup_steps: CountOrZero = 0

    @model_validator(mode="after")
    def _rises_in_some_steps(self) -> LearningRate:
        if not self.warmup_steps and None not in (self.start, self.peak) and self.start != self.peak:
            raise complaint("has different start and peak, but no warm-up between them", "give warmup_steps")
        return self


class Until(Section):
    """Ends a stage when its held-out loss has levelled off, and leaves the remaining updates to the last stage."""

    plateau: Positive
    """The stage ends once its loss falls by less than this, in nats, while the number of its updates doubles."""
    at_most: Count
    """Updates after which it ends anyway."""
    evaluations: Annotated[int, Field(ge=3, le=1000)] = 4
    """The latest evaluations of the stage, over which the fall is fitted."""


class Stage(Section):
    """Defines one stage, which trains at one depth."""

    layers: Annotated[int, BeforeValidator(whole), Field(gt=0, le=MOST_LAYERS)]
    """The number of encoder layers."""
    steps: Count | None = None
    """Optimizer updates; alternatively ``tokens``."""
    tokens: Count | None = None
    """Tokens to train on, rounded up to whole updates."""
    until: Until | None = None
    """An automatic end, an alternative to a fixed length; only with ``schedule.kind: warmup-stable-decay``."""
    batch_sequences: Count | None = None
    """Sequences per update over all ranks; null: that of ``ds_config``, otherwise that of the previous stage."""
    batch_tokens: Count | None = None
    """Tokens per update over all ranks, an alternative to ``batch_sequences``."""
    micro_batch: AutoCount = None
    """Sequences per forward pass of one rank; ``auto``: as many as fit."""
    ranks: AutoCount = None
    """Processes, one per GPU; ``auto``: ``launch.ranks``."""
    learning_rate: LearningRate | None = None
    """Only with ``schedule.kind: stages``."""
    ds_config: DsConfig = None
    """Path of a DeepSpeed JSON, or its content; null: the recipe's ``ds_config``."""
    growth: StageGrowth | None = None
    resources: Resources = Resources()
    """Overrides ``launch.resources`` for this stage's job."""

    @model_validator(mode="after")
    def _one_measure_each(self) -> Stage:
        lengths = [name for name in ("steps", "tokens", "until") if getattr(self, name) is not None]
        if len(lengths) != 1:
            problem = f"has both {' and '.join(lengths)}" if lengths else "has no length"
            raise complaint(problem, "give steps, tokens or until" if not lengths else "give one of them")
        if self.batch_sequences and self.batch_tokens:
            raise complaint("has both batch_sequences and batch_tokens", "give one of them")
        return self


class Launch(Section):
    """Defines where and how the ranks run."""

    launcher: LauncherName = "local"
    """``local``: on this machine; ``slurm``: inside a SLURM job; ``mpi``: OpenMPI's mpirun."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: the GPUs if there are any, otherwise the CPU."""
    ranks: AutoCount = None
    """``auto``: as many GPUs as divide the batches evenly; 2 on a CPU."""
    device: Device = "auto"
    """The class of device to plan for; ``auto``: this machine's."""
    elastic: bool = False
    """Whether a stage may run on fewer ranks than planned, with the same samples in the same updates."""
    retries: CountOrZero | None = None
    """Maximum number of retries of a crashed phase without progress; null: 3 in a scheduler's job, otherwise 0."""
    retry_seconds: Positive = 10.0
    """The pause before the first retry, in seconds; each following pause is twice as long."""
    resources: Resources = Resources()
    """The resources that `stacking submit` requests for every training job."""


class CheckpointRule(Section):
    """Defines when checkpoints are written."""

    every_steps: Count = 1000
    keep: Count = 2
    """Number of checkpoints to keep per stage."""


class Evaluation(Section):
    """Defines the evaluation on the held-out split."""

    every_steps: Count = 1000
    samples: Count = 2048
    """Maximum number of held-out samples to score."""


class AttentionSnapshots(Section):
    """Defines the measurements of attention at the end of every stage and right after every growth."""

    samples: Count = 256
    """Maximum number of held-out samples to read."""


class Recipe(Section):
    """Defines a whole run."""

    name: str = ""
    """Null: the file's name."""
    seed: Annotated[int, BeforeValidator(whole), Field(ge=0, lt=2**63)] = 0
    data: Data = Data()
    model: Model = Model()
    start: str | None = None
    """A state folder or a Hugging Face BERT folder to start from; null: random weights."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """``auto``: that of ``ds_config``, otherwise the device's best."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = StagesSchedule()
    growth: Growth = Growth()
    stages: Annotated[tuple[Stage, ...], Field(strict=False, min_length=1)]
    """A list of stages, shallowest first."""
    ds_config: DsConfig = None
    """Path of a DeepSpeed JSON, or its content, for every stage without its own."""
    launch: Launch = Launch()
    checkpoint: CheckpointRule = CheckpointRule()
    evaluation: Evaluation = Evaluation()
    attention: AttentionSnapshots | None = None
    """Null: attention is not measured."""
    log_every: Count = 10

    _file: Path = PrivateAttr(default=Path("recipe.yaml"))

    @property
    def file(self) -> Path:
        """The file from which the recipe was read; errors name it."""
        return self._file

    def key(self, *location: str | int) -> str:
        """Returns ``FILE: stages[1].layers``, for the ``where`` of an error."""
        return f"{self.file}: {dotted(location)}"

    def to_yaml(self) -> str:
        """Serialises the recipe with all defaults except those that a ds_config may set; reads back as the same."""
        content = self.model_dump(mode="json")
        content["optimizer"] = self.optimizer.model_dump(mode="json", exclude_unset=True)
        if "schedule" not in self.model_fields_set:
            del content["schedule"]
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def load_recipe(name_or_path: str | Path, overrides: list[str] | None = None, data: Path | None = None) -> Recipe:
    """Reads a recipe file, or a shipped recipe by its name.

    Args:
        overrides: ``key.path=value`` each, such as ``stages[1].steps=200``; the value is parsed as YAML.
        data: the prepared data; replaces the recipe's ``data.path``.

    Raises:
        UserError: the recipe is invalid; the message names the file, the key, the problem and the remedy.
    """
    file = find_recipe(str(name_or_path))
    return recipe_from(read_yaml_mapping(file), file, overrides, data)


def recipe_from(
    raw: dict[str, Any], file: Path, overrides: list[str] | None = None, data: Path | None = None
) -> Recipe:
    """Builds a recipe from its content, like `load_recipe`; errors name ``file``, which need not exist."""
    for override in overrides or []:
        _override(raw, override)
    if data is not None:
        _override(raw, f"data.path={yaml.safe_dump(str(data)).splitlines()[0]}")
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise user_error(error, Recipe, file) from None
    recipe = recipe if recipe.name else recipe.model_copy(update={"name": file.stem})
    recipe._file = file
    return recipe


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe given by path or by shipped name.

    Raises:
        UserError: there is no such recipe.
    """
    path = Path(name)
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}
    folder_like_a_shipped_one = path.is_dir() and name in shipped
    if path.suffix in (".yaml", ".yml") or "/" in name or (path.exists() and not folder_like_a_shipped_one):
        return path
    if name not in shipped:
        raise UserError(name, "is neither a file nor a shipped recipe", nearest(name, shipped))
    return shipped[name]


def _override(raw: dict[str, Any], override: str) -> None:
    """Sets one ``key.path=value`` in the raw recipe, creating missing sections."""
    where = f"--set {override}"
    path, equals, text = override.partition("=")
    parts: list[str | int] = [int(p) if p.isdigit() else p for p in re.split(r"[.\[\]]+", path.strip()) if p]
    if not equals or not parts:
        raise UserError(where, "is not KEY=VALUE", "write it like stages[1].steps=200")
    value = parse_yaml(text, where)
    holder: Any = raw
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(holder, list) and isinstance(part, int):
            if part >= len(holder):
                raise UserError(where, f"there is no item {part}", f"the last one is {len(holder) - 1}")
        elif not isinstance(holder, dict) or isinstance(part, int):
            raise UserError(where, f"{part!r} is not in the recipe", "name an existing key")
        if following is None:
            holder[part] = value
            return
        if isinstance(holder, dict) and holder.get(part) is None:
            holder[part] = {}
        holder = holder[part]
