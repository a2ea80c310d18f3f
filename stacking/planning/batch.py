"""Decides batches: global batch = micro-batch x accumulation x ranks, in sequences."""

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
"""Larger micro-batches do not speed up a CPU; they only take memory."""
_USABLE = 0.8
"""Share of a GPU's memory that an estimate may fill."""


class BatchSplit(NamedTuple):
    """How the sequences of one update are split."""

    micro: int
    accumulation: int
    ranks: int

    @property
    def total(self) -> int:
        """The global batch in sequences."""
        return self.micro * self.accumulation * self.ranks


def recipe_total(recipe: Recipe, index: int) -> int | None:
    """Returns the global batch in sequences that the recipe sets for a stage, if it does.

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
    """Returns as many of the devices as divide the global batches that the recipe sets."""
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
    """Decides the batch of one stage from the recipe, the user's DeepSpeed configuration and the previous stage.

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
    unit = ranks * (micro or 1) * (keys.accumulation or 1)
    exact = micro is not None and keys.accumulation is not None
    if total % unit or (exact and total != unit):
        raise _does_not_divide(recipe, index, user, total, ranks, micro)
    if micro is None and keys.accumulation:
        micro = total // (ranks * keys.accumulation)
    if micro is None:
        share = total // ranks
        micro = next((n for n in range(share, 0, -1) if share % n == 0 and fits(n)), 1)
    return BatchSplit(micro, total // (micro * ranks), ranks)


def _agreed(user: UserConfig, key: str, wanted: int | None, given: int | None, stage: str) -> int | None:
    if None not in (wanted, given) and wanted != given:
        remedy = 'write "auto" here, or make them agree'
        raise user.error(key, f"is {given:,}, but the recipe's {stage} says {wanted:,} sequences", remedy)
    return given if wanted is None else wanted


def _does_not_divide(
    recipe: Recipe, index: int, user: UserConfig, total: int, ranks: int, micro: int | None
) -> UserError:
    """Returns an error at the key that fixes the size of an update: the configuration's, else the recipe's."""
    keys, stage = batch_keys(user), recipe.stages[index]
    unit, exact = ranks * (micro or 1) * (keys.accumulation or 1), None not in (micro, keys.accumulation)
    names = [f"{name} {n}" for name, n in (("micro-batch", micro), ("accumulation", keys.accumulation)) if n]
    product = " x ".join([counted(ranks, "rank"), *names]) + (f" = {unit}" if names else "")
    if keys.total is None:
        name, scale = ("batch_tokens", recipe.data.sequence_length) if stage.batch_tokens else ("batch_sequences", 1)
        measure = f"is {total:,}" if scale == 1 else f"is {total * scale:,} ({counted(total, 'sequence')})"
        verb = ", not" if exact else ", not a multiple of"
        remedy = f"give {unit * scale:,}" if exact else _multiples(total * scale, unit * scale)
        return UserError(recipe.key("stages", index, name), f"{measure}{verb} {product}", remedy)
    if total % ranks:
        also = f", and stages[{index}].batch_sequences in the recipe" if recipe_total(recipe, index) else ""
        return user.error(
            "train_batch_size", f"is {total:,}, not a multiple of {product}", _multiples(total, unit) + also
        )
    share = total // ranks
    fits = largest_divisor(share, micro or share)
    where = f"stages[{index}].micro_batch" if stage.micro_batch else "train_micro_batch_size_per_gpu"
    remedy = f"make {where} {fits}"
    if keys.accumulation and keys.accumulation != share // fits:
        remedy += f" and gradient_accumulation_steps {share // fits}"
    return user.error(
        "train_batch_size", f"is {total:,}, not {product}", f"{remedy} ({fits} x {share // fits} x {ranks})"
    )


def _multiples(value: int, unit: int) -> str:
    """Suggests the multiples of ``unit`` around ``value``: ``give 96 or 128``."""
    below = value // unit * unit
    return f"give {below:,} or {below + unit:,}" if below else f"give {unit:,}"


def largest_divisor(number: int, most: int) -> int:
    """Returns the largest divisor of ``number`` that is at most ``most``."""
    return next(n for n in range(min(number, most), 0, -1) if number % n == 0)


def fits_device(recipe: Recipe, model: ModelConfig, precision: Precision, devices: Devices) -> Callable[[int], bool]:
    """Whether a micro-batch fits: on a GPU next to an unsharded training state, on a CPU within reach of the caches."""
    length, size = recipe.data.sequence_length, 4 if precision == "fp32" else 2
    if not devices.cuda:
        return lambda micro: micro * length <= _CPU_MICRO_TOKENS
    free = devices.memory * _USABLE - 16 * count_parameters(model)
    return lambda micro: (
        activation_bytes(model, micro, length, size, fused=True, mask_probability=recipe.data.mask_probability) <= free
    )
