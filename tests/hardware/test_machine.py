"""GPUs as nvidia-smi lists them, and those that CUDA_VISIBLE_DEVICES leaves. The program is a fake."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.errors import StackingError
from stacking.hardware import nvidia_smi as program
from stacking.hardware.machine import find_machine

ROWS = "\n".join(
    [
        "0, GPU-aaaa1111-0000, Tesla P40, 23040, 6.1",
        "1, GPU-bbbb2222-0000, Tesla V100-SXM2-16GB, 16384, 7.0",
        "2, GPU-cccc3333-0000, NVIDIA A100-SXM4-40GB, 40960, 8.0",
        "3, GPU-ffff6666-0000, NVIDIA A100-SXM4-40GB, 40960, 8.0",
    ]
)
LISTED = "\n".join(
    [
        "GPU 0: Tesla P40 (UUID: GPU-aaaa1111-0000)",
        "GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-cccc3333-0000)",
        "  MIG 1g.5gb     Device  0: (UUID: MIG-dddd4444-0000)",
        "  MIG 2g.10gb    Device  1: (UUID: MIG-eeee5555-0000)",
    ]
)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\nif [ "$1" = -L ]; then echo "{LISTED}"; else echo "{ROWS}"; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


@pytest.mark.parametrize(
    ("visible", "count", "first", "gibibytes"),
    [
        (None, 1, "a100 MIG 1g.5gb", 5),
        ("1,3", 2, "v100", 16),
        ("3", 1, "a100", 40),
        ("2", 1, "a100 MIG 1g.5gb", 5),
        ("0,2", 1, "a100 MIG 1g.5gb", 5),
        ("GPU-bbbb2222,0", 2, "v100", 16),
        ("MIG-eeee5555-0000", 1, "a100 MIG 2g.10gb", 10),
        ("1,7,2", 1, "v100", 16),
        ("", 0, "cpu", None),
        ("-1", 0, "cpu", None),
    ],
)
def test_visible_gpus_are_the_named_ones(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, first: str, gibibytes: float
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_machine()
    assert (found.accelerators, found.device.name) == (count, first)
    assert gibibytes is None or found.memory == gibibytes * 2**30


def test_a_hanging_driver_is_not_taken_for_a_machine_without_gpus(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(program, "_PATIENCE", 0.2)
    with pytest.raises(StackingError, match="did not answer"):
        find_machine()


WHOLE = "GPU 0: Tesla V100-SXM2-16GB (UUID: GPU-aaaa)"


def answers(program: Path, row: str, *, refuses: str = "") -> None:
    """Let nvidia-smi print ``row``, and fail if it is asked for the field ``refuses``."""
    refusal = f'case "$*" in *{refuses}*) echo "not a valid field" ; exit 2;; esac\n' if refuses else ""
    program.write_text(f'#!/bin/sh\n{refusal}if [ "$1" = -L ]; then echo "{WHOLE}"; else echo "{row}"; fi\n')


def test_an_old_driver_that_cannot_say_the_compute_capability_still_lists_its_gpus(nvidia_smi: Path) -> None:
    answers(nvidia_smi, "0, GPU-aaaa, Tesla V100-SXM2-16GB, 16384", refuses="compute_cap")
    assert find_machine().device.name == "v100"


@pytest.mark.parametrize("unknown", ["[N/A]", "[Unknown Error]", "[Insufficient Permissions]", "[Not Supported]"])
def test_what_nvidia_smi_may_not_report_is_unknown(nvidia_smi: Path, unknown: str) -> None:
    answers(nvidia_smi, f"0, GPU-aaaa, Quadro X, {unknown}, {unknown}")
    found = find_machine()
    assert (found.accelerators, found.memory, found.device.precision) == (1, 0, "fp32")
    assert found.device.unfit["bf16"] == "nvidia-smi does not say its compute capability"


def test_without_a_driver_there_are_no_gpus(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("#!/bin/sh\necho no driver >&2\nexit 9\n")
    assert find_machine().accelerators == 0
