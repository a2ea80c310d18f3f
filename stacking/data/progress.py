"""A progress bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that is called with how much of ``total`` was just done."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.advance(task, done)
    else:
        yield _Lines(label, total).advance


class _Lines:
    """Progress for logs: one line every few seconds; work that ends before the first one stays silent."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done, self.shown = label, total, 0, time.monotonic()

    def advance(self, done: int) -> None:
        self.done += done
        if time.monotonic() - self.shown >= _SECONDS_BETWEEN_LINES:
            self.shown = time.monotonic()
            share = min(100, 100 * self.done // max(self.total, 1))
            print(f"{self.label}: {share} %", file=sys.stderr, flush=True)
