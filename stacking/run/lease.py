"""Implements a run's lock: a file lock held by one controller, with a token in the file that identifies the holder.

The file lock alone does not detect that its file was removed and another controller locked a new file of the same
name. Therefore the controller (`Lease.renew`) and rank 0 (`Watch`) compare token and inode regularly.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stacking.errors import LostLock, StackingError, UserError
from stacking.storage.files import disk_errors, set_aside_unless_file
from stacking.storage.os_errors import patiently

TOKEN_VARIABLE = "STACKING_LOCK_TOKEN"
"""Environment variable that passes the controller's token to its ranks."""
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Holder:
    """Identifies the controller that holds a lock."""

    pid: int
    host: str
    token: str

    @property
    def is_alive_here(self) -> bool:
        """Returns whether the holder is a process of this host that still exists."""
        return self.host == socket.gethostname() and Path(f"/proc/{self.pid}").exists()


def read_holder(lock: Path) -> Holder | None:
    """Returns the holder that ``lock`` names; None if the file is missing or malformed."""
    if not lock.is_file():  # reading a named pipe would wait for ever
        return None
    try:
        content = json.loads(lock.read_bytes())
        holder = Holder(content["pid"], content["host"], content["token"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    valid = type(holder.pid) is int and isinstance(holder.host, str) and isinstance(holder.token, str)
    return holder if valid else None


class Lease:
    """Holds a run's lock until `close`; children that inherit ``descriptor`` hold it until they end.

    Args:
        patience: seconds to wait for a lock whose holder is not alive on this host.

    Raises:
        UserError: another controller holds it.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self.path, self.token = path, secrets.token_hex(16)
        self._seen = time.monotonic()
        deadline = time.monotonic() + patience
        while (descriptor := self._taken()) is None:
            holder = read_holder(path)
            if time.monotonic() > deadline or (holder and holder.is_alive_here):
                who = f"process {holder.pid} on {holder.host}" if holder else "another process"
                remedy = "wait until it ends, stop it, or choose another folder"
                raise UserError(path.parent, f"is in use by {who}", remedy)
            time.sleep(0.1)
        self.descriptor = descriptor
        self._sign()

    def renew(self) -> None:
        """Checks that the lock is still held; restores a file that was removed or overwritten.

        Raises:
            LostLock: another controller has locked a new file in its place.
        """
        self._seen = time.monotonic()
        holder, same_file = read_holder(self.path), self._is_at_path(self.descriptor)
        if same_file and holder is not None and holder.token == self.token:
            return
        if not same_file:
            self._take_again()
        with suppress(StackingError):  # the lock is held even if a full disk prevents writing the token
            self._sign()

    def renew_now_and_then(self) -> None:
        """Calls `renew` at most once a second."""
        if time.monotonic() - self._seen >= _SECONDS_BETWEEN_LOOKS:
            self.renew()

    def close(self) -> None:
        """Closes the descriptor; children that inherited it still hold the lock."""
        os.close(self.descriptor)

    def _take_again(self) -> None:
        """Locks the file that now has the name, unless another controller holds it."""
        descriptor = None if self._is_foreign() else self._taken()
        if descriptor is None:
            raise LostLock(self.path)
        if self._is_foreign():  # it was locked, signed and released in the meantime
            os.close(descriptor)
            raise LostLock(self.path)
        os.close(self.descriptor)
        self.descriptor = descriptor

    def _is_foreign(self) -> bool:
        holder = read_holder(self.path)
        return holder is not None and holder.token != self.token

    def _taken(self) -> int | None:
        """Returns a descriptor of the locked file; None if another process holds the lock."""
        with disk_errors(self.path):
            while True:
                set_aside_unless_file(self.path)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
                try:
                    locked = patiently(lambda: _try_lock(descriptor))  # noqa: B023 (called at once)
                    if locked and self._is_at_path(descriptor):
                        return descriptor
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)
                if not locked:
                    return None

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _sign(self) -> None:
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "token": self.token})
        with disk_errors(self.path):
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, content.encode(), 0)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Watch:
    """Checks on rank 0 whether the lock still belongs to the controller that started the rank."""

    def __init__(self, lock: Path, environment: Mapping[str, str]) -> None:
        self.path, self._token = lock, environment.get(TOKEN_VARIABLE)
        self._seen = time.monotonic()

    def is_lost(self) -> bool:
        """Returns whether another controller has signed the lock; checks at most once a second.

        A missing or unreadable lock does not count as lost: its controller restores it, or has ended.
        """
        if self._token is None or time.monotonic() - self._seen < _SECONDS_BETWEEN_LOOKS:
            return False
        self._seen = time.monotonic()
        holder = read_holder(self.path)
        return holder is not None and holder.token != self._token
