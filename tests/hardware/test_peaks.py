"""Peak performance of cards."""

from __future__ import annotations

import pytest

from stacking.hardware.presets import DEVICE_CLASSES, printed_peak


@pytest.mark.parametrize(
    ("printed", "precision", "tflops"),
    [
        ("Tesla P40", "fp32", 11.76),
        ("Tesla P40", "fp16", 11.76),
        ("Tesla V100-SXM2-32GB", "fp16", 125.0),
        ("Tesla V100-PCIE-16GB", "fp16", 112.0),
        ("Tesla V100S-PCIE-32GB", "fp32", 16.4),
        ("NVIDIA A100 80GB PCIe", "bf16", 312.0),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.0),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H100 NVL", "fp16", 835.0),
        ("NVIDIA H200", "tf32", 494.5),
        ("NVIDIA A100-SXM4-40GB MIG 2g.10gb", "bf16", 78.0),
    ],
)
def test_a_cards_peak_depends_on_its_form_factor_and_the_precision(printed: str, precision: str, tflops: float) -> None:
    peak = printed_peak(printed, precision)
    assert peak is not None
    assert peak[0] == tflops


def test_an_unknown_card_has_no_peak() -> None:
    assert printed_peak("Quadro X", "fp32") is None


def test_every_row_says_where_it_comes_from() -> None:
    for row in DEVICE_CLASSES.values():
        assert all(form.source and "fp32" in form.peak for form in (row, *row.forms.values()))
