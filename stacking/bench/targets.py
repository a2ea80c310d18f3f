"""Finds what `stacking bench` measures: the stages of a recipe, or a named model at several depths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stacking.bench.trial import Contender, Trial
from stacking.config.reading import nearest, read_yaml_mapping
from stacking.config.recipe import RECIPES, Recipe, find_recipe, recipe_from
from stacking.data.samples import SampleIndex
from stacking.errors import UserError
from stacking.hardware.machine import Machine, find_machine
from stacking.hardware.presets import SHAPES
from stacking.planning.plan import Plan
from stacking.run.create import plan_recipe

CPU_TOKENS, GPU_TOKENS = 2_048, 32_768
"""Default tokens per rank and batch for a named model."""
_LONGEST = 512
"""Positions of a published BERT."""
_DEPTHS = (3, 12)
"""For a model that is given only by its width."""
OPPONENTS: dict[str, Contender] = {
    "hf": "hugging-face",
    "hf-compiled": "hugging-face-compiled",
    "padded": "padded",
    "checkpointing": "checkpointing",
}
"""The values of ``--against``."""
_KEYS: Mapping[str, tuple[str, ...]] = {
    "hidden": ("model.hidden",),
    "vocabulary": ("model.vocabulary",),
    "dropout": ("model.dropout", "model.attention_dropout"),
    "sequence_length": ("data.sequence_length",),
    "precision": ("precision",),
    "ranks": ("launch.ranks",),
    "batch": ("stages[*].batch_sequences",),
    "micro_batch": ("stages[*].micro_batch",),
}
"""The keys of a recipe that options stand for; ``*``: of every stage."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The command line's options; None: the recipe's value, or the default of a named model."""

    target: str | None = None
    """A recipe's file or name, or a named model; None: a model of this ``hidden``."""
    hidden: int | None = None
    layers: Sequence[int] = ()
    """Depths of a named model."""
    stages: Sequence[str] = ()
    """Stages of a recipe, by index or by name; empty: all."""
    sequence_length: int | None = None
    vocabulary: int | None = None
    micro_batch: int | None = None
    batch: int | None = None
    precision: str | None = None
    ranks: int | None = None
    dropout: float | None = None
    ragged: bool = False
    data: Path | None = None
    overrides: Sequence[str] = field(default_factory=tuple)

    @property
    def is_named(self) -> bool:
        """Whether the target is a model rather than a recipe."""
        return self.target is None or self.target in SHAPES


@dataclass(frozen=True)
class Target:
    """One stage to measure."""

    plan: Plan
    stage: int
    rows: SampleIndex | None
    """The sample index, if the plan has data."""


def targets(wanted: Wanted) -> list[Target]:
    """Returns everything to measure, in order.

    Raises:
        UserError: there is no such recipe, model or stage, or it cannot be planned.
    """
    try:
        return list(_named(wanted, find_machine()) if wanted.is_named else _of_recipe(wanted))
    except UserError as error:
        raise _in_options(error, wanted) from None


def _in_options(error: UserError, wanted: Wanted) -> UserError:
    """Rephrase ``error`` for the command line if an option was given for the recipe's key."""
    given = {name: keys[0] for name, keys in _KEYS.items() if getattr(wanted, name) is not None}
    options = {key.removeprefix("stages[*]"): name for name, key in given.items()}
    named = next((name for key, name in options.items() if error.where.endswith(key)), None)
    if named is None:
        return error
    problem, remedy = error.problem, error.remedy
    for key, name in options.items():
        pattern = rf"(stages\[\d+\]\.|launch\.|data\.|model\.)?(?<![-\w]){key.rpartition('.')[2]}\b"
        problem, remedy = (re.sub(pattern, _option(name), text) for text in (problem, remedy))
    return UserError(_option(named), problem, remedy)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def trial_of(
    target: Target, wanted: Wanted, contenders: Sequence[Contender], samples: Path | None, **how: Any
) -> Trial:
    """Creates the trial for ``target``; ``how`` holds `Trial`'s own numbers."""
    return Trial(
        plan=target.plan,
        stage=target.stage,
        contenders=tuple(contenders),
        ragged=wanted.ragged,
        samples=None if samples is None else str(samples),
        **how,
    )


def save_rows(rows: SampleIndex | None, path: Path) -> Path | None:
    """Writes a sample index for the ranks, unless it is there; None if there is none."""
    if rows is None:
        return None
    if not path.exists():
        rows.write(path)
    return path.absolute()


def _named(wanted: Wanted, machine: Machine) -> Iterator[Target]:
    """Plans one stage per depth, each on its own, since no depth grows from another."""
    if wanted.target is None and wanted.hidden is None:
        raise UserError("TARGET", "is missing", f"give a recipe, one of {', '.join(SHAPES)}, or --hidden")
    if wanted.stages:
        raise UserError("--stages", "is for recipes", "give --layers")
    default = (SHAPES[wanted.target].layers,) if wanted.target else _DEPTHS
    for layers in wanted.layers or default:
        raw = _raw_recipe(wanted, layers, machine)
        overrides = [*_overrides(wanted, 1), *wanted.overrides]
        yield _planned(recipe_from(raw, Path(raw["name"]), overrides, wanted.data), 0)


def _raw_recipe(wanted: Wanted, layers: int, machine: Machine) -> dict[str, Any]:
    """Returns the defaults of a named model, before the options that stand for keys."""
    length = wanted.sequence_length or 128
    ranks = wanted.ranks or machine.accelerators or 1  # a single CPU rank uses all cores
    tokens = GPU_TOKENS if machine.accelerators else CPU_TOKENS
    batch = ranks * (wanted.micro_batch or max(1, tokens // length))
    return {
        "name": wanted.target or f"hidden-{wanted.hidden}",
        "model": {"shape": wanted.target or "bert-base", "max_positions": max(_LONGEST, length)},
        "data": {"sequence_length": length},
        "launch": {"ranks": ranks},
        "stages": [{"layers": layers, "steps": 1_000_000, "batch_sequences": batch, "learning_rate": {"peak": 1e-4}}],
    }


def _of_recipe(wanted: Wanted) -> Iterator[Target]:
    if wanted.layers:
        raise UserError("--layers", "is for named models", "give --stages, or set stages[0].layers=N")
    file = _recipe_file(str(wanted.target))
    raw = read_yaml_mapping(file)
    stages = raw.get("stages")
    number = len(stages) if isinstance(stages, list) else 0
    recipe = recipe_from(raw, file, [*_overrides(wanted, number), *wanted.overrides], wanted.data)
    first = _planned(recipe, 0)
    for stage in _stages(wanted, first.plan):
        yield Target(first.plan, stage, first.rows)


def _recipe_file(name: str) -> Path:
    try:
        return find_recipe(name)
    except UserError:
        known = [*SHAPES, *sorted(file.stem for file in RECIPES.glob("*.yaml"))]
        raise UserError(name, "is neither a recipe nor a named model", nearest(name, known)) from None


def _overrides(wanted: Wanted, stages: int) -> Iterator[str]:
    """Yields the options as changes of the recipe's keys."""
    given = {key: getattr(wanted, name) for name, keys in _KEYS.items() for key in keys}
    for key, value in given.items():
        if value is not None:
            for index in range(stages if "*" in key else 1):
                yield f"{key.replace('*', str(index))}={value}"


def _stages(wanted: Wanted, plan: Plan) -> list[int]:
    known = {name: stage.index for stage in plan.stages for name in (str(stage.index), stage.name)}
    for name in wanted.stages:
        if name not in known:
            names = ", ".join(stage.name for stage in plan.stages)
            raise UserError("--stages", f"{name!r} is not a stage of {plan.name}", f"it has {names}")
    return sorted({known[name] for name in wanted.stages}) or [stage.index for stage in plan.stages]


def _planned(recipe: Recipe, stage: int) -> Target:
    plan, rows = plan_recipe(recipe)
    return Target(plan, stage, rows.get("train"))
