"""The lock of a run: a file lock that one controller holds, and a token in the file by which everybody can tell whose.

The file lock alone cannot tell that its file was removed and another controller locked a new one under the same name.
So the controller compares token and inode again and again (`Lease.renew`), and so does rank 0 (`Watch`).
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
from stacking.storage.files import disk_errors
from stacking.storage.os_errors import patiently

TOKEN_VARIABLE = "STACKING_LOCK_TOKEN"
"""Tells ranks the token of the controller that started them."""
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Holder:
    """Who wrote a lock file last."""

    pid: int
    host: str
    token: str

    @property
    def is_alive_here(self) -> bool:
        """Whether it is a process of this host that still exists."""
        return self.host == socket.gethostname() and Path(f"/proc/{self.pid}").exists()


def read_holder(lock: Path) -> Holder | None:
    """Whom ``lock`` names; None where it does not exist, or does not hold what a controller writes."""
    try:
        content = json.loads(lock.read_bytes())
        holder = Holder(content["pid"], content["host"], content["token"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    valid = type(holder.pid) is int and isinstance(holder.host, str) and isinstance(holder.token, str)
    return holder if valid else None


class Lease:
    """A run's lock, held until `close`; children that inherit ``descriptor`` keep it beyond.

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
                remedy = "wait for it, stop it, or choose another folder"
                raise UserError(path.parent, f"is in use by {who}", remedy)
            time.sleep(0.1)
        self.descriptor = descriptor
        self._sign()

    def renew(self) -> None:
        """Make sure that the lock is still held; a file that was removed or overwritten is restored.

        Raises:
            LostLock: another controller has locked a new file in its place.
        """
        self._seen = time.monotonic()
        holder, same_file = read_holder(self.path), self._is_at_path(self.descriptor)
        if same_file and holder is not None and holder.token == self.token:
            return
        if not same_file:
            self._take_again()
        with suppress(StackingError):  # a full disk does not make it less ours
            self._sign()

    def renew_now_and_then(self) -> None:
        """`renew`, once a second at most."""
        if time.monotonic() - self._seen >= _SECONDS_BETWEEN_LOOKS:
            self.renew()

    def close(self) -> None:
        os.close(self.descriptor)

    def _take_again(self) -> None:
        """Lock the file that is under the name now, unless another controller has."""
        descriptor = None if self._is_foreign() else self._taken()
        if descriptor is None:
            raise LostLock(self.path)
        if self._is_foreign():  # it was locked, signed and left meanwhile
            os.close(descriptor)
            raise LostLock(self.path)
        os.close(self.descriptor)
        self.descriptor = descriptor

    def _is_foreign(self) -> bool:
        holder = read_holder(self.path)
        return holder is not None and holder.token != self.token

    def _taken(self) -> int | None:
        """A descriptor of the locked file; None: another process has it locked."""
        with disk_errors(self.path):
            while True:
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
    """What rank 0 looks at: whether the lock still belongs to the controller that started it."""

    def __init__(self, lock: Path, environment: Mapping[str, str]) -> None:
        self.path, self._token = lock, environment.get(TOKEN_VARIABLE)
        self._seen = time.monotonic()

    def is_lost(self) -> bool:
        """Whether another controller has signed the lock; looks once a second at most.

        A lock that is missing or unreadable is not lost: its controller restores it, or is no longer there.
        """
        if self._token is None or time.monotonic() - self._seen < _SECONDS_BETWEEN_LOOKS:
            return False
        self._seen = time.monotonic()
        holder = read_holder(self.path)
        return holder is not None and holder.token != self._token
