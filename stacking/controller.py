"""Runs the phases that a run has not finished yet, one after the other, and records what happened."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from stacking.errors import DamagedFile, Preempted
from stacking.launch.job import Job, Launcher, Outcome, RunningJob
from stacking.launch.outcome import describe, raise_for
from stacking.metrics import Follower
from stacking.phases import Phase, phases
from stacking.plan import Plan
from stacking.progress import Progress
from stacking.runfolder import RunFolder

_POLL_SECONDS = 0.1


class Controller:
    """Takes a run to its end from whatever is on disk.

    Nothing but the journal and the verified files says where the run stands, so that a controller may be killed at
    any moment and another one goes on.
    """

    def __init__(self, run: RunFolder, plan: Plan, launcher: Launcher, progress: Progress, lock: int) -> None:
        self._run, self._plan, self._launcher, self._progress, self._lock = run, plan, launcher, progress, lock
        self._running: RunningJob | None = None
        self._stops = 0

    def run(self) -> None:
        """Run every unfinished phase.

        Raises:
            Preempted: SIGINT or SIGTERM came; training has left a checkpoint.
            UserError: a phase found the user's input wrong.
            StackingError: a phase failed; names the first rank that did, its last words and its log.
        """
        with self._signals():
            for phase in self.unfinished():
                self._execute(phase)

    def unfinished(self) -> list[Phase]:
        """The phases after the last one whose output is there and undamaged.

        A report may be written at any time, so it proves nothing, and it is written again at the end.
        """
        chain = phases(self._plan, self._run)
        for position, phase in reversed(list(enumerate(chain))):
            if phase.name != "report" and phase.is_done(self._damaged):
                return chain[position + 1 :]
        return chain

    def _execute(self, phase: Phase) -> None:
        if self._stops:
            raise Preempted(f"stopped before {phase.name}; `stacking resume {self._run.path}` goes on")
        journal, facts = self._run.journal, self._facts(phase)
        attempt = journal.attempts(phase.name, phase.stage) + 1
        journal.append("started", **facts, attempt=attempt)
        started = time.monotonic()
        with self._progress.phase(phase.name, phase.stage):
            outcome = self._wait(phase, self._launcher.start(self._job(phase, attempt), inherited=[self._lock]))
        facts |= {"attempt": attempt, "seconds": round(time.monotonic() - started, 3)}
        if outcome.exit_code == 0:
            journal.append("finished", **facts)
        elif self._stops or outcome.exit_code == Preempted.exit_code:
            journal.append("preempted", **facts)
            raise Preempted(f"stopped in {phase.name}; `stacking resume {self._run.path}` goes on")
        else:
            journal.append("failed", **facts, message=describe(outcome))
            raise_for(outcome)

    def _facts(self, phase: Phase) -> dict[str, Any]:
        return {"phase": phase.name, "stage": phase.stage, "world_size": phase.ranks}

    def _job(self, phase: Phase, attempt: int) -> Job:
        stage = self._plan.stages[phase.stage]
        training = phase.name == "train"
        return Job(
            name=f"{phase.name}-{attempt}",
            argv=phase.argv,
            ranks=phase.ranks,
            logs=self._run.stage(stage.name).logs,
            accelerator=self._plan.launch.accelerator if training else "cpu",
        )

    def _wait(self, phase: Phase, running: RunningJob) -> Outcome:
        """Show what the phase measures until it has ended; nothing of it is left running, whatever happens here."""
        self._running = running
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

    def _damaged(self, damage: DamagedFile) -> None:
        self._run.journal.append("damaged", phase="verify", stage=-1, message=str(damage))
        self._progress.note(f"{damage.path}: {damage.problem}; set aside, going on from what is good before it")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask the ranks for a checkpoint; a second one ends them at once."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stops += 1
        if self._running is None:
            return
        if self._stops > 1:
            self._running.kill()
        else:
            self._progress.note("asked to stop: waiting for a checkpoint (once more to stop at once)")
            self._running.stop()
