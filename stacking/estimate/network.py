"""Estimates the time of collectives by the alpha-beta model of rings inside and between nodes.

Each step of a ring costs its latency and its share of the bytes, so N ranks take

    all-reduce                   2 (N-1) α + 2 (N-1)/N bytes / B
    reduce-scatter, all-gather     (N-1) α +   (N-1)/N bytes / B

(Thakur, Rabenseifner and Gropp, 2005, section 2 and 4; Patarasuk and Yuan, 2009). Over several nodes, a collective
first runs inside each node and then between the nodes on each rank's part, over all network adapters of the node
together. Between nodes an all-reduce may also use a tree, ``2 ⌈log2 n⌉ α + 2 bytes / B``, as NCCL does where rings get
long (Sanders, Speck and Träff, 2009); the faster one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, log2

from stacking.estimate.communication import Operation, Transfer
from stacking.hardware.presets import DeviceClass, Link

_TRIPS: Mapping[Operation, int] = {"all-reduce": 2, "reduce-scatter": 1, "all-gather": 1}
"""How often the bytes travel around the ring."""


def ring_steps(operation: Operation, ranks: int) -> int:
    """Returns the number of sequential messages."""
    return _TRIPS[operation] * (ranks - 1)


def ring_bytes(operation: Operation, ranks: int, size: float) -> float:
    """Returns the bytes through each rank's link, per direction."""
    return _TRIPS[operation] * (ranks - 1) / ranks * size


@dataclass(frozen=True)
class Network:
    """The connections between ranks."""

    per_node: int
    inside: Link
    between: Link
    measured: Mapping[Operation, Link] = field(default_factory=dict)
    """Links inside a node for individually measured operations."""

    def nodes(self, ranks: int) -> int:
        """Returns the number of nodes for ``ranks``."""
        return ceil(ranks / self.per_node)

    def assumption(self, ranks: int) -> str:
        """Describes the links that ``ranks`` use, and their source."""
        inside = f"inside a node of {self.per_node}: {_words(self.inside)}"
        return f"{inside}; between nodes: {_words(self.between)}" if self.nodes(ranks) > 1 else inside

    def seconds(self, operation: Operation, size: float, ranks: int) -> float:
        """Returns the seconds of one collective of ``size`` bytes, without other traffic."""
        inner, nodes = min(ranks, self.per_node), self.nodes(ranks)
        near = _ring(self.measured.get(operation, self.inside), operation, inner, size)
        far = _ring(self.between, operation, nodes, size)
        if operation == "all-reduce" and nodes > 1:
            tree = 2 * ceil(log2(nodes)) * self.between.latency + 2 * size / self.between.bandwidth
            far = min(far, tree)
        return near + far

    def transfer_seconds(self, transfer: Transfer, ranks: int) -> float:
        """Returns the seconds of one occurrence of ``transfer``, in its buckets."""
        return transfer.calls * self.seconds(transfer.operation, transfer.bytes / transfer.calls, ranks)


def tabled(device: DeviceClass, ranks: int, per_node: int | None = None) -> Network:
    """Returns the typical network of a device class; on a CPU, one node runs all planned ``ranks``."""
    return Network(per_node or device.per_node or ranks, device.inside, device.between)


def _ring(link: Link, operation: Operation, ranks: int, size: float) -> float:
    return (
        ring_steps(operation, ranks) * link.latency + ring_bytes(operation, ranks, size) / link.bandwidth
        if ranks > 1
        else 0.0
    )


def _words(link: Link) -> str:
    return f"{link.bandwidth / 1e9:.3g} GB/s and {link.latency * 1e6:.3g} µs per step, {link.source}"
