"""Wraps the work of every process that a launcher starts on a rank."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from stacking.errors import StackingError, UserError
from stacking.launch.rendezvous import rendezvous
from stacking.storage.os_errors import storage_error


def run_rank(work: Callable[[], None], failure: Callable[[Exception], int] = lambda error: 1) -> NoReturn:
    """Finds the other ranks, does ``work`` and ends the process with the matching exit code.

    Args:
        failure: returns the exit code for an unexpected error, whose traceback goes to the log.
    """
    code = _code_of(work, failure)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # if the log cannot be written, the exit code still reports the failure
            stream.flush()
    # Collective libraries may hang in their destructors when a peer is gone; everything is on disk by now.
    os._exit(code)


def own_gpu(visible: int) -> int:
    """Returns which of the visible GPUs is this rank's, and sets LOCAL_RANK to it, which DeepSpeed reads.

    That is the rank's number on its node, or the only GPU where the scheduler shows each rank just its own.

    Args:
        visible: the number of GPUs that torch sees.

    Raises:
        UserError: there are fewer GPUs than ranks.
    """
    index = 0 if visible == 1 else int(os.environ["LOCAL_RANK"])
    if index >= visible:
        problem = f"is {index}, but this rank sees {visible} GPUs"
        raise UserError("LOCAL_RANK", problem, "start one rank per GPU, and look at CUDA_VISIBLE_DEVICES")
    os.environ["LOCAL_RANK"] = str(index)
    return index


def _told(error: StackingError) -> int:
    with suppress(OSError):
        print(error, file=sys.stderr, flush=True)
    return error.exit_code


def _code_of(work: Callable[[], None], failure: Callable[[Exception], int]) -> int:
    try:
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi numbers GPUs
        os.environ.update(rendezvous(os.environ))
        work()
    except StackingError as error:
        return _told(error)
    except Exception as error:  # a bug, a lost peer or no network: no destructor may keep this rank alive
        if (ours := storage_error(error)) is not None:
            return _told(ours)
        with suppress(OSError):
            traceback.print_exc()
        return failure(error)
    return 0
