"""Which binaries run on which GPUs, and the tables that must agree with other files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.doctor.compatibility import TESTED, builds_for, runs_on, version
from stacking.doctor.facts import Capability
from tests.doctor.sample_machines import CU126, CU130

PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("architectures", "capability", "entry"),
    [
        (CU126, (6, 1), "sm_60"),
        (CU126, (7, 0), "sm_70"),
        (CU126, (8, 9), "sm_86"),
        (CU130, (6, 1), None),
        (CU130, (7, 0), None),
        (CU130, (9, 0), "sm_90"),
        (CU130, (12, 1), "sm_120"),
        (("sm_90", "compute_90"), (10, 0), "compute_90"),
        (("sm_80",), (7, 5), None),
        (("sm_90a",), (9, 0), "sm_90a"),
        (("sm_90a",), (9, 1), None),
        ((), (9, 0), None),
        (("gfx90a",), (9, 0), None),
    ],
)
def test_machine_code_runs_on_its_own_generation_and_ptx_on_later_ones(
    architectures: tuple[str, ...], capability: Capability, entry: str | None
) -> None:
    found = runs_on(architectures, capability)
    assert (found is None) == (entry is None)
    if entry is not None and found is not None:
        assert found.split("_")[0] == entry.split("_")[0]


@given(built=st.tuples(st.integers(5, 12), st.integers(0, 9)), has=st.tuples(st.integers(5, 12), st.integers(0, 9)))
def test_machine_code_never_runs_on_another_generation_or_an_older_chip(built: Capability, has: Capability) -> None:
    fits = runs_on((f"sm_{built[0]}{built[1]}",), has) is not None
    assert fits == (built[0] == has[0] and built[1] <= has[1])


def test_generations_without_current_wheels_get_a_list_of_remaining_builds() -> None:
    assert "2.14" in str(builds_for((6, 1))) and "cu126" in str(builds_for((6, 1)))
    assert "2.10" in str(builds_for((7, 0))) and "cu126" in str(builds_for((7, 0)))
    assert builds_for((7, 5)) is None and builds_for((9, 0)) is None


def test_versions_are_compared_as_numbers() -> None:
    assert version("2.10.0+cu128") == (2, 10, 0) > version("2.9.1")
    assert version("580.65.06") > version("525.60.13")
    assert version("unknown") == ()


@pytest.mark.parametrize("name", TESTED)
def test_the_oldest_tested_version_is_the_oldest_allowed(name: str) -> None:
    (least,) = re.findall(rf'"{name}>=([\d.]+)[,"]', PROJECT)
    assert TESTED[name].least == least
    assert version(TESTED[name].newest) > version(least)
