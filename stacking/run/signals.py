"""Signals that ask a command to end, from its first instruction to its last.

While modules are imported there is nothing to put in order: a signal ends the process at once, with a line. Then it
raises, so that files are left complete or absent. The controller of a run has handlers of its own besides.

Imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C; a scheduler or `kill`; a terminal that is closed; SLURM's warning before a time limit."""

received: list[signal.Signals] = []
"""Those that came and raised, oldest first: a library may have swallowed what they raised."""

_INTERRUPTED, _STOPPED = 130, 75


class Stopped(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")


def asking() -> tuple[signal.Signals, ...]:
    """The signals to handle: all of `ASKING`, but for SIGHUP under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in ASKING if number is not signal.SIGHUP or not ignored)


def exit_code(number: int) -> int:
    """130 for Ctrl-C, as shells have it; 75 for the others, after which the command can be repeated."""
    return _INTERRUPTED if number == signal.SIGINT else _STOPPED


def exit_on_signals() -> None:
    """From now on a signal ends the process at once, with a line and its exit code."""
    for number in asking():
        signal.signal(number, _exit)


def raise_on_signals() -> None:
    """From now on a signal raises `Stopped`."""
    for number in asking():
        signal.signal(number, _raise)


def _exit(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"stacking: {Stopped(number)}\n".encode())
    finally:
        os._exit(exit_code(number))


def _raise(number: int, frame: FrameType | None) -> None:
    received.append(signal.Signals(number))
    raise Stopped(number)
