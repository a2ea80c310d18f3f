"""The paper's table says which metrics and tasks an average is over, and counts failed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.errors import DamagedFile, UserError
from stacking.glue.summary import GlueSummary, read_summary, summarise, write_summary
from stacking.glue.table import COLUMNS, PUBLISHED, as_text, average, paper_table, spread_table
from tests.glue.results import result

PAPER = dict(zip(("BERT-base", "baseline", "stacking"), PUBLISHED, strict=False))


def scored(model: str = "ours", from_mnli: bool = False) -> GlueSummary:
    rte = [result("RTE", seed, {"RTE": {"accuracy": value}}, failed=value < 0.5) for seed, value in
           enumerate((0.6, 0.45, 0.7))]  # fmt: skip
    mrpc = [result("MRPC", 0, {"MRPC": {"f1": 0.9, "accuracy": 0.8}})]
    tasks = [summarise(mrpc, False), summarise(rte, False)] + ([summarise(rte, True)] if from_mnli else [])
    return GlueSummary(model=model, recipe="original", changes=(), tasks=tuple(tasks))


@pytest.mark.parametrize(("row", "expected"), [("BERT-base", 78.3), ("stacking", 78.4)])
def test_the_published_averages_also_count_wnli_at_its_majority(row: str, expected: float) -> None:
    own = average(PAPER[row].cells, COLUMNS)
    assert own is not None
    assert round((8 * own + 65.1) / 9, 1) == expected


def test_an_average_needs_all_of_its_tasks() -> None:
    cells = {"CoLA": (50.0,), "MRPC": (90.0, 80.0)}
    assert average(cells, ["CoLA", "MRPC"]) == (50 + 85) / 2
    assert average(cells, ["CoLA", "RTE"]) is None and average(cells, []) is None


def test_published_rows_are_averaged_over_our_tasks() -> None:
    table = paper_table([scored()])
    assert table.head[-1] == "average of 2"
    rows = {row[0]: row for row in table.rows}
    assert rows["ours"] == ("ours", "dev", "—", "—", "90.0/80.0", "—", "—", "—", "—", "60.0", "72.5")
    assert rows["stacking (Gong et al., 2019)"][-1] == f"{((88.2 + 83.9) / 2 + 67.0) / 2:.1f}"
    assert any(note.startswith("The average is over MRPC, RTE: ") for note in table.notes)


def test_two_models_share_a_table_and_its_average() -> None:
    one = scored("one").model_copy(update={"tasks": scored().tasks[1:]})
    table = paper_table([one, scored("two")])
    assert [row[0] for row in table.rows[-2:]] == ["one", "two"]
    assert table.head[-1] == "average of 1"
    assert table.rows[-1][-1] == table.rows[-2][-1] == "60.0"


def test_rows_from_mnli_are_marked_and_have_no_average() -> None:
    *_, own, started = paper_table([scored(from_mnli=True)]).rows
    assert own[0] == "ours" and own[-1] == "72.5"
    assert started[0] == "ours, from MNLI (not comparable)" and (started[-2], started[-1]) == ("60.0", "—")
    assert any(note.startswith("Rows from MNLI start") for note in paper_table([scored(from_mnli=True)]).notes)


def test_failed_runs_are_counted_and_stay_in_the_median() -> None:
    summary = scored()
    spread = summary.tasks[1].scores["RTE"]["accuracy"]
    assert (spread.median, spread.lowest, spread.highest) == (0.6, 0.45, 0.7)
    assert spread.deviation == pytest.approx(0.1258, abs=1e-4)
    assert summary.tasks[1].failed == (1,)
    row = spread_table(summary).rows[-1]
    assert row == ("RTE", "accuracy", "60.0", "45.0", "70.0", "12.6", "0.0", "1 of 3 runs", "6.0 s")
    assert "1 of 3 runs" in as_text(summary)


def test_a_summary_round_trips_and_a_modified_one_is_refused(tmp_path: Path) -> None:
    write_summary(tmp_path, scored())
    assert read_summary(tmp_path) == scored()
    path = tmp_path / "glue.json"
    path.write_text(path.read_text().replace("0.6", "0.9"))
    with pytest.raises(DamagedFile, match=r"glue\.json"):
        read_summary(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_summary(tmp_path / "nothing")


def test_notes_mention_what_was_unusual() -> None:
    unusual = result("RTE", 0, {"RTE": {"accuracy": 0.6}}).model_copy(
        update={"max_length": 64, "cut": 7, "left_out": 2, "notes": ("the model has no pooler",)}
    )
    assert summarise([unusual], False).notes == (
        "the model has no pooler",
        "inputs have at most 64 tokens: the model has no more positions",
        "7 training inputs were cut to 64 tokens",
        "2 lines of the data without all columns and a label were left out",
    )
