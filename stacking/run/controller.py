"""Runs the unfinished phases of a run in order and records them in the journal."""

from __future__ import annotations

import logging
import shlex
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from stacking.errors import DamagedFile, Diverged, Preempted, UserError
from stacking.launch.job import Fate, Job, Launcher, Outcome, RunningJob
from stacking.launch.outcome import describe, diagnosed, explain, raise_for
from stacking.planning.elastic import most_ranks
from stacking.planning.plan import Plan, StagePlan
from stacking.run.checkpoints import checkpoints, step_of
from stacking.run.decisions import Decisions, decided_lengths, decided_operators, trial_losses
from stacking.run.early import Countdown, EarlyStart, to_start_early
from stacking.run.folder import RunFolder, continuation
from stacking.run.journal import Event
from stacking.run.lease import TOKEN_VARIABLE, Lease
from stacking.run.metrics import Follower
from stacking.run.phases import Phase, phases, unfinished
from stacking.run.progress import Progress
from stacking.run.retries import FINAL, Retries
from stacking.run.signals import asking, received
from stacking.terminal.units import counted

_LOG = logging.getLogger(__name__)
_POLL_SECONDS, _LONGEST_POLL = 0.1, 1.0
"""Seconds between two polls of a running phase: 1 % of its duration so far, within these bounds."""
_RETRIES = 3
"""Default number of retries if no user is present to resume the run."""
_ASK_RANKS = (-signal.SIGTERM, -signal.SIGUSR1, -signal.SIGHUP)
"""Exit codes of ranks that were asked to stop before their signal handlers were installed."""


class Controller:
    """Completes a run from the files on disk.

    The journal and the verified files are the only state, so a controller can be killed at any moment and another one
    resumes the run.

    Args:
        lease: the lease of the run's lock; child processes inherit it, and nothing is written without it.
        only: labels such as ``train:1`` of the phases to run. Empty: all.
    """

    def __init__(
        self,
        run: RunFolder,
        plan: Plan,
        launcher: Launcher,
        progress: Progress,
        lease: Lease,
        only: Collection[str] = (),
    ) -> None:
        self._run, self._plan, self._launcher, self._progress, self._lease = run, plan, launcher, progress, lease
        self._only = only
        self._running: RunningJob | None = None
        self._trains = False
        self._labels: Sequence[str] = ()
        self._early: EarlyStart | None = None
        self._stops: list[signal.Signals] = list(received)

    def run(self) -> None:
        """Runs every unfinished phase.

        Raises:
            Preempted: a signal stopped the run after a checkpoint; a scheduler's job is requeued.
            UserError: a phase rejected the user's input.
            LostLock: another controller has taken over the run; all processes of this one have ended.
            StackingError: a phase failed; the message names the first failed rank, its last error and its log.
        """
        with self._signals():
            try:
                self._labels = [phase.label for phase in self.unfinished()]
                for label in self._labels:
                    if label.startswith("consolidate:"):
                        self._start_early(self._phase(label))
                    self._complete(self._phase(label))
                    self._settle(label)
            except Preempted as preempted:
                raise Preempted(f"{preempted}; {self._what_follows()}") from None
            finally:
                self._drop_early()

    def unfinished(self) -> Sequence[Phase]:
        """Returns the requested phases after the last one with an undamaged output.

        Raises:
            UserError: a phase before a requested one is not done.
        """
        left = unfinished(phases(self._plan, self._run), self._damaged)
        wanted = [phase for phase in left if not self._only or phase.label in self._only]
        first, needed = (next((p for p in some if not p.optional), None) for some in (left, wanted))
        if first is not None and needed is not None and needed is not first:
            problem = f"comes after {first.label}, which is not done"
            raise UserError(f"--only {needed.label}", problem, f"run `{continuation(self._run)}` to do both")
        _LOG.debug("phases left: %s", ", ".join(phase.label for phase in wanted) or "none")
        return wanted

    def _phase(self, label: str) -> Phase:
        return next(phase for phase in phases(self._plan, self._run) if phase.label == label)

    def _start_early(self, phase: Phase, running_attempt: int | None = None) -> None:
        """Starts the ranks of the next stage unless they are; while ``phase`` trains, they wait for that attempt."""
        if self._early is not None or self._stops or not self._launcher.overlaps:
            return
        later = to_start_early(phase, self._labels, self._plan, self._run)
        if later is None:
            return
        try:
            ranks = self._ranks(later)
        except UserError:
            return  # the phase itself will raise it, and the stage before must not end for it
        attempt = self._next_attempt(later)
        job = self._job(later, attempt, ranks)
        if running_attempt is not None:
            job = replace(job, argv=[*job.argv, str(running_attempt)])
        running = self._launcher.start(job, inherited=[self._lease.descriptor])
        self._early = EarlyStart(
            label=later.label, attempt=attempt, ranks=ranks, running=running, since=time.monotonic()
        )
        _LOG.debug("%s: %d ranks started early", later.label, ranks)

    def _drop_early(self) -> None:
        """Ends ranks that were started early, if there are any."""
        if self._early is not None:
            self._early.running.kill()
            self._early = None

    def _settle(self, label: str) -> None:
        """Records what a phase has decided, and changes the plan accordingly."""
        for stage in self._plan.stages:
            if label == f"train:{stage.index}" and stage.until is not None:
                self._settle_length(stage)
            elif label == f"grow:{stage.index}" and stage.trial_updates:
                self._settle_operator(stage)

    def _settle_length(self, stage: StagePlan) -> None:
        """Records the length of a stage that has ended automatically, and shifts the following stages."""
        length = decided_lengths(self._run, self._plan).get(stage.index)
        if length is None:
            return
        self._record("decided", phase="train", stage=stage.index, steps=length)
        self._progress.note(f"{stage.name}: the held-out loss has levelled off after {length:,} updates")
        self._plan = Decisions({stage.index: length}, {}).applied_to(self._plan)

    def _settle_operator(self, stage: StagePlan) -> None:
        best, losses = decided_operators(self._run, self._plan)[stage.index], trial_losses(self._run, stage)
        self._record("decided", phase="grow", stage=stage.index, operator=best, losses=losses)
        shown = ", ".join(f"{name} {loss:.4f}" for name, loss in sorted(losses.items(), key=lambda item: item[1]))
        self._progress.note(f"{stage.name}: grown by {best}; held-out losses after the trial: {shown}")
        self._plan = Decisions({}, {stage.index: best}).applied_to(self._plan)

    def _complete(self, phase: Phase) -> None:
        settings = self._plan.launch
        default = _RETRIES if self._launcher.unattended else 0
        retries = Retries(default if settings.retries is None else settings.retries, settings.retry_seconds)
        while (outcome := self._attempt(phase)).exit_code != 0:
            pause = None if outcome.exit_code in FINAL else retries.pause(_progress_of(phase))
            if pause is None and phase.optional:
                self._skip(phase, outcome)
                return
            self._drop_early()
            if pause is None:
                raise_for(outcome)
                return
            self._progress.note(f"{describe(outcome)}; trying again in {pause:.0f} s")
            self._sleep(pause)
            if phase.is_done(self._damaged):
                return

    def _skip(self, phase: Phase, outcome: Outcome) -> None:
        """Records that the run goes on without an optional phase, and says so."""
        message = f"left out: {explain(outcome)}"
        self._record("skipped", phase=phase.name, stage=phase.stage, message=message)
        self._progress.note(f"{phase.label} is {message}; the run goes on without it")

    def _attempt(self, phase: Phase) -> Outcome:
        if self._stops:
            raise Preempted(f"stopped before {phase.name}")
        early = self._early if self._early and self._early.label == phase.label else None
        ranks = early.ranks if early else self._ranks(phase)
        attempt = early.attempt if early else self._next_attempt(phase)
        facts: dict[str, Any] = {"phase": phase.name, "stage": phase.stage, "world_size": ranks, "attempt": attempt}
        waited = {"waited_seconds": round(time.monotonic() - early.since, 3)} if early else {}
        self._record("started", **facts, **waited)
        _LOG.debug("%s: attempt %d on %d ranks: %s", phase.label, attempt, ranks, shlex.join(phase.argv))
        started = time.monotonic()
        with self._progress.phase(phase.name, phase.stage, _progress_of(phase)):
            if early is not None:
                self._early, running = None, early.running
            else:
                job = self._job(phase, attempt, ranks)
                running = self._launcher.start(job, inherited=[self._lease.descriptor])
            outcome = self._wait(phase, running, attempt)
        facts["seconds"] = round(time.monotonic() - started, 3)
        if outcome.exit_code == 0:
            self._record("finished", **facts)
            phase.forget_damage()
        elif outcome.exit_code == Diverged.exit_code:  # even after a signal: a requeued job would only repeat it
            self._record("failed", **facts, message=explain(outcome), diverged=True)
        elif self._stops or self._was_stopped(outcome):
            who = self._stops[0].name if self._stops else "a signal to its ranks"
            failed = outcome.exit_code > 0 and outcome.exit_code != Preempted.exit_code
            self._record("preempted", **facts, message=f"stopped by {who}{f' ({describe(outcome)})' if failed else ''}")
            raise Preempted(f"{who} stopped {phase.name}")
        else:
            node = {"node": outcome.host} if outcome.host else {}
            self._record("failed", **facts, **node, message=describe(outcome))
        return outcome

    def _next_attempt(self, phase: Phase) -> int:
        """Returns the next attempt's number, counting the journal and, in case it lost lines, existing logs."""
        logs = self._run.stage(self._plan.stages[phase.stage].name).logs
        attempt = self._run.journal.attempts(phase.name, phase.stage) + 1
        while any(logs.glob(f"{phase.name}-{attempt}.*.log")):
            attempt += 1
        return attempt

    def _was_stopped(self, outcome: Outcome) -> bool:
        """Returns whether only the ranks were asked to stop, as SLURM does in a partition with a grace time."""
        return outcome.exit_code in (Preempted.exit_code, *_ASK_RANKS)

    def _ranks(self, phase: Phase) -> int:
        """Returns the number of ranks of ``phase``: the planned one or, if the recipe is elastic, as many as fit."""
        if not phase.trains:
            return phase.ranks
        room = self._launcher.capacity(self._plan.launch.accelerator)
        if room is None or room >= phase.ranks:
            return phase.ranks
        stage = self._plan.stages[phase.stage]
        if not self._plan.launch.elastic:
            problem = f"is false: {stage.name} is planned for {phase.ranks} ranks, but only {room} are available"
            raise UserError(f"{self._plan.recipe}: launch.elastic", problem, "request more nodes, or set it to true")
        self._progress.note(
            f"{stage.name}: {room} of {counted(phase.ranks, 'rank')} available, continuing with the same updates"
        )
        return most_ranks(stage, room)

    def _job(self, phase: Phase, attempt: int, ranks: int) -> Job:
        stage = self._plan.stages[phase.stage]
        return Job(
            name=f"{phase.name}-{attempt}",
            argv=phase.argv,
            ranks=ranks,
            logs=self._run.stage(stage.name).logs,
            accelerator=self._plan.launch.accelerator if phase.trains else "cpu",
            environment={TOKEN_VARIABLE: self._lease.token},
        )

    def _wait(self, phase: Phase, running: RunningJob, attempt: int) -> Outcome:
        """Shows the phase's progress until it ends; kills its processes if anything fails here."""
        self._running, self._trains, started = running, phase.name == "train", time.monotonic()
        if self._stops:
            running.stop()
        stage = self._plan.stages[phase.stage]
        metrics, countdown = Follower(self._run.stage(stage.name).metrics), Countdown(stage)
        ending = False
        try:
            while True:
                outcome = running.poll()
                for record in metrics.poll() if phase.name == "train" else ():
                    self._progress.update(record)
                    countdown.note(record)
                if outcome is not None:
                    return diagnosed(outcome)
                if not ending and (ending := countdown.is_near):
                    self._start_early(phase, attempt)
                self._lease.renew_now_and_then()
                longest = _POLL_SECONDS if ending else _LONGEST_POLL  # the next ranks wait for the end
                time.sleep(min(longest, max(_POLL_SECONDS, 0.01 * (time.monotonic() - started))))
        finally:
            metrics.close()
            running.kill()
            self._running = None

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stops and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _what_follows(self) -> str:
        """Requeues the job after a stop, unless Ctrl-C asked for it; returns how the run continues."""
        fate = Fate() if signal.SIGINT in self._stops else self._launcher.requeue()
        if fate.restarts:
            return fate.text
        advice = f"run `{continuation(self._run)}` to continue"
        return f"{fate.text}; {advice}" if fate.text else advice

    def _record(self, event: Event, **facts: Any) -> None:
        """Appends to the journal, after checking that this controller still holds the run."""
        self._lease.renew()
        self._run.journal.append(event, **facts)

    def _damaged(self, damage: DamagedFile) -> None:
        self._record("damaged", phase="verify", stage=-1, message=str(damage))
        self._progress.note(f"{damage.path}: {damage.problem}; set aside, resuming from the last good state before it")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Installs handlers: the first signal requests a checkpoint, a second SIGINT kills the ranks."""
        before = {number: signal.signal(number, self._stop) for number in asking()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stops.append(signal.Signals(number))
        if self._running is None:
            return
        if self._stops.count(signal.SIGINT) > 1:
            self._running.kill()
        elif len(self._stops) == 1:
            waits = "waiting for a checkpoint" if self._trains else "stopping"
            self._progress.note(f"{self._stops[0].name}: {waits} (Ctrl-C twice to stop at once)")
            self._running.stop()


def _progress_of(phase: Phase) -> int:
    """Returns the step of the newest checkpoint; 0 without one."""
    found = checkpoints(phase.output) if phase.name == "train" else []
    return step_of(found[-1]) if found else 0
