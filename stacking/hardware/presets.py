"""Lists GPU classes and named models in tables: one row each, with its source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Precision = Literal["fp32", "fp16", "bf16"]
Compiled = Literal["refused", "possible", "faster"]
GiB = 1 << 30
VALUE_BYTES: Mapping[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes of one weight, activation or gradient."""


@dataclass(frozen=True)
class Link:
    """A link between ranks in the alpha-beta model: a message of n bytes takes ``latency + n / bandwidth``."""

    latency: float
    """Seconds."""
    bandwidth: float
    """Bytes per second and direction that collectives reach: of a rank inside a node, of a whole node between nodes."""
    source: str


_LAYER_SECONDS = 1.4e-3
"""BERT-base on one V100 with DeepSpeed bing_bert and 1,024 micro-batches per update: micro-batches of 64, 128 and 160
reach 565, 607 and 620 sequences/s (DLPerf), which is linear in time: 16.8 ms plus 1.508 ms per sequence, here divided
by 12 layers. Assumed for every GPU, because it is mostly kernel launches."""
_REACHED = 0.8
"""Assumed share of a link's nominal bandwidth that collectives reach."""
_PER_STEP, _PER_HOP = 4e-6, 8e-6
"""Assumed latency in seconds of one step of a collective, inside a node and between nodes."""


def _inside(gigabytes: float, source: str) -> Link:
    return Link(_PER_STEP, _REACHED * gigabytes * 1e9, f"{_REACHED:.0%} of {source}; latency assumed")


def _between(adapters: int, gigabits: int, source: str) -> Link:
    reached = _REACHED * adapters * gigabits / 8 * 1e9
    name = f"{adapters} x {gigabits} Gb/s InfiniBand per node"
    return Link(_PER_HOP, reached, f"{_REACHED:.0%} of {name} ({source}); latency assumed")


_PCIE3 = _inside(12.0, "PCI Express 3.0 x16 without packet headers, 12 GB/s")
_INFINIBAND_100 = _between(1, 100, "assumed")
_NVLINK4 = _inside(450, "NVLink 4, 900 GB/s both ways (NVIDIA H100 SXM data sheet)")
_NDR = _between(8, 400, "NVIDIA DGX H100 data sheet")


_HALVED = "; tensor-core figures there are with sparsity, halved here"


@dataclass(frozen=True)
class Form:
    """Another form of a card, with its own peaks."""

    peak: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class DeviceClass:
    """One class of devices that ranks train on."""

    name: str
    memory: int
    """Bytes per device; 0 if the host's memory is used."""
    peak: Mapping[str, float]
    """Dense matrix-multiplication peak per precision, without sparsity, in TFLOPS per device (per core for a CPU).

    ``tf32`` is fp32 on tensor cores.
    """
    utilisation: float
    """Assumed share of the peak that BERT pre-training reaches in large micro-batches; for time estimates."""
    precision: Precision
    """The meaning of ``precision: auto``."""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """Precisions that this class does not support, or not well, with the reason."""
    emulated: Mapping[str, str] = field(default_factory=dict)
    """Precisions that it computes slowly but that may be requested, with the reason."""
    compiled: Compiled = "possible"
    """Support for torch.compile. Triton requires compute capability 7.0; ranks try it before they use it."""
    pattern: str = ""
    """Part of the name that nvidia-smi prints."""
    source: str = ""
    """Of the peaks."""
    utilisation_source: str = "assumed"
    forms: Mapping[str, Form] = field(default_factory=dict)
    """Cards of this class with other peaks, by a part of the name that nvidia-smi prints."""
    layer_seconds: float = _LAYER_SECONDS
    """Fixed seconds of a layer's forward and backward pass, independent of the micro-batch."""
    memory_bandwidth: float = 5e11
    """Memory bandwidth of a device (of one core's share for a CPU) in bytes/s; for time estimates only."""
    memory_source: str = "assumed"
    per_node: int = 8
    """Devices of a typical node; 0: as many as there are planned ranks."""
    inside: Link = _PCIE3
    between: Link = _INFINIBAND_100


_NO_TENSOR_CORES = "Pascal has no tensor cores and computes it no faster than fp32"

DEVICE_CLASSES: Mapping[str, DeviceClass] = {
    "cpu": DeviceClass(
        name="cpu",
        memory=0,
        peak={"fp32": 0.064, "bf16": 0.064},
        utilisation=0.5,
        layer_seconds=0.0,
        precision="fp32",
        unfit={"fp16": "CPUs emulate it"},
        source="assumed: two 256-bit FMA units at 2 GHz",
        memory_bandwidth=8e9,
        per_node=0,
        inside=Link(1e-4, 1.5e9, "assumed: gloo over the loopback interface"),
        between=Link(2e-4, 1.0e9, "assumed: gloo over 10 Gb/s Ethernet"),
    ),
    "p40": DeviceClass(
        name="p40",
        memory=24 * GiB,
        peak={"fp32": 11.76},  # NVIDIA gives 0.18 for fp16, which mixed precision does not use there
        utilisation=0.395,
        precision="fp32",
        unfit={
            "fp16": f"{_NO_TENSOR_CORES}, and DeepSpeed rejects it on compute capability 6.x",
            "bf16": f"{_NO_TENSOR_CORES}: it is emulated",
        },
        compiled="refused",
        pattern="P40",
        source="NVIDIA Tesla P40 data sheet",
        utilisation_source="derived from the 338 hours of Gong et al. (2019)",
        memory_bandwidth=346e9,
        memory_source="NVIDIA Tesla P40 data sheet",
        per_node=4,
    ),
    "v100": DeviceClass(
        name="v100",
        memory=16 * GiB,
        peak={"fp32": 15.7, "fp16": 125.0},
        utilisation=0.37,
        precision="fp16",
        unfit={"bf16": "Volta emulates it, about 9 times slower than fp16 (measured GEMM: 10.7 against 97.4 TFLOPS)"},
        compiled="faster",
        pattern="V100",
        source="NVIDIA V100 SXM2 data sheet",
        utilisation_source="marginal rate of DeepSpeed bing_bert on it (DLPerf)",
        forms={
            "V100-PCIE": Form({"fp32": 14.0, "fp16": 112.0}, "NVIDIA V100 data sheet, PCIe"),
            "V100S": Form({"fp32": 16.4, "fp16": 130.0}, "NVIDIA V100 data sheet, V100S"),
        },
        memory_bandwidth=900e9,
        memory_source="NVIDIA V100 SXM2 data sheet",
        inside=_inside(150, "NVLink 2, 300 GB/s both ways (NVIDIA V100 SXM2 data sheet)"),
        between=_between(4, 100, "NVIDIA DGX-1 data sheet"),
    ),
    "a100": DeviceClass(
        name="a100",
        memory=40 * GiB,
        peak={"fp32": 19.5, "tf32": 156.0, "fp16": 312.0, "bf16": 312.0},
        utilisation=0.35,
        precision="bf16",
        compiled="faster",
        pattern="A100",
        source="NVIDIA A100 data sheet",
        utilisation_source="BERT-large in NVIDIA DeepLearningExamples (TF2, length 512)",
        memory_bandwidth=1555e9,
        memory_source="NVIDIA A100 40 GB data sheet",
        inside=_inside(300, "NVLink 3, 600 GB/s both ways (NVIDIA A100 data sheet)"),
        between=_between(8, 200, "NVIDIA DGX A100 data sheet"),
    ),
    "h100": DeviceClass(
        name="h100",
        memory=80 * GiB,
        peak={"fp32": 67.0, "tf32": 494.5, "fp16": 989.0, "bf16": 989.0},
        utilisation=0.35,
        precision="bf16",
        compiled="faster",
        pattern="H100",
        source=f"NVIDIA H100 SXM data sheet{_HALVED}",
        utilisation_source="assumed as on A100",
        forms={
            "H100 PCIe": Form(
                {"fp32": 51.0, "tf32": 378.0, "fp16": 756.0, "bf16": 756.0}, f"NVIDIA H100 data sheet, PCIe{_HALVED}"
            ),
            "H100 NVL": Form(
                {"fp32": 60.0, "tf32": 417.5, "fp16": 835.0, "bf16": 835.0}, f"NVIDIA H100 data sheet, NVL{_HALVED}"
            ),
        },
        memory_bandwidth=3.35e12,
        memory_source="NVIDIA H100 SXM data sheet",
        inside=_NVLINK4,
        between=_NDR,
    ),
    "h200": DeviceClass(
        name="h200",
        memory=141 * GiB,
        peak={"fp32": 67.0, "tf32": 494.5, "fp16": 989.0, "bf16": 989.0},
        utilisation=0.35,
        precision="bf16",
        compiled="faster",
        pattern="H200",
        source=f"NVIDIA H200 SXM data sheet{_HALVED}",
        utilisation_source="assumed as on A100",
        memory_bandwidth=4.8e12,
        memory_source="NVIDIA H200 SXM data sheet",
        inside=_NVLINK4,
        between=_NDR,
    ),
}


_BF16_EMULATED = "this CPU emulates it: torch finds neither AVX512-BF16 nor AMX"


def cpu_class(native_bf16: bool) -> DeviceClass:
    """Returns the row of a CPU with or without native bf16."""
    if native_bf16:
        return replace(DEVICE_CLASSES["cpu"], precision="bf16")
    return replace(DEVICE_CLASSES["cpu"], emulated={"bf16": _BF16_EMULATED})


def device_class(name: str, memory: int, capability: float) -> DeviceClass:
    """Returns the row of the GPU that nvidia-smi calls ``name``; without one, derives it from the compute capability.

    Args:
        memory: bytes per device, as found.
        capability: CUDA compute capability, such as 8.0.
    """
    for row in DEVICE_CLASSES.values():
        if row.pattern and row.pattern in name:
            return _sliced(row, name, memory)
    unfit = {}
    if not capability:
        unfit = dict.fromkeys(("bf16", "fp16"), "nvidia-smi does not say its compute capability")
    elif capability < 8:
        unfit["bf16"] = f"compute capability {capability} emulates it"
        if capability < 7:
            unfit["fp16"] = f"compute capability {capability} has no tensor cores"
    precision: Precision = "bf16" if "bf16" not in unfit else "fp16" if "fp16" not in unfit else "fp32"
    compiled: Compiled = "faster" if capability >= 7 else "refused"
    return DeviceClass(name, memory, {}, 0.3, precision, unfit, compiled=compiled, source="nvidia-smi")


_SLICE = re.compile(r"MIG (\d)g\.")
_PARTS = 8
"""A MIG slice ``ng`` of an A100 or H100 has about n eighths of its multiprocessors, and memory of its own."""


def _share(name: str) -> float:
    """Returns which share of its card a MIG slice computes with; 1 for a whole card."""
    found = _SLICE.search(name)
    return int(found[1]) / _PARTS if found else 1.0


def _sliced(row: DeviceClass, name: str, memory: int) -> DeviceClass:
    """Returns the row of a MIG slice of a card of class ``row``; of a whole card, ``row`` itself."""
    share = _share(name)
    if share == 1:
        return row
    return replace(
        row,
        name=f"{row.name} {name[name.index('MIG') :]}",
        memory=memory,
        peak={precision: share * peak for precision, peak in row.peak.items()},
        memory_bandwidth=share * row.memory_bandwidth,
        pattern="",
        source=f"{share:g} of {row.source}",
    )


def printed_peak(name: str, precision: str) -> tuple[float, str] | None:
    """Returns peak TFLOPS of the card that nvidia-smi calls ``name``, and their source; None if no row has it.

    A card without a faster way computes ``precision`` as fp32.
    """
    row = next((row for row in DEVICE_CLASSES.values() if row.pattern and row.pattern in name), None)
    if row is None:
        return None
    form = next((form for part, form in row.forms.items() if part in name), Form(row.peak, row.source))
    share = _share(name)
    source = form.source if share == 1 else f"{share:g} of {form.source}"
    return share * form.peak.get(precision, form.peak["fp32"]), source


@dataclass(frozen=True)
class ModelShape:
    """Shape of a named model."""

    hidden: int
    heads: int
    intermediate: int
    layers: int
    """The published depth."""
    source: str


_DEVLIN = "Devlin et al., 2019 (arXiv 1810.04805), section 3"
_TURC = "Turc et al., 2019 (arXiv 1908.08962), table 1"

SHAPES: Mapping[str, ModelShape] = {
    "bert-tiny": ModelShape(hidden=128, heads=2, intermediate=512, layers=2, source=_TURC),
    "bert-mini": ModelShape(hidden=256, heads=4, intermediate=1024, layers=4, source=_TURC),
    "bert-small": ModelShape(hidden=512, heads=8, intermediate=2048, layers=4, source=_TURC),
    "bert-base": ModelShape(hidden=768, heads=12, intermediate=3072, layers=12, source=_DEVLIN),
    "bert-large": ModelShape(hidden=1024, heads=16, intermediate=4096, layers=24, source=_DEVLIN),
}
