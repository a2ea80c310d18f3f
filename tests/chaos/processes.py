"""A controller that is disturbed while it works: what it is doing, which process to signal, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Literal

import psutil

from tests.chaos.workshop import PATIENCE, Ended, command, environment

Target = Literal["controller", "rank", "all"]
TARGETS: tuple[Target, ...] = ("controller", "rank", "all")
FIRST_SECOND = "the controller's first second"
ANY = "any phase after it"
CREATING = "the run being made"
SAVING = "train, a checkpoint being written"


class Controller:
    """``stacking run`` or ``stacking resume``, started and watched.

    Args:
        log: where its output goes; a file, as a pipe would keep the ranks' output too.
    """

    def __init__(self, run: Path, arguments: list[str | Path], log: Path, **variables: str) -> None:
        self._run, self._log = run, log
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                command(*arguments),
                env=environment(**variables),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started = time.monotonic()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def phase(self) -> str:
        """What it is doing at the moment, in the terms of the table."""
        if time.monotonic() - self.started < 1:
            return FIRST_SECOND
        event, phase, stage = last_event(self._run)
        if event is None:
            return CREATING
        if event != "started":
            return "between phases"
        if phase != "train":
            return str(phase)
        folder = next(self._run.glob(f"{stage}-L*"), self._run)
        if (folder / "checkpoints" / ".saving").exists():
            return SAVING
        return "train" if (folder / "metrics.jsonl").exists() else "train, before its first update"

    def wait_for(self, phase: str, patience: float) -> bool:
        """Wait until it does ``phase``; False if it ended or took too long."""
        deadline = time.monotonic() + patience
        while self.running and time.monotonic() < deadline:
            if phase == SAVING and any(self._run.glob("*/checkpoints/.saving")):
                return True
            now = self.phase()
            if now == phase or (phase == ANY and now != FIRST_SECOND):
                return True
            time.sleep(0.0005 if phase == SAVING else 0.01)
        return False

    def send(self, number: signal.Signals, target: Target, pick: float) -> bool:
        """Send a signal; False if there was no process of that kind.

        Args:
            pick: which of several ranks, from 0 to 1.
        """
        with contextlib.suppress(psutil.NoSuchProcess):
            me = psutil.Process(self._process.pid)
            ranks = me.children(recursive=True)
            victims = {"controller": [me], "rank": ranks[int(pick * len(ranks)) :][:1], "all": [me, *ranks]}[target]
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.send_signal(number)
            return bool(victims)
        return False

    def wait(self) -> Ended:
        """Wait for it to end; if it hangs, kill it with everything that it started."""
        try:
            code: int | None = self._process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        self.end()
        return Ended(code, self._log.read_text(errors="replace"))

    def end(self) -> None:
        """Kill it and its processes, if they exist."""
        if self._process.poll() is not None:
            return
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def last_event(run: Path) -> tuple[str | None, str | None, int | None]:
    """Kind, phase and stage of the journal's last complete line; None where there is no journal yet."""
    try:
        lines = (run / "journal.jsonl").read_bytes().split(b"\n")
    except OSError:
        return None, None, None
    if len(lines) < 2:
        return None, None, None
    event = json.loads(lines[-2])
    return event["event"], event.get("phase"), event.get("stage")


def begun(run: Path) -> bool:
    """Whether the run is continued by ``stacking resume``, not ``stacking run``."""
    return last_event(run)[0] is not None


def outlived(run: Path) -> list[str]:
    """Commands of the run's processes that are still alive a second after its controller has ended."""
    time.sleep(1)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if process.pid != os.getpid() and str(run) in words:
                found.append(" ".join(words[-4:]))
    return found
