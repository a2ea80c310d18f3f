"""One controller per run, whatever happens to the lock file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stacking.errors import LostLock, UserError
from stacking.run import lease as module
from stacking.run.lease import TOKEN_VARIABLE, Lease, Watch, read_holder


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


JUNK = [b"", b"not JSON", b"[]", b"7", b"\xff\xfe", b'{"pid": "1", "host": "h", "token": "t"}', b"[" * 100_000]


@pytest.mark.parametrize("content", JUNK)
def test_a_foreign_lock_file_is_taken_over(lock: Path, content: bytes) -> None:
    lock.write_bytes(content)
    assert read_holder(lock) is None
    lease = Lease(lock, patience=0)
    holder = read_holder(lock)
    assert holder is not None and holder.is_alive_here and holder.token == lease.token
    lease.close()


@pytest.mark.parametrize("content", JUNK)
def test_a_held_lock_with_foreign_content_is_still_in_use(lock: Path, content: bytes) -> None:
    lease = Lease(lock, patience=0)
    lock.write_bytes(content)
    with pytest.raises(UserError, match="is in use by another process"):
        Lease(lock, patience=0)
    lease.renew()
    assert read_holder(lock) is not None
    lease.close()


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo], ids=["folder", "named pipe"])
def test_anything_other_than_a_file_in_place_of_the_lock_is_set_aside(lock: Path, put: Callable[[Path], None]) -> None:
    put(lock)
    assert read_holder(lock) is None
    lease = Lease(lock, patience=0)
    assert lock.is_file() and lock.with_name("lock.damaged").exists()
    lease.close()


def test_a_folder_in_place_of_a_held_lock_is_set_aside_by_its_holder(lock: Path) -> None:
    lease = Lease(lock, patience=0)
    lock.unlink()
    lock.mkdir()
    lease.renew()
    with pytest.raises(UserError, match="is in use by process"):
        Lease(lock, patience=0)
    lease.close()


def test_a_removed_lock_is_recreated_and_keeps_others_out(lock: Path) -> None:
    lease = Lease(lock, patience=0)
    lock.unlink()
    lease.renew()
    with pytest.raises(UserError, match="is in use by process"):
        Lease(lock, patience=0)
    lease.close()
    Lease(lock, patience=0).close()


@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
def test_a_lock_taken_by_another_controller_is_lost_even_after_that_one_has_ended(lock: Path, ended: bool) -> None:
    first = Lease(lock, patience=0)
    lock.unlink()
    second = Lease(lock, patience=0)
    if ended:
        second.close()
    with pytest.raises(LostLock, match="lock: another controller has taken the run over"):
        first.renew()
    holder = read_holder(lock)
    assert holder is not None and holder.token == second.token
    first.close()
    if not ended:
        second.renew()
        second.close()


def test_rank_0_detects_that_another_controller_holds_the_lock(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LOOKS", 0.0)
    first = Lease(lock, patience=0)
    watch = Watch(lock, {TOKEN_VARIABLE: first.token})
    assert not watch.is_lost()
    lock.unlink()
    assert not watch.is_lost()
    second = Lease(lock, patience=0)
    assert watch.is_lost() and not Watch(lock, {}).is_lost()
    first.close()
    second.close()


def test_the_descriptor_is_not_inherited_by_children(lock: Path) -> None:
    lease = Lease(lock, patience=0)
    assert not os.get_inheritable(lease.descriptor)
    lease.close()
