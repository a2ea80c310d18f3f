from __future__ import annotations

import json
from pathlib import Path

import pytest

from stacking.report import tables
from stacking.report.run import Run, read_run
from stacking.storage.files import write_sealed
from tests.report.synthetic import SyntheticRun


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(tmp_path / "run")


def column(table: tables.Table, name: str) -> list[str]:
    return [row[table.head.index(name)] for row in table.rows]


def test_the_stage_table_shows_each_stage_and_the_sum(run: SyntheticRun) -> None:
    table = tables.stage_table(read_run(run.whole().path))
    assert column(table, "layers") == ["3", "6", "12", ""]
    assert column(table, "steps") == ["100", "100", "100", "300"]
    assert column(table, "real tokens") == ["410 k", "410 k", "410 k", "1.23 M"]
    assert column(table, "real tokens/s") == ["13.7 k", "6.83 k", "3.41 k", "5.85 k"]
    assert column(table, "training") == ["30 s", "1 min", "2 min", "3 min 30 s"]
    assert column(table, "evaluation") == ["8.0 s", "8.0 s", "8.0 s", "24 s"]
    assert column(table, "transition") == ["5.0 s", "9.5 s", "9.5 s", "24 s"]


def test_a_run_of_one_stage_has_no_sum(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, layers=(12,), steps=(30,)).whole()
    assert column(tables.stage_table(read_run(run.path)), "stage") == ["1"]


def test_a_stage_in_progress_shows_its_progress(run: SyntheticRun) -> None:
    run.train(0)
    run.transition(0)
    run.train(1, last=40, evaluate_every=None)
    table = tables.stage_table(read_run(run.path))
    assert column(table, "steps") == ["100", "40 of 100", "0", "140"]
    assert column(table, "held-out loss")[1] == tables.UNKNOWN


def test_the_text_is_aligned_and_complete(run: SyntheticRun) -> None:
    table = tables.stage_table(read_run(run.whole().path))
    head, rule, *rows = table.as_text().splitlines()
    assert len(rows) == 4
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    assert rows[1].split()[:3] == ["2", "6", "5.20"]


def test_incidents_are_in_the_order_in_which_they_happened(run: SyntheticRun) -> None:
    run.train(0, last=40)
    run.wait(100)
    run.event("resumed")
    run.train(0, first=41, last=60, attempt=2)
    run.event("failed", phase="train", stage=0, attempt=2, message="rank 1: <out of memory>")
    run.wait(10)
    run.event("damaged", phase="verify", stage=-1, message="global_step50 does not match its checksum")
    run.train(0, first=41, attempt=3)
    table = tables.incident_table(read_run(run.path))
    assert column(table, "what") == ["killed", "resumed", "failed", "damaged"]
    assert column(table, "stage") == ["0-L3", "", "0-L3", ""]
    assert column(table, "attempt") == ["1", "", "2", ""]


def test_an_undisturbed_run_has_no_incidents(run: SyntheticRun) -> None:
    assert tables.incident_table(read_run(run.whole().path)).rows == []


def test_the_digests_of_model_data_and_states_are_named(run: SyntheticRun) -> None:
    seen: Run = read_run(run.whole().path)
    values = dict(tables.identity_table(seen).rows)
    assert values["data digest"] == "d1d1"
    assert values["plan digest"] == run.plan.digest
    assert values["grow digest, stage 2"] == "start2"


def test_the_schedule_shows_both_ends_of_the_learning_rate_and_a_peak_between(run: SyntheticRun) -> None:
    rates = column(tables.schedule_table(read_run(run.path)), "learning rate")
    assert rates[0] == "0.0001 → 0.001 → 0.0005"
    plan = json.loads(run.plan.to_json())
    plan["stages"][0]["learning_rate"] = [[0, 5.5e-4], [100, 3e-4]]
    write_sealed(run.path / "plan.json", plan)
    assert column(tables.schedule_table(read_run(run.path)), "learning rate")[0] == "0.00055 → 0.0003"


def test_every_table_has_rows_as_long_as_its_head(run: SyntheticRun) -> None:
    run.train(0, last=40)
    run.event("resumed")
    seen = read_run(run.path)
    makers = (
        tables.stage_table,
        tables.schedule_table,
        tables.transition_table,
        tables.account_table,
        tables.incident_table,
        tables.identity_table,
    )
    for table in [*(maker(seen) for maker in makers), tables.version_table()]:
        assert {len(row) for row in table.rows} == {len(table.head)}
