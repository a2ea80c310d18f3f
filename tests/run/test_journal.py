"""The journal keeps its events, whatever kills its writer."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.run.journal import Event, Journal
from stacking.storage.seal import sealed

OF_A_RUN = ("created", "resumed", "submitted", "cancelled")


def test_events_come_back_in_order_with_time_and_place(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("created", plan="abc")
    journal.append("started", phase="train", stage=0)
    created, started = journal.events()
    assert (created["event"], created["plan"]) == ("created", "abc")
    assert started["time"] >= created["time"] and started["host"] and started["pid"]


def test_attempts_are_counted_per_phase_and_stage(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for stage in (0, 0, 1):
        journal.append("started", phase="train", stage=stage)
    journal.append("started", phase="grow", stage=1)
    assert [journal.attempts("train", s) for s in (0, 1, 2)] == [2, 1, 0]


def test_a_missing_journal_has_no_events(tmp_path: Path) -> None:
    assert Journal(tmp_path / "j").events() == []


@given(cut=st.integers(min_value=1, max_value=60))
def test_a_line_cut_short_by_a_crash_is_dropped_and_does_not_affect_the_next(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    journal = Journal(path)
    journal.append("created", plan="abc")
    whole = path.read_bytes()
    journal.append("started", phase="train", stage=0)
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    assert [e["event"] for e in journal.events()] == ["created"]
    journal.append("failed", phase="train", stage=0)
    assert [e["event"] for e in journal.events()] == ["created", "failed"]


@pytest.mark.parametrize(
    "line",
    [
        "garbage",
        "[1]",
        '{"time": 1}',
        '{"time": 1, "event": "fnished", "phase": "train", "stage": 0}',
        '{"time": "now", "event": "created"}',
        '{"time": 1, "event": "started", "stage": 0}',
        '{"time": 1, "event": "started", "phase": "train", "stage": "0"}',
        '{"time": 1, "event": "finished", "phase": "train", "stage": 0, "seconds": "long"}',
    ],
)
def test_a_line_that_is_not_an_event_is_ignored(tmp_path: Path, line: str) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("created", plan="abc")
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        line = json.dumps(sealed(json.loads(line)))
    journal.path.write_bytes(line.encode() + b"\n" + journal.path.read_bytes())
    assert [event["event"] for event in journal.events()] == ["created"]
    assert journal.damaged_lines() == [1]


@given(line=st.integers(0, 2), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_costs_at_most_its_line_and_is_repaired(
    tmp_path_factory: pytest.TempPathFactory, line: int, place: float, bit: int
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "j")
    for number in range(4):
        journal.append("started", phase="train", stage=number)
    before = journal.events()
    lines = journal.path.read_bytes().splitlines(keepends=True)
    data = bytearray(lines[line])
    data[int(place * (len(data) - 1))] ^= 1 << bit
    lines[line] = bytes(data)
    journal.path.write_bytes(b"".join(lines))

    left = journal.events()
    assert left in (before, [event for event in before if event["stage"] != line])
    told = journal.mend()
    assert (told is None) == (left == before)
    assert told is None or str(journal.path) in told
    assert journal.events() == left and journal.mend() is None
    assert journal.append("started", phase="train", stage=9) == journal.events()[-1]


def test_a_folder_in_place_of_the_journal_is_set_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.path.mkdir()
    assert journal.events() == [] and "is not a file" in str(journal.mend())
    journal.append("created", plan="abc")
    assert len(journal.events()) == 1


@pytest.mark.parametrize("event", get_args(Event))
def test_every_kind_of_event_reads_back(tmp_path: Path, event: Event) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(event, **({} if event in OF_A_RUN else {"phase": "train", "stage": 0}))
    assert [e["event"] for e in journal.events()] == [event]
