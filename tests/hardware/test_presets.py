"""Device classes and named models."""

from __future__ import annotations

import pytest

from stacking.hardware.machine import find_machine
from stacking.hardware.presets import DEVICE_CLASSES, SHAPES, cpu_class, device_class


@pytest.mark.parametrize("name", DEVICE_CLASSES)
def test_a_class_supports_its_own_precision(name: str) -> None:
    row = DEVICE_CLASSES[name]
    assert row.name == name
    assert row.precision not in row.unfit
    assert row.precision in row.peak
    assert row.source


@pytest.mark.parametrize(
    ("printed", "name"),
    [
        ("Tesla P40", "p40"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_a_gpu_is_recognised_by_its_nvidia_smi_name(printed: str, name: str) -> None:
    assert device_class(printed, 1 << 34, 7.0) is DEVICE_CLASSES[name]


@pytest.mark.parametrize(("capability", "precision"), [(6.1, "fp32"), (7.5, "fp16"), (8.6, "bf16")])
def test_an_unknown_gpu_is_judged_by_its_compute_capability(capability: float, precision: str) -> None:
    assert device_class("Quadro X", 1 << 34, capability).precision == precision


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_uses_bf16_only_where_the_hardware_computes_it(native: bool, precision: str) -> None:
    row = cpu_class(native)
    assert row.precision == precision
    assert ("bf16" in row.emulated) is not native


@pytest.mark.parametrize("shape", SHAPES.values())
def test_heads_divide_the_width(shape: object) -> None:
    assert shape.hidden % shape.heads == 0  # type: ignore[attr-defined]
    assert shape.intermediate == 4 * shape.hidden  # type: ignore[attr-defined]


def test_gpus_can_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    machine = find_machine()
    assert machine.accelerators == 0
    assert machine.device == machine.cpu
    assert machine.memory > 0
