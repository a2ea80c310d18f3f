"""Shows progress: a bar on a terminal, otherwise an occasional plain line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with (amount done, total amount)."""
    if not sys.stderr.isatty():  # without rich, which takes longer to import than growing does
        yield _LineProgress(label).update
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(label, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the newly done part of ``total``."""
    done = 0
    with bar(label) as update:

        def advance(more: int) -> None:
            nonlocal done
            done += more
            update(done, total)

        yield advance


class _LineProgress:
    """Progress for logs: one line every few seconds; work that ends before the first one prints nothing."""

    def __init__(self, label: str) -> None:
        self.label, self.shown = label, time.monotonic()

    def update(self, done: int, total: int) -> None:
        if time.monotonic() - self.shown >= _SECONDS_BETWEEN_LINES:
            self.shown = time.monotonic()
            print(f"{self.label}: {min(100, 100 * done // max(total, 1))} %", file=sys.stderr, flush=True)
