"""Defines and starts a trial: what to measure, for how long, and the results. Does not import torch.

A trial runs in processes of its own, so that one that runs out of memory or crashes is a result like any other.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stacking.launch.job import Job, Launcher, Outcome
from stacking.launch.outcome import describe
from stacking.planning.plan import Plan, StagePlan
from stacking.storage.files import disk_errors, read_json, write_atomically
from stacking.storage.frozen import Frozen, record_of

TRIAL, RESULT, PROFILE = "trial.json", "result.json", "profile.txt"
STARTING = "starting.txt"
"""The contender that is being built and warmed up; empty once all are ready."""
OUT_OF_MEMORY = 77
"""The exit code of a rank whose device or host is out of memory."""
_LOGS = "logs"
_POLL_SECONDS = 0.05
_KILLED = -9
"""The signal with which the kernel kills a process when the host is out of memory."""

Contender = Literal["stacking", "padded", "checkpointing", "hugging-face", "hugging-face-compiled"]
Section = Literal["data", "forward", "backward", "communication", "optimizer"]


class Trial(Frozen):
    """What to measure: one stage of a plan, by one contender or by several alternating ones."""

    plan: Plan
    stage: int = 0
    contenders: tuple[Contender, ...] = ("stacking",)
    warmup: int = Field(default=2, ge=1)
    """Untimed optimizer steps, which absorb compilation and first allocations."""
    steps: int = Field(default=5, ge=1)
    """Minimum number of optimizer steps per repeat."""
    repeats: int = Field(default=1, ge=1)
    """Contenders alternate between repeats; all of them see the same samples in the same repeat."""
    least_seconds: float = Field(default=0.0, ge=0)
    """Lengthen the repeats until the fastest contender takes this long for one; 0: exactly ``steps``."""
    ragged: bool = False
    """Without data: draw the lengths instead of filling every sequence; see `stacking.bench.synthetic`."""
    samples: str | None = None
    """Absolute path of the sample index; null: the plan has no data."""
    profile: bool = False
    """Also write the slowest operators, per contender."""

    @property
    def planned(self) -> StagePlan:
        """The stage to measure."""
        return self.plan.stages[self.stage]


class Measurement(Frozen):
    """The measurements of one contender, summed over all ranks unless stated otherwise."""

    step_seconds: tuple[float, ...]
    """Seconds per optimizer step, repeat after repeat, on rank 0's clock."""
    step_real_tokens: tuple[int, ...]
    """Tokens of those steps, without padding."""
    repeats: int
    """The number of equal parts of ``step_seconds``."""
    sequences_per_step: int
    tokens_per_step: int
    """Padding included."""
    real_tokens_per_step: float
    """Mean."""
    flops_per_step: float
    """Model FLOPs of real tokens and masked positions (`stacking.model.size.training_flops`), mean."""
    executed_flops_per_step: float | None = None
    """Those that are executed (`stacking.model.size.executed_flops`); None: not counted."""
    split: dict[Section, float]
    """Median seconds per step, from separate steps that synchronise after every part, so nothing overlaps."""
    memory_bytes: int
    """Peak of one rank for this contender: allocated by torch on a GPU, resident on a CPU."""
    chosen: dict[str, str]
    """The implementation in use by kind: attention, optimizer and so on."""
    startup_seconds: float
    """From the start to a ready engine, excluding imports."""
    warmup_seconds: float
    """All warm-up steps, including compilation."""
    skipped_steps: int
    """Measured steps without an update, skipped by the loss scaler."""


class TrialResult(Frozen):
    """How a trial ended."""

    outcome: Literal["measured", "out-of-memory", "failed"]
    message: str = ""
    """One line on what went wrong."""
    measurements: dict[str, Measurement] = Field(default_factory=dict)
    lost: dict[str, str] = Field(default_factory=dict)
    """Contenders that could not start, each with one line on what went wrong."""
    hardware: dict[str, Any] = Field(default_factory=dict)
    """Device, peak, threads and versions as seen by the ranks; see `stacking.bench.hardware`."""


def run_trial(trial: Trial, folder: Path, launcher: Launcher, limit_seconds: float | None = None) -> TrialResult:
    """Measures in separate processes, with their files in ``folder``, and waits for the end.

    A contender that cannot start is left out, except the first one, and the others are measured.

    Args:
        folder: created if missing; receives ``trial.json``, ``result.json``, ``logs/`` and, for each contender that was
            left out, ``logs-CONTENDER/``.
        limit_seconds: stop an attempt that takes longer, and count it as failed; None: no limit.

    Raises:
        UserError: the folder cannot be written.
    """
    lost: dict[str, str] = {}
    while True:
        result = _attempt(trial, folder, launcher, limit_seconds)
        name = _starting(folder)
        if result.outcome == "measured" or name not in trial.contenders[1:]:
            return result.model_copy(update={"lost": lost})
        logs = folder / f"logs-{name}"
        shutil.rmtree(logs, ignore_errors=True)
        (folder / _LOGS).rename(logs)
        lost[name] = f"{result.outcome}: {result.message.replace(str(folder / _LOGS), str(logs))}"
        left = tuple(contender for contender in trial.contenders if contender != name)
        trial = trial.model_copy(update={"contenders": left})


def _starting(folder: Path) -> str:
    try:
        return (folder / STARTING).read_text()
    except OSError:  # no contender has been started
        return ""


def _attempt(trial: Trial, folder: Path, launcher: Launcher, limit_seconds: float | None) -> TrialResult:
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in (RESULT, STARTING):
            (folder / old).unlink(missing_ok=True)
        write_atomically(folder / TRIAL, trial.model_dump_json(indent=2) + "\n")
    job = Job(
        name="bench",
        argv=[sys.executable, "-m", "stacking.bench.worker", str(folder)],
        ranks=trial.planned.ranks,
        logs=folder / _LOGS,
        accelerator=trial.plan.launch.accelerator,
    )
    outcome = wait_for(launcher, job, limit_seconds)
    if outcome is None:
        return TrialResult(outcome="failed", message=f"took longer than {limit_seconds:g} s")
    if outcome.exit_code == 0:
        return record_of(TrialResult, read_json(folder / RESULT), folder / RESULT, "a result", "start again")
    if outcome.exit_code == OUT_OF_MEMORY:
        return TrialResult(outcome="out-of-memory", message=describe(outcome))
    if outcome.exit_code == _KILLED:
        message = f"{describe(outcome)}, as the kernel does when the host has no memory left"
        return TrialResult(outcome="out-of-memory", message=message)
    return TrialResult(outcome="failed", message=describe(outcome))


def read_trial(folder: Path) -> Trial:
    """Reads the trial that `run_trial` wrote.

    Raises:
        DamagedFile: it cannot be read.
    """
    return record_of(Trial, read_json(folder / TRIAL), folder / TRIAL, "a trial", "start it again")


def wait_for(launcher: Launcher, job: Job, limit_seconds: float | None) -> Outcome | None:
    """Waits for the job to end; None: it took too long and was stopped. No process is left running in any case."""
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
