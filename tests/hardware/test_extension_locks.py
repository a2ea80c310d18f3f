"""The lock of a killed build is distinguished from that of a running one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from stacking.errors import UserError
from stacking.hardware import extension_locks
from stacking.hardware.extension_locks import build_locks, stale_locks
from stacking.train.builds import wait_for_builds


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(extension_locks, "_BUILDERS", ())  # other tests may compile at the same time
    made = tmp_path / "fused_adam" / "lock"
    made.parent.mkdir()
    made.touch()
    return made


def age(lock: Path, seconds: float) -> None:
    for path in (lock, lock.parent):
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_lock_next_to_files_that_no_longer_change_is_stale(lock: Path) -> None:
    assert (build_locks(), stale_locks()) == ([lock], [])
    age(lock, 300)
    assert stale_locks() == [lock]
    (lock.parent / "adam.o").touch()
    assert stale_locks() == []


def test_a_lock_is_not_stale_while_a_compiler_runs(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age(lock, 300)
    monkeypatch.setattr(extension_locks, "_BUILDERS", (Path("/proc/self/comm").read_text().strip(),))
    assert stale_locks() == []


def test_torchs_default_build_folder_depends_on_the_python_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build_locks() == []
    lock = tmp_path / "torch_extensions" / "py311_cu126" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert build_locks() == [lock]


def test_a_rank_refuses_a_stale_lock_with_the_command_that_removes_it(lock: Path) -> None:
    age(lock, 300)
    with pytest.raises(UserError, match=f"{lock}: .* killed.*; run `rm {lock}`"):
        wait_for_builds()
    lock.unlink()
    wait_for_builds()


def test_a_rank_that_waits_for_a_build_says_so(
    lock: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stacking.train.builds.time.sleep", lambda seconds: lock.unlink())
    wait_for_builds()
    assert capsys.readouterr().err == f"waiting for the build that holds {lock}\n"
