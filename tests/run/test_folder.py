"""One controller per run; a killed one's lock lasts until its last rank is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stacking.errors import UserError
from stacking.run.folder import RunFolder, is_locked

HOLD = """
import pathlib, subprocess, sys, time
from stacking.run.folder import RunFolder
with RunFolder(pathlib.Path(sys.argv[1])).locked() as lock:
    child = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=[lock.descriptor], stdout=subprocess.DEVNULL)
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(folder: Path, child_seconds: float) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", HOLD, str(folder), str(child_seconds)]
    holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    return holder


def test_a_run_in_use_is_refused_immediately_and_the_holder_named(tmp_path: Path) -> None:
    holder = start_holder(tmp_path, 60)
    try:
        started = time.monotonic()
        with pytest.raises(UserError, match=f"is in use by process {holder.pid} on"), RunFolder(tmp_path).locked():
            pass
        assert time.monotonic() - started < 5
    finally:
        holder.kill()


def test_the_lock_of_a_killed_controller_is_awaited_until_its_children_are_gone(tmp_path: Path) -> None:
    holder = start_holder(tmp_path, 1.5)
    holder.kill()
    holder.wait()
    started = time.monotonic()
    with RunFolder(tmp_path).locked(patience=10):
        assert 0.3 < time.monotonic() - started < 8


def test_a_lock_is_free_again_after_use(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for _ in range(2):
        with run.locked():
            pass


def test_an_impossible_file_name_is_reported_in_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot be created \(File name too long\); choose another name"):
        is_locked(Path("x" * 300) / "lock")


def test_a_named_pipe_in_place_of_the_lock_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    assert not is_locked(tmp_path / "lock")
