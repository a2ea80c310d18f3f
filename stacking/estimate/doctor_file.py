"""Reads the output of `stacking doctor --json` for a prediction: speed of the network and of the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field

from stacking.config.reading import read_json_mapping
from stacking.errors import UserError
from stacking.estimate.communication import Operation
from stacking.estimate.network import Network, ring_bytes, ring_steps
from stacking.estimate.overhead import HostCosts
from stacking.hardware.presets import Link
from stacking.storage.frozen import FrozenPart, record_of

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_REMEDY = "give the output of `stacking doctor --json`"


class Collective(FrozenPart):
    """One measured size of one operation."""

    operation: str
    bytes: Positive
    ranks: int = Field(gt=0)
    nodes: int = Field(default=1, gt=0)
    seconds: Positive


class FolderSpeed(FrozenPart):
    """The disk that holds the run."""

    write: Positive | None = None
    read: Positive | None = None


class DoctorFile(FrozenPart):
    """A file that `stacking doctor --json` wrote."""

    path: Path
    collectives: tuple[Collective, ...] = ()
    folder: FolderSpeed | None = None


def read_doctor(path: Path) -> DoctorFile:
    """Returns the collectives of the file.

    Raises:
        UserError: it is not a doctor file, or has no collective of two or more ranks.
    """
    content = read_json_mapping(path)
    if (content.get("format"), content.get("kind")) != (1, "doctor"):
        raise UserError(path, "is not the JSON of a doctor", _REMEDY)
    found = record_of(DoctorFile, {**content, "path": path}, path, "the JSON of a doctor", _REMEDY)
    if not any(c.ranks > 1 and c.operation in get_args(Operation) for c in found.collectives):
        raise UserError(path, "holds no collective between ranks", "run `stacking doctor` with several ranks")
    return found


def measured_links(network: Network, file: DoctorFile) -> Network:
    """Returns ``network`` with the latency and bandwidth that ``file`` measured, where it did."""
    fits: dict[Operation, Link] = {}
    for operation in get_args(Operation):
        inside = [c for c in file.collectives if (c.operation, c.nodes) == (operation, 1) and c.ranks > 1]
        if inside:
            fits[operation] = fit(operation, inside, f"measured: {file.path}")
    if fits:
        network = replace(network, inside=fits.get("all-reduce", next(iter(fits.values()))), measured=fits)
    far = [c for c in file.collectives if c.operation == "all-reduce" and c.nodes > 1]
    if far:
        # The adapters carry what the ring over the nodes would send.
        over_nodes = [c.model_copy(update={"ranks": c.nodes}) for c in far]
        network = replace(network, between=fit("all-reduce", over_nodes, f"measured: {file.path}"))
    return network


def measured_disk(host: HostCosts, file: DoctorFile) -> HostCosts:
    """Returns ``host`` with the slower of the disk's two measured speeds, if measured."""
    speeds = [speed for speed in (file.folder.write, file.folder.read) if speed] if file.folder else []
    return replace(host, disk=min(speeds), source=f"{host.source}; disk: {file.path}") if speeds else host


def fit(operation: Operation, found: Sequence[Collective], source: str) -> Link:
    """Fits the latency and bandwidth of a ring to the measured seconds.

    Non-negative least squares of the relative errors of ``steps x latency + bytes / bandwidth``.
    """
    rows = [
        (ring_steps(operation, c.ranks) / c.seconds, ring_bytes(operation, c.ranks, c.bytes) / c.seconds) for c in found
    ]
    aa, ab, bb = (sum(x[i] * x[j] for x in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = sum(x[0] for x in rows), sum(x[1] for x in rows)
    determinant = aa * bb - ab * ab
    latency, slope = (
        ((a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant)
        if determinant > 1e-9 * aa * bb
        else (0.0, b / bb)
    )
    if slope <= 0:  # messages too small to show the bandwidth: it is at least what the largest one reached
        slope = min(1 / x[1] for x in rows)
        latency = max((a - slope * ab) / aa, 0.0)
    if latency < 0:
        latency, slope = 0.0, b / bb
    return Link(latency, 1 / slope, source)
