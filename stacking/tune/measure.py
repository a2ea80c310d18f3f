"""Runs the trials of one stage within their budget, each in processes of its own, and records the results in files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

from stacking.bench.trial import Measurement, Trial, TrialResult, run_trial
from stacking.hardware.presets import DEVICE_CLASSES
from stacking.launch.job import Launcher
from stacking.planning.cost import stage_flops
from stacking.planning.plan import Plan, StagePlan
from stacking.tune.candidate import Candidate, Tried
from stacking.tune.search import Spent
from stacking.tune.store import Records
from stacking.tune.variant import Variants

_WARMUP, _STEPS, _REPEATS, _LEAST_SECONDS = 2, 2, 3, 2.0
_UPDATE_SECONDS = 2.0
"""Updates estimated to take longer are measured with fewer micro-steps."""
_PATIENCE = 6.0
"""A trial may take this many times as long as the first one: enough for compilation, not for a hang."""
_LEAST_PATIENCE = 240.0
_UNKNOWN_TFLOPS = 10.0
"""Assumed for a GPU without a row of its own; it only affects the length of a trial."""

_SEARCH = 0.75
"""The share of a stage's time for the search; the rest is for the runoff."""

Tell = Callable[[str], None]


class Budget:
    """A number of trials per stage, and a time that the stages share.

    Args:
        trials: maximum number of trials in one stage's search; None: unlimited.
        seconds: time for the whole tuning, from now; None: unlimited.
        stages: number of stages to tune.
    """

    def __init__(
        self, trials: int | None, seconds: float | None, stages: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trials, self._left_stages, self._clock = trials, stages, clock
        self._end = None if seconds is None else clock() + seconds
        self._search_end: float | None = None
        self._stage_end: float | None = None

    def next_stage(self) -> None:
        """Assigns the next stage its share of the remaining time."""
        if self._end is not None:
            now = self._clock()
            share = max(0.0, self._end - now) / max(self._left_stages, 1)
            self._search_end, self._stage_end = now + _SEARCH * share, now + share
        self._left_stages -= 1

    def seconds_left(self) -> float | None:
        """Returns the seconds left for this stage; None: no limit."""
        return None if self._stage_end is None else max(0.0, self._stage_end - self._clock())

    def search_spent(self, measured: int) -> str:
        """Returns why the search may start no further trial after ``measured`` of them; empty while it may."""
        if self._trials is not None and measured >= self._trials:
            return f"the limit of {self._trials} trials was reached"
        if self._search_end is not None and self._clock() >= self._search_end:
            return "the time limit was reached"
        return ""

    def final_spent(self) -> str:
        """Returns why the runoff may start no further trial; empty while it may."""
        return "the time limit was reached" if self.seconds_left() == 0 else ""


class StageTrials:
    """Measures candidates of one stage; every result is in ``records`` before the next trial starts."""

    def __init__(
        self,
        variants: Variants,
        index: int,
        records: Records,
        launcher: Launcher,
        budget: Budget,
        samples: Path | None,
        tell: Tell,
    ) -> None:
        self._variants, self._index, self._records = variants, index, records
        self._launcher, self._budget, self._samples, self._tell = launcher, budget, samples, tell
        self._share = trial_share(variants.base, variants.base.stages[index], variants.machine.cores)
        self._patience: float | None = None

    def known(self, candidate: Candidate) -> Tried | None:
        tried = self._records.read(candidate.label)
        if tried is None:
            return None
        self._said(tried, reused=True)
        return tried

    def spent(self, measured: int) -> str:
        return self._budget.search_spent(measured)

    def measure(self, candidate: Candidate) -> Tried:
        return self._run(candidate, candidate.label)

    def again(self, candidate: Candidate, number: int) -> Tried:
        """Measures the candidate in a round of the runoff.

        Raises:
            Spent: the time is over.
        """
        label = f"{candidate.label}.final-{number}"
        known = self._records.read(label)
        if known is not None:
            self._said(known, reused=True)
            return known
        if reason := self._budget.final_spent():
            raise Spent(reason)
        return self._run(candidate, label)

    def _run(self, candidate: Candidate, label: str) -> Tried:
        plan = self._variants.trial(self._index, candidate, self._share)
        trial = Trial(
            plan=plan,
            stage=self._index,
            warmup=_WARMUP,
            steps=_STEPS,
            repeats=_REPEATS,
            least_seconds=_LEAST_SECONDS,
            samples=str(self._samples) if self._samples else None,
        )
        left = self._budget.seconds_left()
        limit = min((seconds for seconds in (left, self._patience) if seconds is not None), default=None)
        started = time.monotonic()
        result = run_trial(trial, self._records.folder(label), self._launcher, limit)
        wall = time.monotonic() - started
        if result.outcome == "failed" and (reason := self._budget.final_spent()):
            raise Spent(reason)  # the budget ended it, which says nothing about the candidate
        self._patience = self._patience or max(_LEAST_PATIENCE, _PATIENCE * wall)
        stage = self._variants.base.stages[self._index]
        tried = judged(candidate, result, stage, plan.stages[self._index])
        self._records.write(label, tried)
        self._said(tried)
        return tried

    def _said(self, tried: Tried, reused: bool = False) -> None:
        speed = f"{tried.tokens_per_second:,.0f} tokens/s" if tried.result == "measured" else tried.result
        why = f" ({tried.message})" if tried.message else ""
        self._tell(f"{tried.candidate.words}: {speed}{why}{', from an earlier run' if reused else ''}")


def trial_share(plan: Plan, stage: StagePlan, cores: int) -> int:
    """Returns the sequences per rank in a trial's update: all, or fewer if an update takes too long to repeat."""
    device = DEVICE_CLASSES.get(plan.launch.device)
    known = device is not None and stage.precision in device.peak
    reached = device.peak[stage.precision] * device.utilisation if device and known else _UNKNOWN_TFLOPS
    units = cores if plan.launch.accelerator == "cpu" else stage.ranks
    model = plan.model.with_layers(stage.layers)
    flops = stage_flops(model, stage.global_batch, plan.data.sequence_length, plan.data.mask_probability)
    seconds = flops / (units * reached * 1e12)
    share = stage.global_batch // stage.ranks
    return max(1, min(share, int(share * _UPDATE_SECONDS / seconds)))


def judged(candidate: Candidate, result: TrialResult, stage: StagePlan, run: StagePlan) -> Tried:
    """Returns the record of a trial, scaled to the whole update of ``stage`` if the trial's (``run``) was shorter."""
    if result.outcome != "measured":
        return Tried(candidate=candidate, result=result.outcome, message=result.message)
    measurement = result.measurements["stacking"]
    seconds = update_seconds(measurement, stage.global_batch / run.global_batch)
    tokens = measurement.tokens_per_step * stage.global_batch / run.global_batch
    lower, _, upper = quantiles(measurement.step_seconds, n=4)
    return Tried(
        candidate=candidate,
        result="measured",
        tokens_per_second=tokens / seconds,
        update_seconds=seconds,
        spread=(upper - lower) / median(measurement.step_seconds),
        memory_bytes=measurement.memory_bytes,
    )


def update_seconds(measurement: Measurement, times: float) -> float:
    """Scales a measured update to ``times`` as many micro-steps, with a single optimizer step, in seconds."""
    step = median(measurement.step_seconds)
    once = min(measurement.split.get("optimizer", 0.0), step) if times > 1 else 0.0
    return (step - once) * times + once
