"""Runs the phases that a run has not finished yet, one after the other, and records what happened."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from stacking.errors import DamagedFile, Diverged, Preempted, UserError
from stacking.launch.job import Job, Launcher, Outcome, RunningJob
from stacking.launch.outcome import describe, explain, raise_for
from stacking.planning.elastic import most_ranks
from stacking.planning.plan import Plan
from stacking.run.checkpoints import checkpoints, step_of
from stacking.run.folder import RunFolder
from stacking.run.metrics import Follower
from stacking.run.phases import Phase, phases, unfinished
from stacking.run.progress import Progress
from stacking.run.retries import FINAL, Retries

_POLL_SECONDS = 0.1
_RETRIES = 3
"""Where nobody is there to try again by hand."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Controller:
    """Takes a run to its end from whatever is on disk.

    Nothing but the journal and the verified files says where the run stands, so that a controller may be killed at
    any moment and another one goes on.

    Args:
        lock: the descriptor of the run's lock; whatever is started keeps it open.
        only: ``train:1`` and the like; nothing else is run. Empty: everything.
    """

    def __init__(
        self,
        run: RunFolder,
        plan: Plan,
        launcher: Launcher,
        progress: Progress,
        lock: int,
        only: Collection[str] = (),
    ) -> None:
        self._run, self._plan, self._launcher, self._progress, self._lock = run, plan, launcher, progress, lock
        self._only = only
        self._running: RunningJob | None = None
        self._stops: list[signal.Signals] = []

    def run(self) -> None:
        """Run every unfinished phase.

        Raises:
            Preempted: SIGINT, SIGTERM or SIGUSR1 came; training has left a checkpoint, a scheduler's job is requeued.
            UserError: a phase found the user's input wrong.
            StackingError: a phase failed; names the first rank that did, its last words and its log.
        """
        with self._signals():
            try:
                for phase in self.unfinished():
                    self._complete(phase)
            except Preempted as preempted:
                raise Preempted(f"{preempted}; {self._what_goes_on()}") from None

    def unfinished(self) -> Sequence[Phase]:
        """The phases after the last one whose output is there and undamaged, of those that are wanted.

        Raises:
            UserError: something that comes before a wanted phase is not done.
        """
        left = unfinished(phases(self._plan, self._run), self._damaged)
        wanted = [phase for phase in left if not self._only or phase.label in self._only]
        if wanted and wanted[0] is not left[0]:
            problem = f"comes after {left[0].label}, which is not done"
            raise UserError(f"--only {wanted[0].label}", problem, f"`stacking resume {self._run.path}` does both")
        return wanted

    def _complete(self, phase: Phase) -> None:
        """Run ``phase``, again after crashes, until it is done."""
        settings = self._plan.launch
        default = _RETRIES if self._launcher.unattended else 0
        retries = Retries(default if settings.retries is None else settings.retries, settings.retry_seconds)
        while (outcome := self._attempt(phase)).exit_code != 0:
            pause = None if outcome.exit_code in FINAL else retries.pause(_progress_of(phase))
            if pause is None:
                raise_for(outcome)
                return
            self._progress.note(f"{describe(outcome)}; trying again in {pause:.0f} s")
            self._sleep(pause)
            if phase.is_done(self._damaged):
                return

    def _attempt(self, phase: Phase) -> Outcome:
        """Run ``phase`` once; its failure is in the journal."""
        if self._stops:
            raise Preempted(f"stopped before {phase.name}")
        journal, ranks = self._run.journal, self._ranks(phase)
        attempt = journal.attempts(phase.name, phase.stage) + 1
        facts: dict[str, Any] = {"phase": phase.name, "stage": phase.stage, "world_size": ranks, "attempt": attempt}
        journal.append("started", **facts)
        started = time.monotonic()
        with self._progress.phase(phase.name, phase.stage):
            outcome = self._wait(phase, self._launcher.start(self._job(phase, attempt, ranks), inherited=[self._lock]))
        facts["seconds"] = round(time.monotonic() - started, 3)
        if outcome.exit_code == 0:
            journal.append("finished", **facts)
        elif outcome.exit_code == Diverged.exit_code:  # also after a signal: a requeued job would only repeat it
            journal.append("failed", **facts, message=explain(outcome), diverged=True)
        elif self._stops or self._was_stopped(outcome):
            who = self._stops[0].name if self._stops else "a signal to its ranks"
            failed = outcome.exit_code > 0 and outcome.exit_code != Preempted.exit_code
            journal.append(
                "preempted", **facts, message=f"{describe(outcome)}; {who}" if failed else f"stopped by {who}"
            )
            raise Preempted(f"{who} stopped {phase.name}")
        else:
            journal.append("failed", **facts, message=describe(outcome))
        return outcome

    def _was_stopped(self, outcome: Outcome) -> bool:
        """Whether a scheduler asked the ranks alone to end, as SLURM does where a partition has a grace time."""
        asked = (-signal.SIGTERM, -signal.SIGUSR1) if self._launcher.unattended else ()
        return outcome.exit_code in (Preempted.exit_code, *asked)

    def _ranks(self, phase: Phase) -> int:
        """How many ranks ``phase`` gets: the planned ones or, if the recipe allows, as many as there is room for."""
        if phase.name != "train":
            return phase.ranks
        room = self._launcher.capacity(self._plan.launch.accelerator)
        if room is None or room >= phase.ranks:
            return phase.ranks
        stage = self._plan.stages[phase.stage]
        if not self._plan.launch.elastic:
            problem = f"is false: {stage.name} is planned for {phase.ranks} ranks and there is room for {room}"
            raise UserError(f"{self._plan.recipe}: launch.elastic", problem, "ask for more nodes, or set it to true")
        self._progress.note(f"{stage.name}: room for {room} of {phase.ranks} ranks, going on with the same updates")
        return most_ranks(stage, room)

    def _job(self, phase: Phase, attempt: int, ranks: int) -> Job:
        stage = self._plan.stages[phase.stage]
        return Job(
            name=f"{phase.name}-{attempt}",
            argv=phase.argv,
            ranks=ranks,
            logs=self._run.stage(stage.name).logs,
            accelerator=self._plan.launch.accelerator if phase.name == "train" else "cpu",
        )

    def _wait(self, phase: Phase, running: RunningJob) -> Outcome:
        """Show what the phase measures until it has ended; nothing of it is left running, whatever happens here."""
        self._running = running
        if self._stops:
            running.stop()
        metrics = Follower(self._run.stage(self._plan.stages[phase.stage].name).metrics)
        try:
            while True:
                outcome = running.poll()
                for record in metrics.poll() if phase.name == "train" else ():
                    self._progress.update(record)
                if outcome is not None:
                    return outcome
                time.sleep(_POLL_SECONDS)
        finally:
            metrics.close()
            running.kill()
            self._running = None

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stops and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _what_goes_on(self) -> str:
        """After a stop: what will take the run further. Ctrl-C is a person's, who wants it to end."""
        requeued = "" if signal.SIGINT in self._stops else self._launcher.requeue()
        return requeued or f"`stacking resume {self._run.path}` goes on"

    def _damaged(self, damage: DamagedFile) -> None:
        self._run.journal.append("damaged", phase="verify", stage=-1, message=str(damage))
        self._progress.note(f"{damage.path}: {damage.problem}; set aside, going on from what is good before it")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal asks the ranks for a checkpoint; a second SIGINT ends them at once."""
        before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
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
            self._progress.note(f"{self._stops[0].name}: waiting for a checkpoint (Ctrl-C twice to stop at once)")
            self._running.stop()


def _progress_of(phase: Phase) -> int:
    """The step of the newest checkpoint; 0 for a phase that has none."""
    found = checkpoints(phase.output) if phase.name == "train" else []
    return step_of(found[-1]) if found else 0
