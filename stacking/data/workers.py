"""Spreads work over processes, with results in the order of the tasks and a bounded number of tasks in flight."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from stacking.errors import StackingError

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """``count`` processes; a single worker is this process, without an ``executor``."""

    count: int
    executor: ProcessPoolExecutor | None

    def map(self, function: Callable[..., Result], tasks: Iterable[Task], *constants: Any) -> Iterator[Result]:
        """Yields ``function(task, *constants)`` of each task, in order; holds at most two tasks beyond the workers."""
        if self.executor is None:
            yield from (function(task, *constants) for task in tasks)
            return
        pending: deque[Future[Result]] = deque()
        for task in tasks:
            pending.append(self.executor.submit(function, task, *constants))
            if len(pending) >= self.count + 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Pool(ProcessPoolExecutor):
    """A pool whose processes, which ``submit`` starts, ignore SIGINT: Ctrl-C is for the parent, which ends them."""

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(function, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def worker_processes(count: int) -> Iterator[Workers]:
    """Starts fresh processes, spawned because forking with threads is unsafe; they end even if their parent is killed.

    Raises:
        StackingError: a worker was killed.
    """
    if count == 1:
        yield Workers(1, None)
        return
    context = multiprocessing.get_context("spawn")
    executor = _Pool(count, mp_context=context, initializer=_start, initargs=(os.getpid(),))
    try:
        yield Workers(count, executor)
    except BrokenProcessPool:
        raise StackingError("a worker process was killed, perhaps for its memory; try fewer --workers") from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start(parent: int) -> None:
    """Prepares a worker: gives the tokenizer one thread, and makes the process end with its parent."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
