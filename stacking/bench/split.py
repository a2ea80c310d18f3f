"""Splits the time of a step into parts, with a synchronisation after every part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed.comm as deepspeed_comm
import torch

from stacking.bench.trial import Section

_COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_gather",
    "all_gather_into_tensor",
    "broadcast",
)
SECTIONS: tuple[Section, ...] = ("data", "forward", "backward", "communication", "optimizer")


def synchronise(device: torch.device) -> None:
    """Wait for all work started on ``device``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Seconds per section of one step; DeepSpeed's communication within a section counts as communication."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[Section, float] = dict.fromkeys(SECTIONS, 0.0)

    @contextmanager
    def section(self, name: Section) -> Iterator[None]:
        """Time the body as section ``name``."""
        synchronise(self._device)
        started, communicated = time.perf_counter(), self.seconds["communication"]
        yield
        synchronise(self._device)
        inner = self.seconds["communication"] - communicated
        self.seconds[name] += time.perf_counter() - started - inner

    @contextmanager
    def watching_collectives(self) -> Iterator[None]:
        """Make every DeepSpeed collective synchronous, and time it.

        This wraps DeepSpeed's backend object, through which all of its collectives pass. Waiting for a slower rank
        counts as communication too.
        """
        backend = getattr(deepspeed_comm.comm, "cdb", None)
        names = [name for name in _COLLECTIVES if callable(getattr(backend, name, None))]
        for name in names:
            setattr(backend, name, self._timed(getattr(backend, name)))
        try:
            yield
        finally:
            for name in names:
                delattr(backend, name)

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.section("communication"):
                handle = collective(*arguments, **named)
                if hasattr(handle, "wait"):
                    handle.wait()
            return handle

        return timed
