"""Handles signals that stop a command, from its first instruction to its last.

While modules are being imported there is nothing to clean up, and a signal ends the process at once with one line.
Later it raises, so that files are left complete or absent. A run's controller installs handlers of its own.

Imports only fast modules.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C; a scheduler or `kill`; a closed terminal; SLURM's warning before a time limit."""

received: list[signal.Signals] = []
"""Signals that raised, oldest first; kept because a library may swallow the exception."""

_INTERRUPTED, _STOPPED = 130, 75


class Stopped(BaseException):
    """Raised when a signal stops the command."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")


def asking() -> tuple[signal.Signals, ...]:
    """Returns the signals to handle: all of `ASKING`, except SIGHUP under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in ASKING if number is not signal.SIGHUP or not ignored)


def exit_code(number: int) -> int:
    """Returns 130 for Ctrl-C, as in shells, and 75 for the others, after which the command can be repeated."""
    return _INTERRUPTED if number == signal.SIGINT else _STOPPED


def exit_on_signals() -> None:
    """Makes signals end the process at once, with one line and their exit code."""
    for number in asking():
        signal.signal(number, _exit)


def raise_on_signals() -> None:
    """Makes signals raise `Stopped`."""
    for number in asking():
        signal.signal(number, _raise)


def _exit(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"stacking: {Stopped(number)}\n".encode())
    finally:
        os._exit(exit_code(number))


def ignore_signals() -> None:
    """Ignores signals from now on: the command has ended and its exit code is decided.

    Python resets handlers of its own to the default while it shuts down, but leaves ignored signals ignored.
    """
    for number in asking():
        signal.signal(number, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> None:
    received.append(signal.Signals(number))
    raise Stopped(number)
