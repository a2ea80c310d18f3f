"""Which precisions the CPU computes in hardware: from its flags, and from a timed product where they leave doubt."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.hardware import processor
from stacking.hardware.processor import bf16_slowdown, cpu_flags, has_native_bf16

AVX2 = frozenset({"avx", "avx2", "fma"})


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_either_extension_enables_bf16(flag: str) -> None:
    assert has_native_bf16(AVX2 | {flag}, {})


@pytest.mark.parametrize("flags", [frozenset(), AVX2, AVX2 | {"avx512f", "avx512vl"}])
def test_no_other_flag_enables_bf16(flags: frozenset[str]) -> None:
    assert not has_native_bf16(flags, {})


@pytest.mark.parametrize(("slowdown", "native"), [(0.3, True), (7.0, False), (None, False)])
def test_a_measured_product_decides_where_the_environment_limits_torch(
    slowdown: float | None, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "bf16_slowdown", lambda: slowdown)
    assert has_native_bf16(AVX2 | {"avx512_bf16"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}) is native


def test_flags_are_read_from_linuxs_list(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: some CPU\nflags\t\t: fpu avx2 amx_bf16\nflags\t\t: fpu\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx2", "amx_bf16"}
    assert cpu_flags(tmp_path / "nothing") == frozenset()


def test_the_slowdown_is_measured_once_per_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bf16_slowdown.cache_clear()
    measured = bf16_slowdown()
    assert measured is not None and measured > 0
    bf16_slowdown.cache_clear()
    monkeypatch.setattr(processor, "_measure", lambda: pytest.fail("measured again"))
    assert bf16_slowdown() == measured
    (tmp_path / "stacking" / "bf16.json").write_text("{}")
    monkeypatch.setattr(processor, "_measure", lambda: None)
    bf16_slowdown.cache_clear()
    assert bf16_slowdown() is None
    bf16_slowdown.cache_clear()
