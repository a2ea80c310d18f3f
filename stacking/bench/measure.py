"""Measures windows of steps: contenders alternate on the same samples, without synchronisation inside a window."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from stacking.bench.contender import Contender, Padded, Recomputed, Stacking
from stacking.bench.counts import Counter, Counts
from stacking.bench.instruments import (
    SECTIONS,
    Marks,
    MemoryMeter,
    Stopwatch,
    named,
    observed,
    operators_of,
    synchronise,
)
from stacking.bench.trial import Measurement, Section, Trial
from stacking.data.unpad import Unpadded
from stacking.train.loader import sample_numbers

_SPLIT_STEPS = 3
"""Steps timed part by part; a median needs several."""
Batches = Callable[[np.ndarray], Unpadded]
Factory = Callable[[Trial], Contender]


class Timed(NamedTuple):
    """The measurement of one window of a contender."""

    seconds: list[float]
    """Per step."""
    counts: list[Counts]
    """Per step, this rank's share."""


class Entrant:
    """A contender in a trial, and what was measured of it."""

    def __init__(self, name: str, make: Factory, trial: Trial, device: torch.device) -> None:
        self.name, self.trial, self.device = name, trial, device
        self.memory = MemoryMeter(device)
        started = time.perf_counter()
        self.contender: Contender = make(trial)
        synchronise(device)
        self.startup_seconds = time.perf_counter() - started
        self.warmup_seconds = 0.0
        self.skipped_before = 0
        self.windows: list[Timed] = []
        self.split: dict[Section, float] = {}
        self.observed: dict[str, str] = {}
        self.profile = ""

    @property
    def skipped(self) -> int:
        """The steps so far that the loss scaler has skipped."""
        return int(getattr(self.contender.engine, "skipped_steps", 0))


class Course:
    """What the contenders of one trial share: the samples and the way of stepping through them."""

    def __init__(self, trial: Trial, batches: Batches, device: torch.device, rank: int) -> None:
        self._trial, self._batches, self._device, self._rank = trial, batches, device, rank
        self._counter = Counter(trial.plan.model.with_layers(trial.planned.layers), trial.plan.data.sequence_length)

    def warm_up(self, entrant: Entrant) -> float:
        """Runs the untimed steps and returns the seconds of the last one."""
        started = time.perf_counter()
        seconds = self.window(entrant, 0, self._trial.warmup).seconds
        entrant.warmup_seconds = time.perf_counter() - started
        entrant.memory.ready()
        entrant.skipped_before = entrant.skipped
        return seconds[-1]

    def window(self, entrant: Entrant, first_step: int, steps: int) -> Timed:
        """Runs consecutive updates as in training: the next batch is prepared while this one computes."""
        contender, seconds, counts = entrant.contender, [], []
        contender.begin_turn()
        updates = self._ahead(contender, first_step, steps)
        micro_batches, work = next(updates)
        dist.barrier()
        marks = Marks(self._device)
        entrant.memory.start(exact=False)
        for step in range(first_step, first_step + steps):
            contender.update(micro_batches, step)
            marks.mark()
            counts.append(work)
            micro_batches, work = next(updates)
        seconds = marks.seconds()
        entrant.memory.stop()
        return Timed(seconds, counts)

    def _ahead(self, contender: Contender, first_step: int, steps: int) -> Iterator[tuple[list[Any], Counts]]:
        """Yields ``steps`` updates and one more, so that every step has one to prepare."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            ahead = pool.submit(self._prepare, contender, first_step)
            for step in range(first_step + 1, first_step + steps + 1):
                ready = ahead.result()
                ahead = pool.submit(self._prepare, contender, step)
                yield ready
            yield ahead.result()

    def _prepare(self, contender: Contender, step: int) -> tuple[list[Any], Counts]:
        rows = sample_numbers(self._trial.planned, step, self._rank)
        batches = [self._batches(row) for row in rows]
        return [contender.prepare(batch) for batch in batches], sum(map(self._counter, batches), Counts())

    def split(self, entrant: Entrant, first_step: int) -> None:
        """Times a few steps part by part, and measures their memory."""
        taken: list[dict[Section, float]] = []
        entrant.contender.begin_turn()
        entrant.memory.start(exact=True)
        for step in range(first_step, first_step + _SPLIT_STEPS):
            watch = Stopwatch(self._device)
            dist.barrier()
            with watch.section("data"):
                micro_batches, _ = self._prepare(entrant.contender, step)
            with watch.watching_collectives():
                entrant.contender.update(micro_batches, step, watch.section)
            taken.append(watch.seconds)
        entrant.memory.stop()
        entrant.split = {name: median(step[name] for step in taken) for name in SECTIONS}

    def look(self, entrant: Entrant, step: int) -> None:
        """Profile one step, to see which operators run."""
        micro_batches, _ = self._prepare(entrant.contender, step)
        names, entrant.profile = operators_of(lambda: entrant.contender.update(micro_batches, step), self._device)
        entrant.observed = observed(names)


def steps_for(trial: Trial, step_seconds: float) -> int:
    """Returns the number of steps in a window: those requested, and enough for ``least_seconds``; rank 0 decides."""
    steps = [max(trial.steps, -int(-trial.least_seconds // step_seconds))]
    dist.broadcast_object_list(steps)
    return steps[0]


def measure(
    trial: Trial, batches: Batches, device: torch.device, starting: Callable[[str], None]
) -> dict[str, tuple[Measurement, str]]:
    """Runs the whole trial; all ranks call it together.

    Args:
        starting: called with the name of each contender that is started, then with an empty one.

    Returns:
        Measurements by contender, and the profiler's table of one step of each.
    """
    course = Course(trial, batches, device, dist.get_rank())
    entrants, fastest = [], float("inf")
    _import_everything()
    factories = {name: _factory(name) for name in trial.contenders}
    for name, make in factories.items():
        starting(name)
        entrant = Entrant(name, make, trial, device)
        fastest = min(fastest, course.warm_up(entrant))
        entrants.append(entrant)
    starting("")
    steps, first = steps_for(trial, fastest), trial.warmup
    for entrant in entrants:
        course.window(entrant, first, 1)  # measuring the memory slowed down the next step
    first += 1
    for repeat in range(trial.repeats):
        # In alternating order, so that no contender always runs after the other.
        for entrant in entrants if repeat % 2 == 0 else reversed(entrants):
            entrant.windows.append(course.window(entrant, first, steps))
        first += steps
    skipped = {entrant.name: entrant.skipped - entrant.skipped_before for entrant in entrants}
    for entrant in entrants:
        course.split(entrant, first)
        course.look(entrant, first + _SPLIT_STEPS)
    return {entrant.name: (_measurement(entrant, skipped[entrant.name]), entrant.profile) for entrant in entrants}


def _factory(name: str) -> Factory:
    """Imports the libraries of a contender; returns its constructor."""
    ours = {"stacking": Stacking, "padded": Padded, "checkpointing": Recomputed}
    if name in ours:
        return ours[name]
    from stacking.bench.hugging_face import HuggingFace  # needs transformers, which the others do not

    return partial(HuggingFace, compiled=name == "hugging-face-compiled")


def _import_everything() -> None:
    """Imports what DeepSpeed imports for its first engine, so that the first contender does not pay for it."""
    import torch._dynamo
    import torch._functorch.aot_autograd
    import torch._inductor.lowering  # noqa: F401


def _measurement(entrant: Entrant, skipped: int) -> Measurement:
    counts = [count for window in entrant.windows for count in window.counts]
    total = sum(counts, Counts())
    device = entrant.device
    numbers = [*(count.real_tokens for count in counts), total.flops, total.executed_flops]
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    *real, flops, executed = sums.tolist()
    most = torch.tensor([entrant.memory.most], dtype=torch.int64, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    stage, steps = entrant.trial.planned, len(counts)
    return Measurement(
        step_seconds=tuple(seconds for window in entrant.windows for seconds in window.seconds),
        step_real_tokens=tuple(int(tokens) for tokens in real),
        repeats=len(entrant.windows),
        sequences_per_step=stage.global_batch,
        tokens_per_step=stage.global_batch * entrant.trial.plan.data.sequence_length,
        real_tokens_per_step=sum(real) / steps,
        flops_per_step=flops / steps,
        executed_flops_per_step=executed / steps if entrant.contender.executes_needed else None,
        split=entrant.split,
        memory_bytes=int(most),
        chosen=named(entrant.contender.chosen(), entrant.observed),
        startup_seconds=entrant.startup_seconds,
        warmup_seconds=entrant.warmup_seconds,
        skipped_steps=skipped,
    )
