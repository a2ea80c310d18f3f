"""Measures the time of steps and of their parts, a contender's memory, and the operators that really ran."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import deepspeed.comm as deepspeed_comm
import torch
from torch.profiler import ProfilerActivity, profile

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
SECTIONS: tuple[Section, ...] = get_args(Section)
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ATTENTION: Mapping[str, str] = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash for CPU",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_fused_attention_overrideable": "fused",
    "aten::_scaled_dot_product_attention_math": "plain (unfused)",
    "aten::_scaled_dot_product_attention_math_for_mps": "plain (unfused)",
    "aten::_flash_attention_forward": "flash",
    "aten::_efficient_attention_forward": "memory-efficient",
    "flash_attn::_flash_attn_varlen_forward": "flash-attn varlen",
}
"""Operators of `scaled_dot_product_attention` and the like; the first one found in a step is the one in use."""
NORM: Mapping[str, str] = {
    "aten::native_layer_norm": "torch",
    "aten::_fused_rms_norm": "torch",
    "FusedLayerNormAffineFunction": "apex",
    "FusedLayerNormFunction": "apex",
}


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has finished all work so far; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Marks:
    """Time stamps on the device: on a GPU, events in its stream, so that recording does not synchronise."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        synchronise(device)
        self.mark()

    def mark(self) -> None:
        """Records a time stamp after all work so far."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Returns the seconds between consecutive time stamps; waits for the last one."""
        synchronise(self._device)
        if self._device.type == "cuda":
            events = zip(self._events, self._events[1:], strict=False)
            return [before.elapsed_time(after) / 1000 for before, after in events]
        return [after - before for before, after in zip(self._times, self._times[1:], strict=False)]


class Stopwatch:
    """Seconds per section of one step; DeepSpeed's communication within a section counts as communication."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[Section, float] = dict.fromkeys(SECTIONS, 0.0)

    @contextmanager
    def section(self, name: Section) -> Iterator[None]:
        """Times the body as section ``name``."""
        synchronise(self._device)
        started, communicated = time.perf_counter(), self.seconds["communication"]
        yield
        synchronise(self._device)
        inner = self.seconds["communication"] - communicated
        self.seconds[name] += time.perf_counter() - started - inner

    @contextmanager
    def watching_collectives(self) -> Iterator[None]:
        """Makes every DeepSpeed collective synchronous, and times it.

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


class MemoryMeter:
    """Peak bytes of one contender on this rank: what it keeps, plus the largest increase within a window.

    On a GPU this is what torch has allocated; on a CPU it is the resident memory beyond that before the contender was
    created, so libraries and other contenders do not count.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda"
        self._return_free_memory()
        self._before = self._now()
        self._kept = self.most = 0
        self._at_start = 0

    def ready(self) -> None:
        """Marks the contender as warm: what it holds now is permanent."""
        self._return_free_memory()
        self._kept = max(0, self._now() - self._before)
        self.most = max(self.most, self._kept)

    def start(self, exact: bool) -> None:
        """Begin a window.

        Args:
            exact: first release the allocator's cached memory, so that the window's own allocations show. That slows
                down the next step.
        """
        if exact:
            self._return_free_memory()
        self._reset_peak()
        self._at_start = self._now()

    def stop(self) -> None:
        """Ends the window and keeps its peak if it is the highest so far."""
        self.most = max(self.most, self._kept + self._peak() - self._at_start)

    def _now(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._on_gpu else _status("VmRSS")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) if self._on_gpu else _status("VmHWM")

    def _return_free_memory(self) -> None:
        """Returns freed memory to the system: on a CPU, the C library keeps freed tensors resident."""
        if not self._on_gpu and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)

    def _reset_peak(self) -> None:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            _RESET.write_text("5")  # resets VmHWM to VmRSS
        except OSError:
            return  # the peak of the whole process is used for the window


def _status(key: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def operators_of(step: Callable[[], object], device: torch.device, rows: int = 25) -> tuple[set[str], str]:
    """Runs ``step`` under the profiler; returns the names of its operators and a table of the ``rows`` slowest."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        step()
    averages = profiler.key_averages()
    table = averages.table(sort_by="self_cuda_time_total" if cuda else "self_cpu_time_total", row_limit=rows)
    return {event.key for event in averages}, table


def observed(operators: Collection[str]) -> dict[str, str]:
    """Returns which attention and LayerNorm ``operators`` show; empty if they show none."""
    found = {}
    for name, table in (("attention", ATTENTION), ("layer norm", NORM)):
        kernel = next((kernel for operator, kernel in table.items() if operator in operators), None)
        if kernel is not None:
            found[name] = kernel
    return found


def named(chosen: Mapping[str, str], ran: Mapping[str, str]) -> dict[str, str]:
    """Returns what was chosen, and what ran where that differs: SDPA chooses among several kernels."""
    words = {kind: name if ran.get(kind, name) == name else f"{name}: {ran[kind]}" for kind, name in chosen.items()}
    return {**ran, **words}
