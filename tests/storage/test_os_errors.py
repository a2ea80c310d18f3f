"""A full disk is named; a transient error is retried and is never reported as the user's mistake."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacking.errors import NoSpace, StackingError, StorageFailure, UserError
from stacking.launch.job import Outcome
from stacking.launch.outcome import describe, diagnosed, raise_for
from stacking.storage import files, os_errors
from stacking.storage.files import checksum, disk_errors, read_sealed, write_sealed
from stacking.storage.os_errors import TRANSIENT, is_full, patiently, storage_error
from tests.data.conftest import write_corpus


class Failing:
    """A call that fails ``times`` times with ``number``, and then returns 7."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.left, self.calls = number, times, 0

    def __call__(self, *_: object, **__: object) -> int:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return 7


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os_errors, "_PAUSES", (0, 0, 0))


@pytest.mark.parametrize("number", sorted(TRANSIENT - {errno.EINTR}))
def test_a_transient_error_is_retried(number: int) -> None:
    assert patiently(Failing(number, 3)) == 7


@pytest.mark.parametrize(("number", "calls"), [(errno.EIO, 4), (errno.ENOSPC, 1), (errno.EACCES, 1)])
def test_retries_are_limited_and_only_for_transient_errors(number: int, calls: int) -> None:
    action = Failing(number, 100)
    with pytest.raises(OSError):
        patiently(action)
    assert action.calls == calls


@pytest.mark.parametrize("number", sorted(TRANSIENT))
def test_an_error_that_persists_is_a_failure_that_names_the_file(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageFailure) as caught, disk_errors(tmp_path / "f"):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 1 and not isinstance(caught.value, UserError)
    assert str(caught.value).startswith(f"{tmp_path / 'f'}: ") and "\n" not in str(caught.value)


def test_writing_and_reading_survive_a_transient_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, failing = os.replace, Failing(errno.ESTALE, 2)

    def disturbed(source: Path, target: Path) -> None:
        failing()
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", disturbed)
    write_sealed(tmp_path / "f", {"a": 1})
    assert failing.calls == 3 and read_sealed(tmp_path / "f") == {"a": 1}
    assert os.listdir(tmp_path) == ["f"]


def test_a_temporarily_unreadable_file_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sealed(tmp_path / "f", {"a": 1})
    monkeypatch.setattr(files, "open_file", Failing(errno.EIO, 100))
    with pytest.raises(StorageFailure, match="f: "):
        read_sealed(tmp_path / "f")
    monkeypatch.undo()
    monkeypatch.setattr("builtins.open", Failing(errno.EIO, 100))
    with pytest.raises(StorageFailure):
        checksum(tmp_path / "f")


def test_temporarily_unreadable_tensors_are_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with files.new_folder(tmp_path / "s") as folder:
        (folder / "weights").write_bytes(b"7" * 100)
    for failing in (Failing(errno.ESTALE, 2), Failing(errno.ESTALE, 100)):
        preadv = os.preadv
        monkeypatch.setattr(os, "preadv", lambda *a, fail=failing, real=preadv: fail() and real(*a))
        if failing.left < 4:
            files.verify_folder(tmp_path / "s")
        else:
            with pytest.raises(StorageFailure, match="weights: Stale file handle"):
                files.verify_folder(tmp_path / "s")
        monkeypatch.undo()
        monkeypatch.setattr(os_errors, "_PAUSES", (0, 0, 0))


def test_the_storage_error_that_caused_another_error_is_found(tmp_path: Path) -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "shard"))
        except OSError as error:
            raise RuntimeError("failed writing file") from error
    except RuntimeError as error:
        assert isinstance(found := storage_error(error), NoSpace) and str(tmp_path / "shard") in str(found)
    assert storage_error(RuntimeError("a bug")) is None


def test_the_file_system_and_its_free_bytes_are_reported(tmp_path: Path) -> None:
    message = str(NoSpace(tmp_path / "not" / "yet" / "there"))
    assert "no space left on the device (file system /" in message and "bytes free" in message


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB without a free byte."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    (mounted / "job.rank0.log").touch()
    (mounted / "run").mkdir()
    with pytest.raises(OSError):
        (mounted / "filler").write_bytes(b"\0" * (1 << 20))
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_a_rank_that_could_not_write_its_log_was_stopped_by_the_full_disk(full_disk: Path) -> None:
    outcome = diagnosed(Outcome(exit_code=1, log=full_disk / "job.rank0.log"))
    assert outcome.exit_code == 2
    assert "no space left on the device" in describe(outcome)
    with pytest.raises(StackingError, match=f"no space left on the device .file system {full_disk}") as caught:
        raise_for(outcome)
    assert caught.value.exit_code == 2


def test_a_silent_rank_on_a_disk_with_free_space_is_an_ordinary_failure(tmp_path: Path) -> None:
    (tmp_path / "job.rank0.log").touch()
    assert not is_full(tmp_path) and os.listdir(tmp_path) == ["job.rank0.log"]
    outcome = Outcome(exit_code=1, log=tmp_path / "job.rank0.log")
    assert diagnosed(outcome) == outcome and "no output" in describe(outcome)


def test_a_rank_keeps_its_exit_code_when_its_output_cannot_be_written() -> None:
    script = (
        "from stacking.errors import UserError\nfrom stacking.launch.rank import run_rank\n"
        "def work(): raise UserError('x', 'is wrong', 'mend it')\nrun_rank(work)"
    )
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-c", script]
        done = subprocess.run(argv, stdout=full, stderr=full, env={**os.environ, "RANK": "0"})
    assert done.returncode == 2


def test_a_full_disk_is_named_by_the_command_line(tmp_path: Path, full_disk: Path) -> None:
    write_corpus(tmp_path / "text", documents=4)
    argv = [sys.executable, "-m", "stacking", "prepare", str(tmp_path / "text"), "--out", str(full_disk / "data")]
    done = subprocess.run(argv, capture_output=True, text=True)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and done.stderr.count("stacking: ") == 1, done.stderr
    assert error.startswith("stacking: ") and f"(file system {full_disk}, " in error and "standard output" not in error
