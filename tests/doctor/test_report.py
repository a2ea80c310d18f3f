"""What a visit looks like on a terminal."""

from __future__ import annotations

import pytest

from stacking.doctor.examine import Visit
from stacking.doctor.facts import Facts, Host
from stacking.doctor.finding import Finding
from stacking.doctor.report import as_text, summary
from tests.doctor.test_checks_cluster import collectives, transfer

FINDINGS = [
    Finding("ok", "cores", "8"),
    Finding("note", "Triton", "word " * 60, "nothing"),
    Finding("error", "torch", "not installed", "pip install torch"),
]


def test_the_worst_finding_comes_first_and_long_lines_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = as_text(Visit(Facts(host=Host(name="n1")), FINDINGS)).splitlines()
    assert lines[0] == "ERROR    torch              not installed"
    assert lines[1] == "                            → pip install torch"
    assert lines[2].startswith("note     Triton             word word")
    assert lines[-3:] == ["ok       cores              8", "", "n1: 1 error, 1 note"]
    assert max(map(len, lines)) <= 80


def test_transfers_are_shown_as_a_table_of_sizes_and_operations() -> None:
    found = collectives(transfers=(transfer(1 << 10, 1e6), transfer(64 << 20, 20e9), transfer(64 << 20, 1e9, "x")))
    head, small, large = as_text(Visit(Facts(collectives=found), [])).splitlines()[1:4]
    assert head.split() == ["all-reduce", "x"]
    assert small.split() == ["1", "KiB", "1.024", "ms", "0.00", "GB/s"]
    assert large.split() == ["64", "MiB", "3.355", "ms", "20.00", "GB/s", "67.109", "ms", "1.00", "GB/s"]


def test_finding_nothing_wrong_is_reported_too() -> None:
    assert summary(Visit(Facts(), FINDINGS[:1])) == "this machine: no complaints"
