"""Peak throughput of GPUs in dense matrix products, without sparsity, by card and precision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One card on the market; a class of `stacking.hardware.presets` may come in several."""

    patterns: tuple[str, ...]
    """Parts of the name that nvidia-smi prints; of several matching cards, the one with the longest part applies."""
    tflops: dict[str, float]
    """By precision; ``tf32`` is fp32 on tensor cores."""
    source: str


_HALVED = "; tensor-core figures there are with sparsity, halved here"

CARDS: tuple[Card, ...] = (
    # NVIDIA gives 0.18 for fp16, which mixed precision does not use there: it computes in fp32.
    Card(("P40",), {"fp32": 11.76}, "NVIDIA Tesla P40 data sheet"),
    Card(("V100", "V100-SXM2", "V100-SXM3"), {"fp32": 15.7, "fp16": 125.0}, "NVIDIA V100 data sheet, SXM2"),
    Card(("V100-PCIE",), {"fp32": 14.0, "fp16": 112.0}, "NVIDIA V100 data sheet, PCIe"),
    Card(("V100S",), {"fp32": 16.4, "fp16": 130.0}, "NVIDIA V100 data sheet, V100S"),
    # The 40 GB and 80 GB cards, SXM and PCIe, have the same peaks.
    Card(("A100",), {"fp32": 19.5, "tf32": 156.0, "fp16": 312.0, "bf16": 312.0}, "NVIDIA A100 data sheet"),
    Card(
        ("H100", "H100 80GB HBM3"),
        {"fp32": 67.0, "tf32": 494.5, "fp16": 989.0, "bf16": 989.0},
        f"NVIDIA H100 data sheet, SXM{_HALVED}",
    ),
    Card(
        ("H100 PCIe",),
        {"fp32": 51.0, "tf32": 378.0, "fp16": 756.0, "bf16": 756.0},
        f"NVIDIA H100 data sheet, PCIe{_HALVED}",
    ),
    Card(
        ("H100 NVL",),
        {"fp32": 60.0, "tf32": 417.5, "fp16": 835.0, "bf16": 835.0},
        f"NVIDIA H100 data sheet, NVL{_HALVED}",
    ),
    Card(
        ("H200",),
        {"fp32": 67.0, "tf32": 494.5, "fp16": 989.0, "bf16": 989.0},
        f"NVIDIA H200 data sheet, SXM{_HALVED}",
    ),
)


def find_card(name: str) -> Card | None:
    """Return the row of the GPU that nvidia-smi calls ``name``; None if there is none."""
    matching = [(len(part), card) for card in CARDS for part in card.patterns if part in name]
    return max(matching, key=lambda found: found[0])[1] if matching else None


def peak_tflops(card: Card, precision: str) -> float:
    """Return the reference peak for ``precision``: its own, or that of fp32 if the card has no faster way."""
    return card.tflops.get(precision, card.tflops["fp32"])
