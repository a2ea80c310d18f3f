from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.errors import NoSpace
from stacking.run.metrics import Follower, MetricsWriter, inspect_metrics, read_metrics, truncate_after


def record(step: int, **facts: object) -> dict[str, object]:
    return {"kind": "train", "stage": 0, "step": step, "loss": 1 / (step + 1), **facts}


def write(path: Path, steps: range | list[int]) -> None:
    with MetricsWriter(path) as metrics:
        for step in steps:
            metrics.append(record(step))


def steps_in(path: Path) -> list[int]:
    return [r["step"] for r in read_metrics(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "0-L3" / "metrics.jsonl"


def test_records_come_back_as_they_were_written(path: Path) -> None:
    records = [record(1, note="é\n\r"), record(2, tokens=2**40)]
    with MetricsWriter(path) as metrics:
        for each in records:
            metrics.append(each)
    assert read_metrics(path) == records


def test_a_loss_that_is_not_a_number_survives(path: Path) -> None:
    with MetricsWriter(path) as metrics:
        metrics.append(record(1, loss=math.nan))
    assert math.isnan(read_metrics(path)[0]["loss"])


def test_a_record_can_be_read_as_soon_as_append_returns(path: Path) -> None:
    with MetricsWriter(path) as metrics:
        metrics.append(record(1))
        assert steps_in(path) == [1]


def test_a_file_that_does_not_exist_has_no_records(path: Path) -> None:
    assert read_metrics(path) == []
    assert truncate_after(path, 3) == 0


@given(cut=st.integers(min_value=0), steps=st.integers(min_value=1, max_value=8))
def test_a_line_torn_anywhere_is_ignored_and_removed_by_the_next_writer(cut: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write(path, range(1, steps + 1))
        content = path.read_bytes()
        path.write_bytes(content[: cut % (len(content) + 1)])
        whole = steps_in(path)
        assert whole == list(range(1, path.read_bytes().count(b"\n") + 1))
        write(path, [99])
        assert steps_in(path) == [*whole, 99]


@given(
    steps=st.lists(st.integers(min_value=1, max_value=20), max_size=20).map(sorted),
    after=st.integers(min_value=0, max_value=25),
    torn=st.booleans(),
)
def test_truncation_keeps_exactly_the_records_up_to_the_step(steps: list[int], after: int, torn: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write(path, steps)
        if torn:
            with open(path, "ab") as file:
                file.write(b'{"kind": "train", "st')
        dropped = truncate_after(path, after)
        assert steps_in(path) == [step for step in steps if step <= after]
        assert dropped == sum(step > after for step in steps)
        assert truncate_after(path, after) == 0


def test_truncation_leaves_no_other_file(path: Path) -> None:
    write(path, range(1, 5))
    truncate_after(path, 2)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"step": 1}', "\0\0\0", "[" * 100_000, ""])
def test_a_damaged_line_is_named_and_skipped(path: Path, line: str) -> None:
    write(path, [1])
    with open(path, "a") as file:
        file.write(line + "\n")
    write(path, [2, 3])
    records, damage = inspect_metrics(path)
    assert [r["step"] for r in records] == [1, 2, 3]
    assert len(damage) == 1 and damage[0].startswith("line 2 ")
    truncate_after(path, 2)
    assert steps_in(path) == [1, 2] and len(inspect_metrics(path).damage) == 1
    truncate_after(path, 0)
    assert inspect_metrics(path) == ([], [])


@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_flipped_bit_is_detected(position: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write(path, [1, 2, 3])
        content = bytearray(path.read_bytes())
        last = content.rfind(b"\n")  # tearing the last line
        content[position % last] ^= 1 << bit
        path.write_bytes(content)
        records, damage = inspect_metrics(path)
        assert damage and all(r == record(r["step"]) for r in records)


def test_a_follower_skips_damage(path: Path) -> None:
    write(path, [1, 2, 3])
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1].replace(b"2", b"3"), *lines[2:]]))
    follower = Follower(path)
    assert [r["step"] for r in follower.poll()] == [1, 3]
    assert follower.damage == ["line 2 was altered"]


def test_a_folder_in_place_of_the_file_is_named_and_set_aside(path: Path) -> None:
    path.mkdir(parents=True)
    assert inspect_metrics(path) == ([], ["is not a file"])
    assert truncate_after(path, 4) == 0
    write(path, [5])
    assert steps_in(path) == [5] and path.with_name("metrics.jsonl.damaged").is_dir()


def test_a_writer_that_is_killed_leaves_whole_records(path: Path) -> None:
    script = (
        "import itertools, sys; from pathlib import Path; from stacking.run.metrics import MetricsWriter\n"
        "metrics = MetricsWriter(Path(sys.argv[1]))\n"
        "for step in itertools.count(1): metrics.append({'kind': 'train', 'step': step, 'pad': 'x' * 5000})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)])
    while not read_metrics(path):
        assert writer.poll() is None
    writer.kill()
    writer.wait()
    steps = steps_in(path)
    assert steps == list(range(1, len(steps) + 1))


def test_a_full_disk_leaves_earlier_records_intact(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk:
        """A raw file that accepts a few bytes of the second line and then no more."""

        def __init__(self, file: object) -> None:
            self.file, self.calls = file, 0

        def write(self, data: memoryview) -> int:
            self.calls += 1
            if self.calls == 1:
                return int(self.file.write(data[:5]))  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    with MetricsWriter(path) as metrics:
        metrics.append(record(1))
        monkeypatch.setattr(metrics, "_file", FullDisk(metrics._file))
        with pytest.raises(NoSpace, match="no space"):
            metrics.append(record(2))
        assert path.read_bytes().endswith(b"}\n")
        assert steps_in(path) == [1]


def test_a_follower_returns_each_record_once(path: Path) -> None:
    follower = Follower(path)
    assert follower.poll() == []
    with MetricsWriter(path) as metrics:
        metrics.append(record(1))
        assert [r["step"] for r in follower.poll()] == [1]
        metrics.append(record(2))
        metrics.append(record(3))
        assert [r["step"] for r in follower.poll()] == [2, 3]
        assert follower.poll() == []


def test_a_follower_waits_for_the_rest_of_a_line(path: Path) -> None:
    write(path, [1])
    line = path.read_bytes()
    path.write_bytes(b"")
    follower = Follower(path)
    for part in (line[:7], line[7:-1]):
        with open(path, "ab") as file:
            file.write(part)
        assert follower.poll() == []
    with open(path, "ab") as file:
        file.write(line[-1:])
    assert follower.poll() == [record(1)]


@pytest.mark.parametrize("looked_in_between", [True, False])
def test_a_follower_goes_back_with_the_file_and_repeats_nothing(path: Path, looked_in_between: bool) -> None:
    write(path, range(1, 6))
    follower = Follower(path)
    assert len(follower.poll()) == 5
    truncate_after(path, 3)
    if looked_in_between:
        assert follower.poll() == []
    with MetricsWriter(path) as metrics:
        for step in (4, 5, 6, 7):
            metrics.append(record(step, time=2))
    assert [r["step"] for r in follower.poll()] == [4, 5, 6, 7]


def test_a_follower_survives_a_file_cut_in_place_or_removed(path: Path) -> None:
    write(path, range(1, 6))
    follower = Follower(path)
    follower.poll()
    os.truncate(path, 0)
    assert follower.poll() == []
    write(path, [9])
    assert [r["step"] for r in follower.poll()] == [9]
    path.unlink()
    assert follower.poll() == []
    write(path, [9, 10])
    assert [r["step"] for r in follower.poll()] == [10]
