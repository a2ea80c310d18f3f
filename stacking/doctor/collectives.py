"""Times collectives; a launcher starts `python -m stacking.doctor.collectives FOLDER` on every rank.

FOLDER holds ask.json (`ranks.Ask`); rank 0 writes the fields of `facts.Collectives` to FOLDER/found.json.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from stacking.doctor.ranks import ASK, FOUND
from stacking.launch.mpi import log_to_file
from stacking.launch.rank import own_gpu, run_rank
from stacking.storage.files import write_json

_PATIENCE = timedelta(seconds=60)
_BATCHES = 5
"""Batches per operation; each batch is timed as a whole, and the median counts."""
_BATCH_SECONDS = 0.04
_TOO_LONG = 2.0
"""An operation that takes longer than this many seconds is not measured with larger buffers."""
_PERIOD = 251
"""Modulus of the test pattern: small enough for sums over ranks to be exact in fp32."""
_EXCHANGES = 30


class Operation(NamedTuple):
    """A collective operation; ``whole`` is the buffer of all ranks together, ``part`` that of one rank."""

    run: Callable[[Tensor, Tensor], Any]
    """Called with (whole, part)."""
    passes: int
    """How often each byte crosses a link of a ring, in units of (ranks - 1) / ranks."""
    reduces: bool
    result_is_part: bool


def _reduce_scatter(whole: Tensor, part: Tensor) -> None:
    getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)(part, whole)


def _all_gather(whole: Tensor, part: Tensor) -> None:
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(whole, part)


OPERATIONS: dict[str, Operation] = {
    "all-reduce": Operation(lambda whole, part: dist.all_reduce(whole), 2, True, False),
    "reduce-scatter": Operation(_reduce_scatter, 1, True, True),
    "all-gather": Operation(_all_gather, 1, False, False),
}
"""Bus bandwidth as in NVIDIA's nccl-tests: bytes x passes x (ranks - 1) / ranks / seconds."""


class Bench:
    """Measures on one device, in lockstep with all other ranks."""

    def __init__(self, device: torch.device, control: dist.ProcessGroup | None, nodes: int) -> None:
        self.device, self._control, self._nodes = device, control, nodes
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.wrong: list[str] = []
        self.refused: list[str] = []

    def measure(self, sizes: Sequence[int]) -> list[dict[str, Any]]:
        """Measures every operation at every size (bytes); all ranks return the same rows."""
        found = []
        for name, operation in OPERATIONS.items():
            for size in sizes:
                try:
                    seconds = self._measure_one(name, operation, size)
                except (RuntimeError, NotImplementedError) as error:
                    if not self._refuses(error):
                        raise
                    self.refused.append(f"{name} ({' '.join(str(error).split())[:120]})")
                    break
                found.append(self._record(name, operation, size, seconds))
                if seconds > _TOO_LONG:
                    break
        return found

    def latency(self) -> float:
        """Returns the seconds that an all-reduce of one number takes."""
        one = torch.zeros(1, device=self.device)
        return self._time(lambda: dist.all_reduce(one))

    def _measure_one(self, name: str, operation: Operation, size: int) -> float:
        count = max(1, size // 4 // self.ranks)
        whole, part = torch.empty(count * self.ranks, device=self.device), torch.empty(count, device=self.device)
        self._fill(operation, whole, part)
        operation.run(whole, part)
        if self._slowest(float(not self._is_right(operation, whole, part))):
            self.wrong.append(f"{name} of {size:,} bytes")
        whole.zero_()  # repeated sums would overflow
        return self._time(lambda: operation.run(whole, part))

    def _record(self, name: str, operation: Operation, size: int, seconds: float) -> dict[str, Any]:
        size = max(1, size // 4 // self.ranks) * self.ranks * 4
        carried = size * operation.passes * (self.ranks - 1) / self.ranks
        facts = {"operation": name, "bytes": size, "ranks": self.ranks, "nodes": self._nodes}
        return {**facts, "seconds": seconds, "bandwidth": carried / seconds}

    def _time(self, run: Callable[[], Any]) -> float:
        """Returns the seconds of one run on the slowest rank."""
        self._batch(run, 1)  # warm-up: the first use opens connections and lets NCCL plan
        often = max(1, min(200, int(_BATCH_SECONDS / max(self._batch(run, 1), 1e-9))))
        return median(self._batch(run, often) for _ in range(_BATCHES if often > 1 else 3))

    def _batch(self, run: Callable[[], Any], often: int) -> float:
        dist.barrier()
        self._finish()
        started = time.perf_counter()
        for _ in range(often):
            run()
        self._finish()
        return self._slowest((time.perf_counter() - started) / often)

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _slowest(self, value: float) -> float:
        """Returns the largest ``value`` of all ranks, so that all ranks decide alike."""
        largest = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._control)
        return float(largest)

    def _pattern(self, start: int, count: int) -> Tensor:
        return (torch.arange(start, start + count, device=self.device) % _PERIOD).float()

    def _fill(self, operation: Operation, whole: Tensor, part: Tensor) -> None:
        """Fills this rank's input: the position, plus the rank's number where the operation sums."""
        part.copy_(self._pattern(self.rank * len(part), len(part)))
        whole.copy_(self._pattern(0, len(whole)) + self.rank if operation.reduces else torch.zeros_like(whole))

    def _is_right(self, operation: Operation, whole: Tensor, part: Tensor) -> bool:
        expected = self._pattern(0, len(whole))
        if operation.reduces:
            expected = expected * self.ranks + self.ranks * (self.ranks - 1) / 2
        if not operation.result_is_part:
            return torch.equal(whole, expected)
        return torch.equal(part, expected[self.rank * len(part) : (self.rank + 1) * len(part)])

    @staticmethod
    def _refuses(error: Exception) -> bool:
        """Whether the backend does not support the operation; every rank gets this answer at once."""
        return any(word in str(error).lower() for word in ("not support", "not implement", "does not", "unsupported"))


def clock_offset(
    exchange: Callable[[], tuple[float, float, float, float]], times: int = _EXCHANGES
) -> tuple[float, float]:
    """Estimates, as NTP does, how many seconds the other clock is ahead, and the uncertainty.

    Only the fastest of several exchanges counts.

    Args:
        exchange: makes one round trip and returns four times: sent (our clock), received and answered (the other
            clock), returned (our clock).
    """

    def trip(asked: float, heard: float, answered: float, got: float) -> tuple[float, float]:
        return (got - asked) - (answered - heard), ((heard - asked) + (answered - got)) / 2

    quickest, offset = min(trip(*exchange()) for _ in range(times))
    return offset, quickest / 2


def _skews(hosts: Sequence[str], control: dist.ProcessGroup | None) -> list[dict[str, Any]]:
    """Exchanges times between rank 0 and the first rank of every other host; the other ranks return nothing."""
    rank, found = dist.get_rank(), []
    for host in dict.fromkeys(hosts):
        other = hosts.index(host)
        if other == 0:
            continue
        if rank == 0:
            seconds, within = clock_offset(lambda other=other: _ask(other, control))  # type: ignore[misc]
            found.append({"host": host, "seconds": seconds, "uncertainty": within})
        elif rank == other:
            for _ in range(_EXCHANGES):
                _answer(control)
    return found


def _ask(other: int, group: dist.ProcessGroup | None) -> tuple[float, float, float, float]:
    times = torch.zeros(2, dtype=torch.float64)
    asked = time.time()
    dist.send(times, other, group=group)
    dist.recv(times, other, group=group)
    return asked, float(times[0]), float(times[1]), time.time()


def _answer(group: dist.ProcessGroup | None) -> None:
    times = torch.zeros(2, dtype=torch.float64)
    dist.recv(times, 0, group=group)
    times[0] = times[1] = time.time()
    dist.send(times, 0, group=group)


def _member(folder: Path, device: torch.device) -> dict[str, Any]:
    return {
        "rank": dist.get_rank(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "sees_folder": (folder / ASK).is_file(),
    }


def _connect() -> tuple[torch.device, dist.ProcessGroup | None]:
    """Joins the other ranks and returns the device to measure and a process group for CPU tensors."""
    if os.environ.get("DS_ACCELERATOR") != "cuda":
        dist.init_process_group("gloo", timeout=_PATIENCE)
        return torch.device("cpu"), None
    device = torch.device("cuda", own_gpu(torch.cuda.device_count()))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", timeout=_PATIENCE)
    return device, dist.new_group(backend="gloo", timeout=_PATIENCE)


def main(folder: Path, sizes: str) -> None:
    """Measures everything, with buffers of ``sizes`` bytes, a list as JSON; rank 0 writes the results."""
    device, control = _connect()
    members: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(members, _member(folder, device), group=control)
    hosts = [member["host"] for member in members]
    bench = Bench(device, control, nodes=len(set(hosts)))
    found = {
        "backend": dist.get_backend(),
        "ranks": bench.ranks,
        "nodes": len(set(hosts)),
        "members": members,
        "skews": _skews(hosts, control),
        "latency_seconds": bench.latency(),
        "transfers": bench.measure(json.loads(sizes)),
        "wrong": bench.wrong,
        "refused": bench.refused,
    }
    if bench.rank == 0:
        write_json(folder / FOUND, found)
    dist.barrier(group=control)


if __name__ == "__main__":
    if Path(sys.argv[1]).is_dir():  # otherwise this node does not see the folder, which the caller reports
        log_to_file(os.environ)
    run_rank(partial(main, Path(sys.argv[1]), sys.argv[2]))
