"""Collects what a prediction is based on: measured files, and tables for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from stacking.errors import UserError
from stacking.estimate import doctor_file, network
from stacking.estimate.bench_file import BenchFile, read_bench
from stacking.estimate.compute import Tabled
from stacking.estimate.measured import Benchmark
from stacking.estimate.overhead import assumed_host
from stacking.estimate.prediction import Basis
from stacking.hardware.machine import Machine
from stacking.hardware.presets import DEVICE_CLASSES, DeviceClass
from stacking.planning.plan import Plan


def open_setting(
    plan: Plan,
    machine: Machine,
    *,
    measured: Sequence[Path] = (),
    network_file: Path | None = None,
    price: float | None = None,
    held_out: int | None = None,
) -> Basis | None:
    """Collects what is known about the planned devices.

    Args:
        machine: the machine that made the plan; its cores count for CPU ranks, its GPU for a class without a row.
        measured: files written by `stacking bench --json`.
        network_file: a file written by `stacking doctor --json`.
        price: price per GPU hour.
        held_out: number of held-out samples, if there is data.

    Returns:
        None if nothing was measured and the class has no known peak.

    Raises:
        UserError: a file is invalid or fits neither the model nor the devices, or the price is wrong.
    """
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise UserError("--price", f"is {price:g}", "give the price of one GPU hour, such as 2.5")
    device = DEVICE_CLASSES.get(plan.launch.device, machine.device)
    pace = _pace(plan, device, machine.cores, [read_bench(path) for path in measured])
    if pace is None:
        return None
    ranks = max(stage.ranks for stage in plan.stages)
    nodes = plan.launch.resources.nodes
    links = network.tabled(device, ranks, ranks // nodes if nodes else None)
    host = assumed_host(plan.launch.accelerator == "cuda", held_out)
    if network_file is not None:
        found = doctor_file.read_doctor(network_file)
        links, host = doctor_file.measured_links(links, found), doctor_file.measured_disk(host, found)
    return Basis(pace=pace, network=links, host=host, price=price)


def _pace(plan: Plan, device: DeviceClass, cores: int, files: list[BenchFile]) -> Tabled | Benchmark | None:
    for file in files:
        _check_device(plan, file)
    if files:
        return Benchmark(plan, files, device)
    if any(stage.precision not in device.peak for stage in plan.stages):
        return None
    return Tabled(plan, device, cores)


def _check_device(plan: Plan, file: BenchFile) -> None:
    """Rejects measurements from devices other than the planned ones.

    Raises:
        UserError: the kinds of device or their classes differ.
    """
    accelerator = file.hardware.get("device", plan.launch.accelerator)
    measured = file.hardware.get("class", accelerator if accelerator == "cpu" else plan.launch.device)
    if measured != plan.launch.device:
        remedy = f"measure there, or plan for it: --set launch.device={measured}"
        raise UserError(file.path, f"was measured on {measured}, but the plan is for {plan.launch.device}", remedy)
