"""What every process that a launcher starts on a rank does around its work."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from stacking.errors import StackingError
from stacking.launch.rendezvous import rendezvous
from stacking.storage.os_errors import storage_error


def run_rank(work: Callable[[], None], failure: Callable[[Exception], int] = lambda error: 1) -> NoReturn:
    """Find the other ranks, do ``work``, and end the process with the exit code that tells how it went.

    Args:
        failure: the exit code for an error that is not one of ours, whose traceback goes to the log.
    """
    code = _code_of(work, failure)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # where the log cannot be written the exit code still tells
            stream.flush()
    # Collective libraries may hang in their destructors when a peer is gone already; everything is on disk here.
    os._exit(code)


def _told(error: StackingError) -> int:
    with suppress(OSError):
        print(error, file=sys.stderr, flush=True)
    return error.exit_code


def _code_of(work: Callable[[], None], failure: Callable[[Exception], int]) -> int:
    try:
        os.environ.update(rendezvous(os.environ))
        work()
    except StackingError as error:
        return _told(error)
    except Exception as error:  # a bug, a lost peer or no network: no destructor may keep this rank from ending
        if (ours := storage_error(error)) is not None:
            return _told(ours)
        with suppress(OSError):
            traceback.print_exc()
        return failure(error)
    return 0
