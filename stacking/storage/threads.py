"""Processes items with a few threads; suited to reading, hashing and writing, which release the GIL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from stacking.hardware.cores import usable_cores

T = TypeVar("T")

_MOST_THREADS = 8
"""Maximum number of threads; more would only wait for the disk."""


def thread_count(sharing: int = 1) -> int:
    """Returns the number of threads for this process's share of the cores, at least two to overlap I/O and computation.

    Args:
        sharing: the number of processes on this host that do the same at the same time.
    """
    return max(2, min(_MOST_THREADS, usable_cores() // sharing))


def each(work: Callable[[T], None], items: Iterable[T], threads: int | None = None) -> None:
    """Calls ``work`` with every item, in order, as threads become free.

    Raises:
        Exception: the first exception of ``work`` or ``items``; no further item is started after it.
    """
    iterator, taking = iter(items), threading.Lock()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while True:
                with taking:
                    if errors:
                        return
                    item = next(iterator)
                work(item)
        except StopIteration:
            return
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=run, daemon=True) for _ in range((threads or thread_count()) - 1)]
    for thread in others:
        thread.start()
    try:
        run()
        for thread in others:
            thread.join()
    except BaseException as error:  # an interruption of this thread also ends the others
        errors.append(error)
        raise
    if errors:
        raise errors[0]
