"""Batch arithmetic: global batch = micro-batch x accumulation x ranks, in sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from stacking.config.recipe import Recipe
from stacking.deepspeed_config.ds_config import UserConfig, batch_keys
from stacking.errors import UserError
from stacking.hardware.presets import Precision
from stacking.model.config import ModelConfig
from stacking.model.size import count_parameters
from stacking.planning.cost import activation_bytes
from stacking.planning.devices import Devices
from stacking.terminal.units import counted

_CPU_MICRO_TOKENS = 4096
"""Larger micro-batches do not speed up a CPU, they only take memory."""
_USABLE = 0.8
"""Share of a GPU's memory that an estimate may fill."""


class BatchSplit(NamedTuple):
    """How the sequences of one update are split."""

    micro: int
    accumulation: int
    ranks: int

    @property
    def total(self) -> int:
        return self.micro * self.accumulation * self.ranks


def recipe_total(recipe: Recipe, index: int) -> int | None:
    """Return the global batch in sequences that the recipe sets for a stage, if it does.

    Raises:
        UserError: the tokens are not a whole number of sequences.
    """
    stage, length = recipe.stages[index], recipe.data.sequence_length
    if stage.batch_tokens is None:
        return stage.batch_sequences
    if stage.batch_tokens % length:
        where = recipe.key("stages", index, "batch_tokens")
        problem = f"is {stage.batch_tokens:,}, not whole sequences of {length} tokens"
        raise UserError(where, problem, _multiples(stage.batch_tokens, length))
    return stage.batch_tokens // length


def automatic_ranks(recipe: Recipe, devices: int) -> int:
    """Return as many of the devices as divide the global batches that the recipe sets."""
    length = recipe.data.sequence_length
    totals = [stage.batch_sequences or (stage.batch_tokens or 0) // length for stage in recipe.stages]
    return next(n for n in range(devices, 0, -1) if all(total % n == 0 for total in totals))


def has_own_batch(recipe: Recipe, index: int, user: UserConfig) -> bool:
    """Whether a stage states a global batch that no other stage has."""
    stage = recipe.stages[index]
    own = batch_keys(user).total if stage.ds_config is not None else None
    return any((stage.batch_sequences, stage.batch_tokens, own))


def decide_batch(
    recipe: Recipe,
    index: int,
    user: UserConfig,
    automatic: int,
    inherited: int | None,
    fits: Callable[[int], bool],
) -> BatchSplit:
    """Decide the batch of one stage from the recipe, the user's DeepSpeed configuration and the previous stage.

    Args:
        automatic: the number of ranks where the recipe leaves it open.
        inherited: the previous stage's global batch, for a stage that sets none.
        fits: whether a micro-batch fits the device; used to choose one if none is given.

    Raises:
        UserError: the two sources disagree, neither sets a batch size, or it does not divide.
    """
    keys, stage = batch_keys(user), recipe.stages[index]
    ranks = stage.ranks or recipe.launch.ranks or automatic
    total = _agreed(user, "train_batch_size", recipe_total(recipe, index), keys.total, f"stages[{index}]")
    micro = _agreed(user, "train_micro_batch_size_per_gpu", stage.micro_batch, keys.micro, f"stages[{index}]")
    if total is None and micro is not None and (keys.accumulation or inherited is None):
        total = micro * (keys.accumulation or 1) * ranks
    total = total or inherited
    if total is None:
        where = recipe.key("stages", index, "batch_sequences")
        raise UserError(where, "is missing", "add it: sequences per update, over all ranks")
    if keys.total is not None:
        _check_total(recipe, index, user, total, ranks, micro, keys.accumulation)
    _check_divides(recipe, index, total, ranks, micro, keys.accumulation)
    if micro is None and keys.accumulation:
        micro = total // (ranks * keys.accumulation)
    micro = micro or _largest(total // ranks, fits)
    return BatchSplit(micro, total // (micro * ranks), ranks)


def _agreed(user: UserConfig, key: str, wanted: int | None, given: int | None, stage: str) -> int | None:
    if None not in (wanted, given) and wanted != given:
        remedy = 'write "auto" here, or make them agree'
        raise user.error(key, f"is {given:,}, but the recipe's {stage} says {wanted:,} sequences", remedy)
    return given if wanted is None else wanted


def _check_total(
    recipe: Recipe, index: int, user: UserConfig, total: int, ranks: int, micro: int | None, accumulation: int | None
) -> None:
    """One answer that holds where the configuration fixes the size of an update: what to change, and where."""
    unit = ranks * (micro or 1) * (accumulation or 1)
    if total % unit == 0 and (None in (micro, accumulation) or total == unit):
        return
    parts = [counted(ranks, "rank"), *([f"micro-batch {micro}"] if micro else [])]
    parts += [f"accumulation {accumulation}"] if accumulation else []
    product = " x ".join(parts) + (f" = {unit}" if len(parts) > 1 else "")
    also = f", and stages[{index}].batch_sequences in the recipe" if recipe_total(recipe, index) else ""
    if total % ranks:
        raise user.error(
            "train_batch_size", f"is {total:,}, not a multiple of {product}", _multiples(total, unit) + also
        )
    share = total // ranks
    fits = max(n for n in range(1, min(micro or share, share) + 1) if share % n == 0)
    where = f"stages[{index}].micro_batch" if recipe.stages[index].micro_batch else "train_micro_batch_size_per_gpu"
    remedy = f"make {where} {fits}"
    if accumulation and accumulation != share // fits:
        remedy += f" and gradient_accumulation_steps {share // fits}"
    raise user.error(
        "train_batch_size", f"is {total:,}, not {product}", f"{remedy} ({fits} x {share // fits} x {ranks})"
    )


def _check_divides(
    recipe: Recipe, index: int, total: int, ranks: int, micro: int | None, accumulation: int | None
) -> None:
    unit = ranks * (micro or 1) * (accumulation or 1)
    exact = micro is not None and accumulation is not None
    if total % unit == 0 and (not exact or total == unit):
        return
    parts = [counted(ranks, "rank")]
    if micro:
        parts.append(f"micro-batch {micro}")
    if accumulation:
        parts.append(f"accumulation {accumulation}")
    stage, length = recipe.stages[index], recipe.data.sequence_length
    name, scale = ("batch_tokens", length) if stage.batch_tokens else ("batch_sequences", 1)
    product = " x ".join(parts) + (f" = {unit}" if len(parts) > 1 else "")
    measure = f"is {total:,}" if scale == 1 else f"is {total * scale:,} ({counted(total, 'sequence')})"
    verb = ", not" if exact else ", not a multiple of"
    remedy = f"give {unit * scale:,}" if exact else _multiples(total * scale, unit * scale)
    raise UserError(recipe.key("stages", index, name), f"{measure}{verb} {product}", remedy)


def _multiples(value: int, unit: int) -> str:
    """Suggest the multiples of ``unit`` around ``value``: ``give 96 or 128``."""
    below = value // unit * unit
    return f"give {below:,} or {below + unit:,}" if below else f"give {unit:,}"


def _largest(per_rank: int, fits: Callable[[int], bool]) -> int:
    """Return the largest divisor of a rank's share that fits; 1 if none does."""
    divisors = [n for n in range(per_rank, 0, -1) if per_rank % n == 0]
    return next((n for n in divisors if fits(n)), 1)


def fits_device(recipe: Recipe, model: ModelConfig, precision: Precision, devices: Devices) -> Callable[[int], bool]:
    """Whether a micro-batch fits: on a GPU next to an unsharded training state, on a CPU within reach of the caches."""
    length, size = recipe.data.sequence_length, 4 if precision == "fp32" else 2
    if not devices.cuda:
        return lambda micro: micro * length <= _CPU_MICRO_TOKENS
    free = devices.memory * _USABLE - 16 * count_parameters(model)
    return lambda micro: (
        activation_bytes(model, micro, length, size, fused=True, mask_probability=recipe.data.mask_probability) <= free
    )
