"""Computes the learning rates of DeepSpeed's schedules (``deepspeed/runtime/lr_schedules.py``) at any update.

DeepSpeed sets a schedule's next value after each update, and its first value at construction: update ``n`` uses the
value of iteration ``n - 1``, and update 0 a value of its own.
"""

from __future__ import annotations

from math import cos, floor, log, pi

from stacking.config.recipe import DeepSpeedSchedule, OneCycle, WarmupCosineLR, WarmupDecayLR, WarmupLR


def rate_at(schedule: DeepSpeedSchedule, update: int, total: int) -> float:
    """Returns the learning rate of an update.

    Args:
        update: counted from 0, over the whole run.
        total: updates of the run, for schedules that do not define their end.
    """
    if isinstance(schedule, OneCycle):
        return _one_cycle(schedule, update)
    if isinstance(schedule, WarmupCosineLR):
        return _warmup_cosine(schedule, update - 1, schedule.total_num_steps or total)
    if update == 0:
        return schedule.warmup_min_lr
    share = _linear(schedule, update - 1, total)
    return schedule.warmup_min_lr + (schedule.warmup_max_lr - schedule.warmup_min_lr) * share


def knots(schedule: DeepSpeedSchedule, total: int) -> list[int]:
    """Returns the updates at which the curve has a kink."""
    if isinstance(schedule, OneCycle):
        rise, fall = _halves(schedule)
        return [1, rise, rise + fall, rise + fall + 1]
    end = total if isinstance(schedule, WarmupLR) else schedule.total_num_steps or total
    return [1, _warmup(schedule) + 1, end + 1]


def _warmup(schedule: WarmupLR | WarmupDecayLR | WarmupCosineLR) -> int:
    return max(2, schedule.warmup_num_steps)


def _rise(schedule: WarmupLR | WarmupDecayLR | WarmupCosineLR, iteration: int) -> float:
    """Returns the completed share of the warm-up."""
    warmup = _warmup(schedule)
    return log(iteration + 1) / log(warmup) if schedule.warmup_type == "log" else iteration / warmup


def _linear(schedule: WarmupLR | WarmupDecayLR, iteration: int, total: int) -> float:
    if iteration < _warmup(schedule):
        return _rise(schedule, iteration)
    if isinstance(schedule, WarmupLR):
        return 1.0
    end = schedule.total_num_steps or total
    return max(0.0, (end - iteration) / max(1.0, end - _warmup(schedule)))


def _warmup_cosine(schedule: WarmupCosineLR, iteration: int, end: int) -> float:
    if iteration < 0:
        return 0.0
    if iteration < _warmup(schedule):
        ratio = schedule.warmup_min_ratio + _rise(schedule, iteration) * (1 - schedule.warmup_min_ratio)
        return schedule.peak * ratio
    progress = min(1.0, (iteration - _warmup(schedule) + 1) / max(1, end - _warmup(schedule)))
    ratio = schedule.cos_min_ratio + (1 - schedule.cos_min_ratio) * (1 + cos(pi * progress)) / 2
    return schedule.peak * max(0.0, ratio)


def _halves(schedule: OneCycle) -> tuple[int, int]:
    rise, fall = schedule.cycle_first_step_size, schedule.cycle_second_step_size
    return rise, rise if fall is None else fall


def _one_cycle(schedule: OneCycle, update: int) -> float:
    rise, fall = _halves(schedule)
    low, high = schedule.cycle_min_lr, schedule.cycle_max_lr
    after = update - (rise + fall)
    if after <= 0:
        return low + (high - low) * _height(schedule, update)
    if not schedule.decay_step_size or not schedule.decay_lr_rate:
        return low
    return low / (1 + schedule.decay_lr_rate * after / schedule.decay_step_size)


def _height(schedule: OneCycle, update: int) -> float:
    """Returns the position in the cycle, from 0 to 1."""
    rise, fall = _halves(schedule)
    if update >= rise + fall:
        return 0.0
    rising = update <= rise
    share = update / rise if rising else (rise + fall - update) / fall
    stairs = schedule.cycle_first_stair_count
    if not rising and schedule.cycle_second_stair_count is not None:
        stairs = schedule.cycle_second_stair_count
    return floor(share * stairs + 1e-9) / stairs if stairs else share
