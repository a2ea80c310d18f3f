"""Translates operating system errors for users: a full disk, an invalid path or a transient failure."""

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
TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOLCK, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EREMOTEIO}
)
"""Transient errors of file servers and networks; the same call may succeed a moment later."""

_UNWRITABLE = ("cannot be written", "choose a folder that you may write to")
_NO_FOLDER = ("is a file, or is inside one", "choose a folder")
_BAD_NAME = ("cannot be created", "choose another name")
_MISTAKES = {
    errno.EACCES: _UNWRITABLE,
    errno.EPERM: _UNWRITABLE,
    errno.EROFS: _UNWRITABLE,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: ("is a folder where a file is expected", "move it away"),
    errno.ENAMETOOLONG: _BAD_NAME,
    errno.ELOOP: _BAD_NAME,
    errno.EINVAL: _BAD_NAME,
}

_PAUSES = (0.1, 0.3, 1.0)
"""Seconds before each retry."""
_PROBE = b"\0" * (1 << 16)


def explained(error: OSError, path: Path | str) -> StackingError | None:
    """Translates ``error``, raised for ``path``; returns None if Python's own message is as good."""
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
    """Translates operating system errors under ``path`` into errors that tell users what to do."""
    try:
        yield
    except OSError as error:
        ours = explained(error, path)
        if ours is None:
            raise
        raise ours from error


def storage_error(error: BaseException) -> StackingError | None:
    """Returns the full disk or transient failure that caused ``error``, if any."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL | TRANSIENT and cause.filename is not None:
            return explained(cause, str(cause.filename))
        cause = cause.__cause__ or cause.__context__
    return None


def patiently(action: Callable[[], T]) -> T:
    """Returns the result of ``action``, retrying a few times after transient operating system errors.

    Raises:
        OSError: the last retry failed too, or the error is not transient.
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
    """Returns whether ``folder`` lacks space for even a short file."""
    probe = folder / ".space"
    try:
        probe.write_bytes(_PROBE)
    except OSError as error:
        return error.errno in FULL
    finally:
        probe.unlink(missing_ok=True)
    return False
