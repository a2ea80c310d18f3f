"""The verdict on an update's counts. The counts themselves need a CUDA build of PyTorch: tools/prove_gpu."""

from __future__ import annotations

from typing import Any

import pytest

from tools.null_gpu.bounds import BOUNDS, WAITS_OF_STEP
from tools.null_gpu.card import CARDS
from tools.null_gpu.prove import CASES, Case, broken

CASE = Case("A100", "bf16", 1)


def found(**other: Any) -> dict[str, Any]:
    within = {"launches": 1, "waits": 0, "waits of the step": 1, "compiled": 0, "attention": "varlen_flash"}
    return {**within, **{key.replace("_", " "): value for key, value in other.items()}}


def test_every_card_is_proved_at_every_zero_level() -> None:
    assert {card for card, _ in BOUNDS} == set(CARDS)
    assert {(case.card, case.zero) for case in CASES} == {(card, zero) for card in CARDS for zero in range(4)}


def test_an_update_within_its_bounds_breaks_none() -> None:
    assert broken(CASE, found()) == []


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        (found(launches=10_000), "10000 launches, at most"),
        (found(waits=1), "1 waits, at most 0"),
        (found(waits_of_the_step=WAITS_OF_STEP[1] + 1), "11 waits of the step, at most 10"),
        (found(compiled=1), "1 compiled, at most 0"),
        (found(attention="sdpa"), "attention by sdpa, not varlen_flash"),
    ],
)
def test_every_bound_is_told_where_it_is_broken(counts: dict[str, Any], problem: str) -> None:
    (told,) = broken(CASE, counts)
    assert told.startswith(problem)
