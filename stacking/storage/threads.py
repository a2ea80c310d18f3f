"""Work on many items by a few threads: for reading, hashing and writing, which all let other threads run meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

_MOST_THREADS = 8
"""More would only wait for the disk."""


def thread_count(sharing: int = 1) -> int:
    """Threads that keep this process's share of the cores busy, at least two: one computes while another one waits.

    Args:
        sharing: processes on this computer that do the same at the same time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(_MOST_THREADS, cores // sharing))


def each(work: Callable[[T], None], items: Iterable[T], threads: int | None = None) -> None:
    """Call ``work`` with every item; they are taken in their order, as threads become free.

    Raises:
        Exception: the first that ``work`` or ``items`` raised; nothing new was begun after it.
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
    except BaseException as error:  # an interruption of this thread ends the others, too
        errors.append(error)
        raise
    if errors:
        raise errors[0]
