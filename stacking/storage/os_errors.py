"""What the operating system's refusals mean to a user: a full disk, a wrong path, or a disturbance that may pass."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from stacking.errors import NoSpace, StackingError, StorageFailure, UserError

T = TypeVar("T")

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ENOLCK, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT})
"""File servers and cables give these; the same call may succeed a moment later."""

_UNWRITABLE = ("cannot be written", "choose a folder that you may write to")
_NO_FOLDER = ("is a file, or is inside one", "choose a folder")
_BAD_NAME = ("cannot be made", "choose another name")
_MISTAKES = {
    errno.EACCES: _UNWRITABLE,
    errno.EPERM: _UNWRITABLE,
    errno.EROFS: _UNWRITABLE,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: ("is a folder where a file belongs", "move it away"),
    errno.ENAMETOOLONG: _BAD_NAME,
    errno.ELOOP: _BAD_NAME,
    errno.EINVAL: _BAD_NAME,
}

_PAUSES = (0.1, 0.3, 1.0)
"""Seconds before each further try."""
_PROBE = b"\0" * (1 << 16)


def explained(error: OSError, path: Path | str) -> StackingError | None:
    """What ``error``, met at ``path``, is to the user; None: nothing that could be said better than Python does."""
    if error.errno in FULL:
        return NoSpace(Path(path))
    if error.errno in TRANSIENT:
        return StorageFailure(path, error.strerror or str(error))
    if error.errno in _MISTAKES:
        problem, remedy = _MISTAKES[error.errno]
        reason = f" ({error.strerror})" if (problem, remedy) == _BAD_NAME else ""
        return UserError(path, problem + reason, remedy)
    return None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals under ``path`` into errors that a user can act on."""
    try:
        yield
    except OSError as error:
        ours = explained(error, path)
        if ours is None:
            raise
        raise ours from error


def storage_error(error: BaseException) -> StackingError | None:
    """The full disk, or the disturbance, that ``error`` or what led to it comes from."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL | TRANSIENT and cause.filename is not None:
            return explained(cause, str(cause.filename))
        cause = cause.__cause__ or cause.__context__
    return None


def patiently(action: Callable[[], T]) -> T:
    """What ``action`` returns, tried again a few times where the operating system reports a transient error.

    Raises:
        OSError: the last try failed as well, or the error is of another kind.
    """
    for pause in _PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno not in TRANSIENT or isinstance(error, InterruptedError):
                raise
        time.sleep(pause)
    return action()


def is_full(folder: Path) -> bool:
    """Whether not even a short file can be written into ``folder`` for lack of space."""
    probe = folder / ".space"
    try:
        probe.write_bytes(_PROBE)
    except OSError as error:
        return error.errno in FULL
    finally:
        probe.unlink(missing_ok=True)
    return False
