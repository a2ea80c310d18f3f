"""One measured trial: what to measure and how long, how it is started, and what comes back. No torch here.

A trial runs in processes of its own, so that one which takes all memory, or crashes, is a result like any other.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stacking.data.corpus import Corpus
from stacking.data.samples import build_samples
from stacking.errors import DamagedFile
from stacking.launch.job import Job, Launcher, Outcome
from stacking.launch.outcome import describe
from stacking.planning.plan import Plan, Stage
from stacking.storage.files import disk_errors, read_json, write_atomically

TRIAL, RESULT, SAMPLES, PROFILE = "trial.json", "result.json", "samples.npy", "profile.txt"
OUT_OF_MEMORY = 77
"""The exit code of a rank whose device or host had no memory left."""
_POLL_SECONDS = 0.05
_KILLED = -9
"""What the kernel does to a process when the host has no memory left."""

Contender = Literal["stacking", "padded", "hugging-face", "hugging-face-compiled"]
Section = Literal["data", "forward", "backward", "communication", "optimizer"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(_Part):
    """What to measure: one stage of a plan, by one contender or by several that take turns."""

    plan: Plan
    stage: int = 0
    contenders: tuple[Contender, ...] = ("stacking",)
    warmup: int = Field(default=2, ge=1)
    """Optimizer steps that are not timed; compilation and first allocations fall into them."""
    steps: int = Field(default=5, ge=1)
    """Optimizer steps in one repeat, at least."""
    repeats: int = Field(default=1, ge=1)
    """Contenders alternate between repeats; all of them see the same samples in the same repeat."""
    least_seconds: float = Field(default=0.0, ge=0)
    """Lengthen the repeats until the fastest contender takes this long for one; 0: exactly ``steps``."""
    ragged: bool = False
    """Without data: draw the lengths instead of filling every sequence; see `stacking.bench.synthetic`."""
    samples: str | None = None
    """Absolute path of a sample index made before; null: it is made in the trial's folder where the plan has data."""
    profile: bool = False
    """Also write the operators that take longest, per contender."""

    @property
    def planned(self) -> Stage:
        """The stage that is measured."""
        return self.plan.stages[self.stage]


class Measurement(_Part):
    """What one contender did. Numbers are sums over all ranks unless they say otherwise."""

    step_seconds: tuple[float, ...]
    """One optimizer step each, repeat after repeat, on rank 0's clock."""
    step_real_tokens: tuple[int, ...]
    """Tokens of those steps, without padding."""
    repeats: int
    """How many equal parts ``step_seconds`` falls into."""
    sequences_per_step: int
    tokens_per_step: int
    """Padding included."""
    real_tokens_per_step: float
    """Mean."""
    predictions_per_step: float
    """Masked positions, mean."""
    flops_per_step: float
    """Model FLOPs of real tokens and masked positions (`stacking.model.size.training_flops`), mean."""
    split: dict[Section, float]
    """Seconds per step, from separate steps that wait after every part and so do not overlap anything; medians."""
    memory_bytes: int
    """Most that one rank had for this contender: allocated by torch on a GPU, resident on a CPU."""
    chosen: dict[str, str]
    """Which implementation of what was used: attention, optimizer and so on."""
    startup_seconds: float
    """From nothing to a ready engine, without imports."""
    warmup_seconds: float
    """All warm-up steps, compilation included."""
    skipped_steps: int
    """Measured steps without an update, because the loss scale was too high."""


class TrialResult(_Part):
    """How a trial ended."""

    outcome: Literal["measured", "out-of-memory", "failed"]
    message: str = ""
    """One line on what went wrong."""
    measurements: dict[str, Measurement] = {}
    hardware: dict[str, Any] = {}
    """Device, peak, threads and versions as the ranks found them; see `stacking.bench.hardware`."""


def run_trial(trial: Trial, folder: Path, launcher: Launcher, limit_seconds: float | None = None) -> TrialResult:
    """Measure in processes of their own, with their files in ``folder``; waits for the end.

    Args:
        folder: made if it is not there; gets ``trial.json``, ``result.json`` and ``logs/``.
        limit_seconds: end a trial that takes longer, as failed; None: wait.

    Raises:
        UserError: the data cannot be read, or the folder cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
        write_atomically(folder / TRIAL, trial.model_dump_json(indent=2) + "\n")
        if trial.plan.data.path is not None and trial.samples is None:
            np.save(folder / SAMPLES, _sample_index(trial.plan))
    job = Job(
        name="bench",
        argv=[sys.executable, "-m", "stacking.bench.worker", str(folder)],
        ranks=trial.planned.ranks,
        logs=folder / "logs",
        accelerator=trial.plan.launch.accelerator,
    )
    outcome = _wait(launcher, job, limit_seconds)
    if outcome is None:
        return TrialResult(outcome="failed", message=f"took longer than {limit_seconds:g} s")
    if outcome.exit_code == 0:
        return read_result(folder)
    if outcome.exit_code == OUT_OF_MEMORY:
        return TrialResult(outcome="out-of-memory", message=describe(outcome))
    if outcome.exit_code == _KILLED:
        message = f"{describe(outcome)}, as the kernel does when the host has no memory left"
        return TrialResult(outcome="out-of-memory", message=message)
    return TrialResult(outcome="failed", message=describe(outcome))


def read_trial(folder: Path) -> Trial:
    """What `run_trial` was asked for.

    Raises:
        DamagedFile: it cannot be read.
    """
    try:
        return Trial.model_validate(read_json(folder / TRIAL))
    except ValidationError as error:
        raise DamagedFile(folder / TRIAL, f"is not a trial ({error.errors()[0]['msg']})", "start it again") from None


def read_result(folder: Path) -> TrialResult:
    """What the ranks measured.

    Raises:
        DamagedFile: it cannot be read.
    """
    try:
        return TrialResult.model_validate(read_json(folder / RESULT))
    except ValidationError as error:
        raise DamagedFile(folder / RESULT, f"is not a result ({error.errors()[0]['msg']})", "start again") from None


def _sample_index(plan: Plan) -> np.ndarray:
    corpus = Corpus(Path(str(plan.data.path)), split="train")
    return build_samples(corpus, plan.data.samples, plan.data.sequence_length)


def _wait(launcher: Launcher, job: Job, limit_seconds: float | None) -> Outcome | None:
    """The job's end; None: it took too long and was ended. Nothing is left running, whatever happens here."""
    job.logs.mkdir(parents=True, exist_ok=True)
    for old in job.logs.glob(f"{job.name}.*"):
        old.unlink()
    running = launcher.start(job)
    started = time.monotonic()
    ended = False
    try:
        while (outcome := running.poll()) is None:
            if limit_seconds is not None and time.monotonic() - started > limit_seconds:
                return None
            time.sleep(_POLL_SECONDS)
        ended = True
        return outcome
    finally:
        if not ended:
            running.kill()
