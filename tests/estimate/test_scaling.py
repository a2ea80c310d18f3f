"""The scaling table: the same updates on more ranks, honest about idle ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.cli.plan_report import explain_scaling
from stacking.estimate.prediction import predict
from stacking.estimate.scaling import RANKS, divides, on_ranks, scaling
from tests.estimate.plans import shipped, tabled

LARGE = shipped("bert-large-a100")
TABLE = scaling(LARGE, tabled(LARGE, price=2.0))


@given(st.integers(1, 5000), st.integers(1, 2000))
def test_as_many_ranks_as_divide_the_batch_are_used(batch: int, ranks: int) -> None:
    used = divides(batch, ranks)
    assert batch % used == 0 and used <= ranks
    assert not any(batch % more == 0 for more in range(used + 1, min(ranks, batch) + 1))


@given(st.integers(1, 2000))
def test_the_global_batch_is_unchanged(ranks: int) -> None:
    for stage, planned in zip(on_ranks(LARGE, ranks).stages, LARGE.stages, strict=True):
        assert stage.micro_batch * stage.accumulation * stage.ranks == planned.global_batch
        assert stage.micro_batch <= planned.micro_batch


def test_the_planned_number_of_ranks_gives_the_plans_prediction() -> None:
    row = next(row for row in TABLE.rows if row.ranks == LARGE.stages[0].ranks)
    own = predict(LARGE, tabled(LARGE, price=2.0))
    assert (row.seconds, row.cost) == (pytest.approx(own.seconds), pytest.approx(own.cost))


def test_the_table_ranges_from_1_to_1024() -> None:
    assert tuple(row.ranks for row in TABLE.rows) == RANKS
    assert (RANKS[0], RANKS[-1]) == (1, 1024)
    first = TABLE.rows[0]
    assert (first.efficiency, first.communication_share, first.idle) == (1, 0, 0)
    assert all(0 < row.efficiency <= 1 for row in TABLE.rows)
    assert all(row.seconds == pytest.approx(sum(row.stage_seconds)) for row in TABLE.rows)
    assert [row.seconds for row in TABLE.rows] == sorted((row.seconds for row in TABLE.rows), reverse=True)
    assert [row.gpu_hours for row in TABLE.rows] == sorted(row.gpu_hours for row in TABLE.rows)


def test_idle_ranks_are_counted_and_paid_for() -> None:
    demo = shipped("books-cpu")
    rows = {row.ranks: row for row in scaling(demo, tabled(demo, price=1.0)).rows}
    assert rows[1024].used == (32, 32, 32)
    assert rows[1024].idle == 992
    assert rows[1024].seconds == pytest.approx(rows[32].seconds)
    assert rows[1024].cost == pytest.approx(32 * (rows[32].cost or 0))


def test_the_assumptions_are_printed() -> None:
    text = explain_scaling(LARGE, TABLE, memory=1 << 30)
    for words in ("simulated", "NVLink 3", "InfiniBand", "312 TFLOPS", "idle", "assumed", "1,024", "eff."):
        assert words in text
    assert "*" in text.splitlines()[3]
    assert max(map(len, text.splitlines())) <= 120
