"""The verdict on an update's counts. The counts themselves need a CUDA build of PyTorch: tools/prove_gpu."""

from __future__ import annotations

from typing import Any

import pytest

from stacking.hardware.presets import device_class
from tools.null_gpu.card import CARDS
from tools.null_gpu.programs import Failed
from tools.null_gpu.prove import RUNS, UPDATES, Case, broken, proved

LEVELS = range(4)
CASE = Case("A100", "bf16", 1)


def found(**other: Any) -> dict[str, Any]:
    within = {"launches": 1, "waits": 0, "waits of the step": 1, "recompiled": 0}
    memory = {"allocated": 10, "reserved": 11, "planned": 10}
    chosen = {"attention": "varlen_flash", "compile": "each layer"}
    return {**within, **memory, **chosen, **{key.replace("_", " "): value for key, value in other.items()}}


def test_every_precision_that_a_card_is_fit_for_and_every_zero_level_are_proved() -> None:
    fit = {
        (name, precision)
        for name, card in CARDS.items()
        for precision in ("fp32", "fp16", "bf16")
        if precision not in device_class(card.name, card.memory, float("{}.{}".format(*card.capability))).unfit
    }
    assert {(case.card, case.precision, case.zero) for case in UPDATES} == {
        (*pair, zero) for pair in fit for zero in LEVELS
    }
    assert {(case.card, case.precision) for case in RUNS} == fit
    assert {(case.precision, case.zero) for case in RUNS} == {
        (precision, zero) for _, precision in fit for zero in LEVELS
    }


def test_an_update_within_its_bounds_breaks_none() -> None:
    assert broken(CASE, found()) == []
    assert broken(Case("A100", "bf16", 3), found(compile="no")) == []


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        (found(launches=10_000), "10000 launches, at most"),
        (found(waits=1), "1 waits, at most 0"),
        (found(waits_of_the_step=11), "11 waits of the step, at most"),
        (found(recompiled=1), "1 recompiled, at most 0"),
        (found(allocated=11), "11 allocated, at most 10"),
        (found(reserved=12), "12 reserved, at most 11"),
        (found(attention="sdpa"), "attention: sdpa, not varlen_flash"),
        (found(compile="no"), "compile: no, not each layer"),
    ],
)
def test_every_bound_is_told_where_it_is_broken(counts: dict[str, Any], problem: str) -> None:
    (told,) = broken(CASE, counts)
    assert told.startswith(problem)


def test_a_program_that_fails_is_a_failed_proof(capsys: pytest.CaptureFixture[str]) -> None:
    def proof() -> tuple[list[str], str]:
        raise Failed("tools.null_gpu.measure ended with 1")

    assert not proved("update A100", proof)
    assert "FAILED tools.null_gpu.measure ended with 1" in capsys.readouterr().out
    assert proved("update A100", lambda: ([], "as it should be"))
