from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.terminal.units import UNKNOWN, count, counted, duration, loss


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (-0.2, "0.0 s"),
        (4.24, "4.2 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (310, "5 min 10 s"),
        (3599.7, "1 h"),
        (11_520, "3 h 12 min"),
        (187_200, "2 d 4 h"),
        (None, UNKNOWN),
        (math.inf, UNKNOWN),
    ],
)
def test_durations_are_human_readable(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999.6, "1.00 k"),
        (96_400, "96.4 k"),
        (999_999, "1.00 M"),
        (110_800_000, "111 M"),
        (47.6e9, "47.6 B"),
        (None, UNKNOWN),
        (math.nan, UNKNOWN),
    ],
)
def test_counts_have_three_digits(number: float | None, text: str) -> None:
    assert count(number) == text


@given(st.floats(min_value=1000, max_value=1e17))
def test_a_count_is_within_half_a_percent(number: float) -> None:
    digits, prefix = count(number).split()
    size = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "P": 1e15}[prefix]
    assert float(digits.replace(",", "")) * size == pytest.approx(number, rel=0.0051)


def test_a_loss_that_is_not_a_number_says_so() -> None:
    assert [loss(2.34567), loss(None), loss(math.nan)] == ["2.3457", UNKNOWN, "not a number"]


def test_one_item_is_singular() -> None:
    assert [counted(number, "layer") for number in (0, 1, 1200)] == ["0 layers", "1 layer", "1,200 layers"]
